"""A process's part of a training state: the rows of each tensor that it holds, as safetensors, and its random states.

No process has to wait for another, neither in writing nor in reading: FSDP2 splits every tensor by its rows, so that
any number of processes finds its own rows in the files of any other number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from r1ranker.atomic import fsync_path
from r1ranker.device import side_stream
from r1ranker.errors import UserError
from r1ranker.model.fsdp import local_shard
from r1ranker.trainer.checkpoint.random_state import get_random_states, set_random_states
from r1ranker.trainer.checkpoint.state import describe_file
from r1ranker.trainer.learners.optimisation import UPDATES, Optimisation

Learner = tuple[nn.Module, Optimisation]
_Wanted = tuple[Tensor, int, int]
"""this process's rows of a tensor, the first of them, and how many it has over all processes"""
PIECE_BYTES = 128 * 2**20
"""of tensors in one file: what a process needs in host memory to write shards that are on a GPU"""


def part_name(rank: int) -> str:
    """The file of a process that says which rows are in which of its other files, and holds what are no tensors."""
    return f"rank_{rank:05d}.json"


class PartWriter:
    """One part, written by a thread straight from weights and moments, piece by piece, while training goes on.

    Passes forward and back only read them. Whatever changes them waits for `Optimisation.written` of their learner
    first. Learners are written in the order of the mapping: the one that is updated first should come first.
    """

    def __init__(self, directory: str, rank: int, learners: Mapping[str, Learner]) -> None:
        for _, optimisation in learners.values():
            optimisation.wait_until_written()  # an earlier state would lose its event
        # all that a step changes while the thread writes is taken now; of the tensors a reference
        self._rows = {role: list(_held_rows(role, *learner)) for role, learner in learners.items()}
        self._about: dict[str, Any] = {
            "schedules": {role: optimisation.schedule.last_epoch for role, (_, optimisation) in learners.items()},
            "counts": {role: _counts(*learner) for role, learner in learners.items()},
            "random": get_random_states(),
        }
        self._directory, self._rank = Path(directory), rank
        self._failure: str | None = f"{self._directory.parent}: the writing thread broke off"
        self._files: dict[str, dict[str, Any]] = {}
        self._written = {role: Event() for role in learners}
        self._beside = side_stream(one.tensor.device for rows in self._rows.values() for one in rows)
        self._thread = Thread(target=self._write, name="state")
        self._thread.start()
        for role, (_, optimisation) in learners.items():
            optimisation.written = self._written[role]

    def result(self, wait: bool) -> dict[str, Any] | str | None:
        """Size and checksum of each file written, or why it failed; None while it is under way, unless `wait`ed for."""
        if wait:
            self._thread.join()
        if self._thread.is_alive():
            return None
        return self._files if self._failure is None else self._failure

    def _write(self) -> None:
        files: dict[str, dict[str, tuple[int, int]]] = {}
        about = self._directory / part_name(self._rank)
        copies = _HostCopies()
        try:
            with self._beside:
                for role in list(self._rows):
                    for number, piece in enumerate(_pieces(self._rows.pop(role), PIECE_BYTES)):
                        name = f"rank_{self._rank:05d}_{role}_{number:05d}.safetensors"
                        save_file(copies.of(piece), self._directory / name)
                        fsync_path(self._directory / name)
                        files[name] = {one.name: (one.first, one.end) for one in piece}
                    self._written[role].set()
            about.write_text(json.dumps(self._about | {"files": files}), encoding="utf-8")
            fsync_path(about)
            # a checksum takes as long as writing, and needs the weights no more
            self._files = {name: describe_file(self._directory / name) for name in (*files, about.name)}
            self._failure = None
        except (OSError, SafetensorError) as error:  # safetensors has the system's words in an error of its own
            self._failure = f"{self._directory.parent}: {getattr(error, 'strerror', None) or error}"
        finally:  # whatever went wrong, nobody waits for what will not come
            self._rows.clear()
            for written in self._written.values():
                written.set()


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows of a tensor of the whole model."""

    name: str
    tensor: Tensor
    first: int

    @property
    def end(self) -> int:
        return self.first + len(self.tensor)

    def split(self, count: int) -> tuple[_Rows, _Rows]:
        """The first `count` rows, and the others."""
        return (
            replace(self, tensor=self.tensor[:count]),
            replace(self, tensor=self.tensor[count:], first=self.first + count),
        )


def _held_rows(role: str, module: nn.Module, optimisation: Optimisation) -> Iterator[_Rows]:
    """This process's rows of a learner's weights and moments themselves, not copies; those of which there are any."""
    is_sharded = any(isinstance(inner, FSDPModule) for inner in module.modules())
    for name, parameter in _learning(module):
        # one that is gathered at the moment is of the type computed with, and the optimizer does not know it
        assert isinstance(parameter, DTensor) or not is_sharded, f"{role}/{name} is not sharded"
        held = [(f"{role}/{name}", *local_shard(parameter))]
        held += [(f"{role}/{kind}/{name}", rows, first) for kind, rows, first in optimisation.moments_of(parameter)]
        for full_name, rows, first in held:
            if len(rows):
                yield _Rows(full_name, rows.detach(), first)


def _learning(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are updated: all, or with adapters these alone, since the rest is as the model's own files have it."""
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _counts(module: nn.Module, optimisation: Optimisation) -> dict[str, float]:
    """Updates of each parameter that has been updated; Muon does not count them: 0."""
    states = {name: optimisation.state_of(parameter) for name, parameter in _learning(module)}
    counts = {name: state[UPDATES] for name, state in states.items() if UPDATES in state}
    taken = dict(zip(counts, torch.stack(list(counts.values())).tolist(), strict=True)) if counts else {}
    return {name: 0.0 for name, state in states.items() if state} | taken


