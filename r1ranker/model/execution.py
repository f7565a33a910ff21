"""How a model is run in the trainer: sharded, offloaded, recomputing, sharing prompts, compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from r1ranker.device import compute_dtype
from r1ranker.errors import note
from r1ranker.model.attention import PACKED
from r1ranker.model.fsdp import shard
from r1ranker.model.loading import (
    checkpoint_activations,
    compile_blocks,
    init_empty_causal_lm,
    load_causal_lm,
    move_to_device,
)
from r1ranker.model.lora import LoraOptions, add_adapters, base_name, fill_adapters, is_adapter
from r1ranker.model.norms import use_fast_norms
from r1ranker.model.weights import locate_weights, match_parameters, materialise, read_weights

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class ExecutionOptions:
    """Options of a model in the trainer."""

    world_size: int = 1
    """processes that it is sharded over"""
    offload: bool = False
    """parameters rest in host memory"""
    checkpointing: bool = False
    """activations are recomputed in the backward pass"""
    share_prompts: bool = True
    """a prompt is computed once for all its responses in a micro-batch"""
    compiled: bool = False
    dtype: str = "auto"
    """of what is computed, as compute_dtype takes it"""
    sums_on_device: bool = False
    """gradients of a mini-batch's micro-batches are summed whole on the device, and sharded and offloaded once"""
    frozen: bool = False
    """never updated: weights rest in the type they are computed with, where learning ones rest in float32"""
    lora: LoraOptions | None = None
    """adapters learn, and what the wrapper adds; the model itself is frozen"""

    def load(self, path: str, device: torch.device, wrap: Callable[[PreTrainedModel], Module]) -> Module:
        """The model at `path` with packed attention, wrapped and sharded over the processes. Collective.

        Each process reads its own rows alone; only where transformers has to convert what is in the files, all of it.
        Raises UserError for a model that cannot be loaded.
        """
        computed = compute_dtype(device, self.dtype)
        resting = computed if self.frozen or self.lora else torch.float32
        rests_on = torch.device("cpu") if self.offload else device
        model = init_empty_causal_lm(path, resting, PACKED)
        sources = match_parameters(model, locate_weights(path), path)
        if sources is None:
            note(f"{path}: its weights have to be converted, so every process reads all of them")
            model = move_to_device(load_causal_lm(path, resting, PACKED), rests_on)
        if self.lora:
            add_adapters(model, self.lora)
        if self.checkpointing:
            checkpoint_activations(model)
        if self.compiled:
            compile_blocks(model)
        elif device.type == "cpu":
            use_fast_norms(model)
        module = wrap(model)
        if not self.lora:
            module.requires_grad_(not self.frozen)
        shard(module, module.layers, device, self.world_size, self.offload, computed)  # type: ignore[arg-type]
        materialise(module, rests_on)
        if sources is not None:
            held = [name for name, _ in model.named_parameters(remove_duplicate=False) if not is_adapter(name)]
            read_weights(model, {name: sources[base_name(name)] for name in held}, path)
        if self.lora:
            fill_adapters(model, self.lora.seed)
        return module
