"""How a model is run in the trainer: sharded, offloaded, recomputing, sharing prompts, compiled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from r1ranker.model.attention import PACKED
from r1ranker.model.loading import checkpoint_activations, compile_blocks, load_causal_lm, moved


@dataclass(frozen=True)
class Execution:
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

    def load(self, path: str, device: torch.device) -> PreTrainedModel:
        """The model at `path` in float32 with packed attention, on `device` unless it is offloaded; not yet sharded."""
        model = load_causal_lm(path, dtype=torch.float32, attention=PACKED)
        if self.checkpointing:
            checkpoint_activations(model)
        if self.compiled:
            compile_blocks(model)
        return model if self.offload else moved(model, device)
