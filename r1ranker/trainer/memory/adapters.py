"""Sizes of the adapters that a model has in a run, counted on a model without storage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from r1ranker.errors import UserError
from r1ranker.trainer.config.models import ModelConfig, lora_options

if TYPE_CHECKING:
    from r1ranker.model.lora import LoraOptions


@dataclass(frozen=True)
class Adapters:
    """Numbers of a model's adapters."""

    parameters: int
    layer_parameters: int
    """of the block that has most"""
    kept: int
    """numbers a token that a block keeps for the backward pass beside those of the model itself: what leaves each A"""


def load_adapters(key: str, model: ModelConfig) -> Adapters | None:
    """The adapters of the model that `key` of the config describes; None: it has none.

    Raises UserError for target_modules that the model does not have.
    """
    options = lora_options(model, 0)
    try:
        return None if options is None else _count(str(model.path), options)
    except UserError as error:
        raise UserError(f"{key}.{error}" if str(error).startswith("target_modules") else str(error)) from error


@cache
def _count(path: str, options: LoraOptions) -> Adapters:
    import torch

    from r1ranker.model.loading import init_empty_causal_lm
    from r1ranker.model.lora import adapted_layers, add_adapters, is_adapter

    model = init_empty_causal_lm(path, torch.float32, "eager")
    add_adapters(model, options)
    trunk: Any = model.base_model
    blocks = [
        sum(parameter.numel() for name, parameter in block.named_parameters() if is_adapter(f".{name}"))
        for block in trunk.layers
    ]
    layers = len(list(adapted_layers(trunk.layers[0])))
    every = sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))
    return Adapters(every, max(blocks), layers * options.rank)
