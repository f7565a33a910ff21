"""A process's part of a training state: the rows of each tensor that it holds, as safetensors, and its random states.

No process has to wait for another, neither in writing nor in reading: FSDP2 splits every tensor by its rows, so that
any number of processes finds its own rows in the files of any other number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from r1ranker.atomic import flush
from r1ranker.errors import UserError
from r1ranker.trainer.optimisation import Optimisation
from r1ranker.trainer.random_state import random_states, restore_random_states
from r1ranker.trainer.state import entry

Learner = tuple[nn.Module, Optimisation]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""of AdamW, shaped as their parameter"""
_COUNT = "step"
"""of AdamW, one number a parameter"""


def part_names(rank: int) -> tuple[str, str]:
    """Files of a process: tensors, and what is said of them."""
    return f"rank_{rank:05d}.safetensors", f"rank_{rank:05d}.json"


class PartWriter:
    """One part, copied to host memory at once and written by a thread while training goes on."""

    def __init__(self, directory: str, rank: int, learners: Mapping[str, Learner]) -> None:
        self._tensors, self._first_rows = _snapshot(learners)
        self._about = {
            "first_rows": self._first_rows,
            "schedules": {name: optimisation.schedule.last_epoch for name, (_, optimisation) in learners.items()},
            "random": random_states(),
        }
        self._directory, self._rank = Path(directory), rank
        self._failure: str | None = f"{self._directory.parent}: the writing thread broke off"
        self._files: dict[str, dict[str, Any]] = {}
        self._thread = Thread(target=self._write, name="state")
        self._thread.start()

    def result(self, wait: bool) -> dict[str, Any] | str | None:
        """Size and checksum of each file written, or why it failed; None while it is under way, unless `wait`ed for."""
        if wait:
            self._thread.join()
        if self._thread.is_alive():
            return None
        return self._files if self._failure is None else self._failure

    def _write(self) -> None:
        tensors, about = (self._directory / name for name in part_names(self._rank))
        try:
            save_file(self._tensors, tensors)
            self._tensors = {}
            about.write_text(json.dumps(self._about), encoding="utf-8")
            for file in (tensors, about):
                flush(file)
                self._files[file.name] = entry(file)
            self._failure = None
        except (OSError, SafetensorError) as error:  # safetensors has the system's words in an error of its own
            self._failure = f"{self._directory.parent}: {getattr(error, 'strerror', None) or error}"


def read_part(directory: str, rank: int, learners: Mapping[str, Learner]) -> None:
    """Fill parameters, moments and schedules from the parts in `directory`, whatever number of processes wrote them.

    Raises UserError where the state is of another model.
    """
    with ExitStack() as opened, torch.no_grad():
        parts = _parts(directory, opened)
        for role, (module, optimisation) in learners.items():
            for name, parameter in module.named_parameters():
                _fill(parts, f"{role}/{name}", parameter, directory)
                counted = [part for part in parts if f"{role}/{_COUNT}/{name}" in part.names]
                if counted:  # of a parameter that has been updated
                    state = optimisation.optimizer.state[parameter]
                    state[_COUNT] = counted[0].file.get_tensor(f"{role}/{_COUNT}/{name}").clone()
                    for moment in MOMENTS:
                        state[moment] = torch.zeros_like(parameter)
                        _fill(parts, f"{role}/{moment}/{name}", state[moment], directory)
            optimisation.restore(parts[0].about["schedules"][role])


def read_weights(directory: str, role: str, module: nn.Module) -> None:
    """Fill parameters alone from the parts in `directory`. Raises UserError where the state is of another model."""
    with ExitStack() as opened, torch.no_grad():
        parts = _parts(directory, opened)
        for name, parameter in module.named_parameters():
            _fill(parts, f"{role}/{name}", parameter, directory)


def _parts(directory: str, opened: ExitStack) -> list[_Part]:
    return [_Part(file, opened) for file in sorted(Path(directory).glob("rank_*.safetensors"))]


class _Part:
    """A part opened for reading."""

    def __init__(self, file: Path, opened: ExitStack) -> None:
        self.file: Any = opened.enter_context(safe_open(file, "pt"))
        self.names = set(self.file.keys())
        self.about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))


def _fill(parts: Sequence[_Part], name: str, target: Tensor, directory: str) -> None:
    """Copy this process's rows of a tensor from the parts that hold them."""
    local, first = _local(target)
    missing = len(local)
    for part in parts if missing else []:
        if name not in part.names:
            continue
        rows, start = part.file.get_slice(name), part.about["first_rows"][name]
        count, *shape = rows.get_shape()
        low, high = max(first, start), min(first + len(local), start + count)
        if low < high and shape == list(local.shape[1:]):
            local[low - first : high - first].copy_(rows[low - start : high - start])
            missing -= high - low
    if missing:
        raise UserError(f"{directory}: holds no {name} of shape {list(target.shape)}: the state of another model")


def restore_part_random(directory: str, rank: int) -> None:
    """Put this process's random generators where they stood; a process of which there was none keeps its own."""
    about = Path(directory) / part_names(rank)[1]
    if about.is_file():
        restore_random_states(json.loads(about.read_text(encoding="utf-8"))["random"])


def _snapshot(learners: Mapping[str, Learner]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(copies of this process's rows in host memory, the first row of each)."""
    copies: dict[str, Tensor] = {}
    first_rows: dict[str, int] = {}
    for role, (module, optimisation) in learners.items():
        for name, tensor in _tensors(role, module, optimisation):
            local, first_rows[name] = _local(tensor)
            copies[name] = local.detach().to("cpu", copy=True).contiguous()
    return copies, first_rows


def _tensors(role: str, module: nn.Module, optimisation: Optimisation) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        yield f"{role}/{name}", parameter
        state = optimisation.optimizer.state.get(parameter, {})
        for kind in (_COUNT, *MOMENTS):
            if kind in state:
                yield f"{role}/{kind}/{name}", state[kind]


def _local(tensor: Tensor) -> tuple[Tensor, int]:
    """(this process's rows, the first of them)."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    local = tensor.to_local()
    mesh = tensor.device_mesh
    share = -(-tensor.shape[0] // mesh.size())  # as torch.chunk deals rows
    first = min(mesh.get_local_rank() * share, tensor.shape[0])
    assert len(local) == min(share, tensor.shape[0] - first)
    return local, first
