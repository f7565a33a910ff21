"""Weights laid out beforehand for a CPU's products in bfloat16: they give the same bits, and decoding takes five sixths of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""layers that models call and whose weights they do not read"""
_ROWS = 16
"""that the layout is best for: those of a decoding step"""


class PackedLinear(nn.Linear):
    """A linear layer that holds its weight as oneDNN wants it, and no other; `weight` has its shape and type alone."""

    packed: Tensor

    def pack(self, weight: Tensor) -> None:
        """Take a weight [out, in] over."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.weight.dtype), _ROWS)

    def forward(self, input: Tensor) -> Tensor:
        """The product [..., out] of input [..., in]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")
        return product


def pack_linears(model: PreTrainedModel) -> dict[str, PackedLinear]:
    """Pack the blocks of a model on the CPU in bfloat16, where the processor multiplies it; {name of the weight: its layer}.

    The output layer stays as it is: it is often the embedding too, and a copy of it takes more memory than time is gained.
    """
    packed: dict[str, PackedLinear] = {}
    if model.device.type != "cpu" or not is_supported():
        return packed
    for name, module in model.named_modules():
        of_block = name.rpartition(".")[2] in _PROJECTIONS
        if of_block and type(module) is nn.Linear and module.weight.dtype == torch.bfloat16:
            layer: Any = module
            layer.__class__ = PackedLinear
            layer.pack(layer.weight)
            layer.weight = nn.Parameter(layer.weight.detach().to("meta"), requires_grad=False)
            packed[f"{name}.weight"] = layer
    return packed


def is_supported() -> bool:
    """Whether torch was built with oneDNN, and the processor has instructions for bfloat16."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