def _pieces(rows: Iterable[_Rows], most: int) -> Iterator[list[_Rows]]:
    """The same rows in lists of at most `most` bytes, or of a single row that is larger."""
    piece: list[_Rows] = []
    room = most
    for one in rows:
        size = one.tensor[0].nbytes
        while len(one.tensor):
            fitting = max(room // size, 0 if piece else 1)
            if fitting == 0:
                yield piece
                piece, room = [], most
                continue
            taken, one = one.split(fitting)
            piece.append(taken)
            room -= taken.tensor.nbytes
    if piece:
        yield piece


class _HostCopies:
    """Copies of rows that are on a GPU, a piece after the other in the same memory; others are left where they are.

    Tensors of their own would leave the C library with more than twice as much.
    """

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def of(self, piece: Sequence[_Rows]) -> dict[str, Tensor]:
        """The piece's rows in host memory, until the next call."""
        tensors = {one.name: one.tensor for one in piece}
        elsewhere = {name: tensor for name, tensor in tensors.items() if not _in_host_memory(tensor)}
        *starts, size = accumulate((-(-tensor.nbytes // 8) * 8 for tensor in elsewhere.values()), initial=0)
        if size > len(self._room):
            self._room = torch.empty(max(size, PIECE_BYTES), dtype=torch.uint8)
        for start, (name, tensor) in zip(starts, elsewhere.items(), strict=True):
            place = self._room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            tensors[name] = place.copy_(tensor)
        return tensors


def _in_host_memory(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def read_part(directory: str, rank: int, learners: Mapping[str, Learner]) -> None:
    """Fill parameters, moments and schedules from the parts in `directory`, whatever number of processes wrote them.

    Raises UserError where the state is of another model.
    """
    parts = _parts(directory)
    wanted: dict[str, _Wanted] = {}
    for role, (module, optimisation) in learners.items():
        optimisation.wait_until_written()
        counts = parts[0]["counts"].get(role, {}) if parts else {}
        for name, parameter in _learning(module):
            wanted[f"{role}/{name}"] = (*local_shard(parameter), len(parameter))
            if name in counts:  # of a parameter that has been updated
                optimisation.begin(parameter, counts[name])
                moments = optimisation.moments_of(parameter)
                wanted |= {f"{role}/{kind}/{name}": (rows, first, len(parameter)) for kind, rows, first in moments}
    _fill(directory, parts, wanted)
    for role, (_, optimisation) in learners.items():
        optimisation.restore(parts[0]["schedules"][role])


def read_trained_weights(directory: str, role: str, module: nn.Module) -> None:
    """Fill what learns from the parts in `directory`, and no moments. Raises UserError where the state is of another model."""
    wanted = {f"{role}/{name}": (*local_shard(parameter), len(parameter)) for name, parameter in _learning(module)}
    _fill(directory, _parts(directory), wanted)


def _parts(directory: str) -> list[dict[str, Any]]:
    """What each process said of its part."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(directory).glob("rank_*.json"))]


@torch.no_grad()
def _fill(directory: str, parts: Sequence[Mapping[str, Any]], own: Mapping[str, _Wanted]) -> None:
    """Copy this process's rows of each tensor from the files that hold them, one file open at a time."""
    missing = {name: len(rows) for name, (rows, *_) in own.items()}
    for file, held in (item for part in parts for item in part["files"].items()):
        overlaps = {}
        for name, (start, end) in held.items():
            local, first, _ = own.get(name, (None, 0, 0))
            low, high = max(first, start), min(first + (0 if local is None else len(local)), end)
            if local is not None and low < high:
                overlaps[name] = local, first, start, low, high
        if not overlaps:
            continue
        with safe_open(Path(directory) / file, "pt") as opened:
            for name, (local, first, start, low, high) in overlaps.items():
                rows = opened.get_slice(name)
                if rows.get_shape()[1:] == list(local.shape[1:]):
                    local[low - first : high - first].copy_(rows[low - start : high - start])
                    missing[name] -= high - low
    for name, count in missing.items():
        if count:
            rows, _, in_all = own[name]
            shape = [in_all, *rows.shape[1:]]
            raise UserError(f"{directory}: holds no {name} of shape {shape}: the state of another model")


def restore_random_state(directory: str, rank: int) -> None:
    """Put this process's random generators where they stood; a process of which there was none keeps its own."""
    about = Path(directory) / part_name(rank)
    if about.is_file():
        set_random_states(json.loads(about.read_text(encoding="utf-8"))["random"])
