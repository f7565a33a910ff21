"""A trained model as a Hugging Face directory, written while its weights are gathered: never more than a file of them is there."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from r1ranker.pretrained import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

FILE_BYTES = 2**29
"""of a weight file; a larger tensor has one of its own"""


def write_model(
    directory: Path, model: PreTrainedModel, parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Write config, generation config and `parameters`, which come one by one, as weights of type `dtype`. Raises OSError."""
    try:
        _write_configs(directory, model, dtype)
        _name_files(directory, _write_weights(directory, parameters, dtype))
    except SafetensorError as error:  # which has the system's words in an error of its own
        raise OSError(errno.EIO, str(error)) from error


def _write_configs(directory: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    before = model.config.dtype, model.config.architectures
    model.config.dtype, model.config.architectures = dtype, [type(model).__name__]
    try:
        model.config.save_pretrained(directory)
    finally:
        model.config.dtype, model.config.architectures = before
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)


def _write_weights(directory: Path, arriving: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> list[list[str]]:
    """Write files 0, 1, ... of whole tensors; returns the names in each."""
    files: list[list[str]] = []
    waiting: dict[str, Tensor] = {}

    def write() -> None:
        save_file(waiting, _numbered(directory, len(files)), metadata={"format": "pt"})
        files.append(list(waiting))
        waiting.clear()

    for name, weight in arriving:
        size = weight.numel() * dtype.itemsize
        if waiting and size + sum(one.nbytes for one in waiting.values()) > FILE_BYTES:
            write()
        waiting[name] = weight.to("cpu", dtype).contiguous()
    write()
    return files


def _name_files(directory: Path, files: list[list[str]]) -> None:
    """Give the files the names that transformers looks for: one alone, or several with an index."""
    if len(files) == 1:
        _numbered(directory, 0).rename(directory / SAFE_WEIGHTS_NAME)
        return
    places: dict[str, str] = {}
    total = 0
    for number, names in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        file = _numbered(directory, number).rename(directory / name)
        total += file.stat().st_size
        places |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _numbered(directory: Path, number: int) -> Path:
    return directory / f"weights.{number}"
