"""A model's weights from safetensors, row by row: each process reads those of its own shards and nothing else."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from r1ranker.errors import UserError, first_line
from r1ranker.model.fsdp import local_shard
from r1ranker.pretrained import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

READ_BYTES = 2**26
"""of a tensor that are read at once"""

WeightFiles = Mapping[str, Path]
"""name of a tensor -> the file that holds it"""
Sources = Mapping[str, tuple[str, Path]]
"""name of a parameter -> (its name in the files, the file)"""


def locate_weights(path: str) -> WeightFiles:
    """The safetensors files of a model directory or hub id, which is taken into the hub's cache.

    Raises UserError where there are none, or one is missing or damaged.
    """
    single = _file(path, SAFE_WEIGHTS_NAME)
    if single is not None:
        with _opened(path, single) as file:
            return dict.fromkeys(file.keys(), single)
    index = _file(path, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        raise UserError(f"{path}: no {SAFE_WEIGHTS_NAME}; weights in safetensors are wanted")
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {name: _file(path, name) for name in set(places.values())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of safetensors files ({type(error).__name__}: {error})") from error
    found: dict[str, Path] = {}
    for tensor, name in places.items():
        file = names[name]
        if file is None:
            raise UserError(f"{path}: no {name}, which {SAFE_WEIGHTS_INDEX_NAME} names for {tensor}")
        found[tensor] = file
    return found


def match_parameters(model: PreTrainedModel, files: WeightFiles, path: str) -> Sources | None:
    """Where each parameter stands in the files, whole and by one of its own names, so that its rows can be read alone.

    None where transformers has to convert what it reads: other names or shapes, stacked experts, quantised weights,
    adapters beside them, and a tied parameter that stands there twice with different numbers.
    """
    if getattr(model.config, "quantization_config", None) is not None or _file(path, "adapter_config.json"):
        return None
    parameters = aliases(model)
    if set(model.state_dict()) != {name for _, names in parameters for name in names}:  # persistent buffers
        return None
    sources: dict[str, str] = {}
    for _, names in parameters:
        held = [name for name in names if name in files]
        if not held or not _are_same(path, [(name, files[name]) for name in held]):
            return None
        sources |= dict.fromkeys(names, held[0])
    shapes = dict(_shapes(path, files, set(sources.values())))
    if any(list(parameter.shape) != shapes[sources[names[0]]] for parameter, names in parameters):
        return None
    return {name: (source, files[source]) for name, source in sources.items()}


def aliases(model: nn.Module) -> list[tuple[nn.Parameter, list[str]]]:
    """Each parameter with all its names; tied ones have several."""
    names: defaultdict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return list(names.items())


def materialise(module: nn.Module, device: torch.device) -> None:
    """Give each parameter on the meta device storage on `device`, not yet filled; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.is_meta:
                if parameter not in made:
                    empty = torch.empty_like(parameter, device=device)
                    made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                setattr(part, name, made[parameter])


@torch.no_grad()
def read_weights(model: PreTrainedModel, sources: Sources, path: str) -> None:
    """Fill the model's parameters, sharded or whole, with this process's rows of them.

    What is still on the meta device is left out, such as the output embedding of a critic, and what has no source. Raises
    UserError for a damaged file.
    """
    for parameter, names in aliases(model):
        if parameter.is_meta or names[0] not in sources:
            continue
        name, file = sources[names[0]]
        rows, first = local_shard(parameter)
        count = _rows_at_once(rows.shape)
        # opened for each tensor: what was read through a mapping counts as this process's until it is closed
        with _opened(path, file) as opened:
            held = opened.get_slice(name)
            for start in range(0, len(rows), count):
                end = min(start + count, len(rows))
                rows[start:end].copy_(held[first + start : first + end])


def _rows_at_once(shape: Sequence[int]) -> int:
    return max(1, READ_BYTES // max(1, 4 * math.prod(shape[1:])))


def _are_same(path: str, places: Sequence[tuple[str, Path]]) -> bool:
    """Whether tensors in the files hold the same numbers, looked at piece by piece."""
    (name, file), *others = places
    for other, where in others:
        with _opened(path, file) as one, _opened(path, where) as two:
            rows, same = one.get_slice(name), two.get_slice(other)
            if rows.get_shape() != same.get_shape():
                return False
            count = _rows_at_once(rows.get_shape())
            for start in range(0, rows.get_shape()[0], count):
                if not torch.equal(rows[start : start + count], same[start : start + count]):
                    return False
    return True


def _shapes(path: str, files: WeightFiles, names: Collection[str]) -> Iterator[tuple[str, list[int]]]:
    for place in sorted({files[name] for name in names}):
        with _opened(path, place) as file:
            for name in names:
                if files[name] != place:
                    continue
                try:
                    yield name, list(file.get_slice(name).get_shape())
                except SafetensorError as error:
                    raise UserError(
                        f"{path}: {place.name} holds no {name}, which {SAFE_WEIGHTS_INDEX_NAME} says it does"
                    ) from error


def _file(path: str, name: str) -> Path | None:
    """A file of a model directory, or of a hub id in the cache; None where there is none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"{path}: {name} cannot be loaded ({first_line(error, 300)})") from error
    return None if found is None else Path(found)


def _opened(path: str, file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {file.name} is damaged ({first_line(error, 300)})") from error
