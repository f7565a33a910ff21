"""LoRA: low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685), by the library peft.

An adapted layer computes x W^T + (alpha / rank) (x A^T) B^T. A [rank, in] is drawn at random, B [out, rank] begins as zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from r1ranker.errors import UserError, first_line, suggest
from r1ranker.model.fsdp import full_tensor, local_shard
from r1ranker.pretrained import full_path

ALL_LINEAR = "all-linear"
"""every linear layer but the output embedding; of a mixture of experts those of attention"""
ADAPTER = "default"
"""peft's name of an adapter that is alone"""
_BASE, _PARTS = ".base_layer.", (".lora_A.", ".lora_B.")


@dataclass(frozen=True)
class LoraOptions:
    """Adapters of a model."""

    rank: int
    alpha: float
    targets: str | Sequence[str] = ALL_LINEAR
    """all-linear, or names of linear layers or ends of them, such as q_proj"""
    seed: int = 0


def add_adapters(model: PreTrainedModel, options: LoraOptions) -> None:
    """Put adapters beside the layers of `model` in place, and freeze all else. Adapters have no storage yet.

    Raises UserError for a layer that the model lacks, or that is not linear.
    """
    from peft import inject_adapter_in_model

    targets = _find_targets(model, options.targets)
    try:
        inject_adapter_in_model(_peft_config(options, targets), model, ADAPTER, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError(f"target_modules: found {options.targets}; {first_line(error, 300)}") from error
    for name, layer in adapted_layers(model):
        if not isinstance(layer.base_layer, nn.Linear):  # peft has put them beside stacked experts or a router
            raise UserError(
                f"target_modules: found {options.targets}; {name} is no linear layer of its own, and names of attention's are wanted"
            )
        for part in (layer.lora_A, layer.lora_B):  # what learns rests in float32, whatever its model rests in
            part.to(torch.float32)


def _find_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """Whole names of the layers that are meant. What all-linear means is settled here: peft reads more into it for some models."""
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if targets == ALL_LINEAR:
        has_experts = any(parameter.ndim > 2 for parameter in model.parameters())
        return [name for name in layers if "attn" in name or "attention" in name] if has_experts else layers
    known = sorted({name.rpartition(".")[2] for name in layers})
    for end in targets:
        if not any(_ends_with(name, end) for name in layers):
            raise UserError(
                f"target_modules: found {end!r}{suggest(end, known)}; {ALL_LINEAR} or some of {', '.join(known)} are wanted"
            )
    return [name for name in layers if any(_ends_with(name, end) for end in targets)]


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _peft_config(options: LoraOptions, targets: Sequence[str], path: str | None = None) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        target_modules=list(targets),
        base_model_name_or_path=path,
    )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each layer with an adapter, and its name."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield name, module


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return any(part in name for part in _PARTS)


def base_name(name: str) -> str:
    """The name that a parameter has without adapters."""
    return name.replace(_BASE, ".")


@torch.no_grad()
def fill_adapters(model: nn.Module, seed: int) -> None:
    """Give adapters their first numbers: the same over any number of processes. Their storage has to be there.

    A is uniform between -1 / sqrt(in) and 1 / sqrt(in), as in peft and in the paper's own code; B is zero.
    """
    for name, layer in adapted_layers(model):
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        whole = torch.empty(down.shape).uniform_(generator=generator).mul_(2).sub_(1) / math.sqrt(down.shape[1])
        rows, first = local_shard(down)
        rows.copy_(whole[first : first + len(rows)])
        local_shard(up)[0].zero_()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model that the adapters stand beside, inside the block. For passes without gradients."""
    layers = [layer for _, layer in adapted_layers(model)]
    for layer in layers:
        layer.set_scale(ADAPTER, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(ADAPTER, 1.0)


def gather_weights(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Each weight of the model without adapters' names, gathered whole on `device` one at a time, adapters merged into it.

    They are merged in `dtype`, as the model computes them: sums are in float32 and rounded once. Every process has to take part.
    """
    layers = {f"{name}.base_layer.weight": layer for name, layer in adapted_layers(model)}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        layer = layers.get(name)
        if layer is None:
            yield base_name(name), full_tensor(parameter, device, dtype)
            continue
        down, up = (full_tensor(part[ADAPTER].weight, device, dtype) for part in (layer.lora_A, layer.lora_B))
        merged = torch.addmm(full_tensor(parameter, device, dtype), up, down, alpha=layer.scaling[ADAPTER])
        yield base_name(name), merged


def gather_adapters(model: nn.Module, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Each adapter's weights by the names that peft's files have, in float32, gathered likewise."""
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            yield f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}", full_tensor(parameter, device)


def write_adapters(directory: Path, weights: Iterable[tuple[str, Tensor]], options: LoraOptions, path: str) -> None:
    """Write adapters of the model at `path` as peft reads them. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    named = {name: weight.to("cpu").contiguous() for name, weight in weights}
    save_file(named, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in named})
    config = _peft_config(options, targets, full_path(path)).to_dict() | {"inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))
    (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
