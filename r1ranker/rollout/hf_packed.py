"""Weights laid out beforehand for a CPU's products: few rows take half of the time, and in bfloat16 with AVX-512 have the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""layers of a module that models hand the same input, one after the other"""
_ALONE = ("o_proj", "qkv_proj", "gate_up_proj", "down_proj")
"""these and the ones above are called by models, which do not read their weights"""
_ROWS = 16
"""that the layout is best for: those of a decoding step"""
_NARROW = 256
"""width of a model below which plain products are faster in float32: a call takes longer than what it computes"""


class PackedLinear(nn.Linear):
    """A linear layer whose product is part of its stack's; `weight` has its shape and type alone, or is the embedding's too."""

    stack: Stack
    place: int

    def forward(self, input: Tensor) -> Tensor:
        """The product [..., out] of input [..., in]."""
        return self.stack.multiply(input, self.place)


class Stack:
    """Layers that are handed the same input: their weights are one, as oneDNN wants it, and so is their product."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Take linear layers [out, in] over, all with biases or none of them."""
        self._widths = [layer.out_features for layer in layers]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        self._weight: Tensor | None = None
        self._dtype = layers[0].weight.dtype
        self._waiting = {place: layer.weight.detach() for place, layer in enumerate(layers)}
        self._computed: tuple[Tensor, dict[int, Tensor]] | None = None
        """an input, and the products that have not been asked for"""
        for place, given in enumerate(layers):
            layer: Any = given
            layer.__class__, layer.stack, layer.place = PackedLinear, self, place
            if self._bias is not None:  # a view of the joint one, so that what is copied into it comes there
                layer.bias = nn.Parameter(self._bias.split(self._widths)[place], requires_grad=False)
        self.pack()

    def put(self, place: int, weight: Tensor) -> None:
        """Take the weight [out, in] of a layer over; it is computed with when all have come, or after `pack`."""
        self._waiting[place] = weight.detach().to(self._dtype, copy=len(self._widths) > 1)
        if len(self._waiting) == len(self._widths):
            self.pack()

    def pack(self) -> None:
        """Bring in the weights that have come, beside what is there of the others; without those, nothing is done."""
        if not self._waiting:
            return
        if len(self._waiting) < len(self._widths):
            if self._weight is None:
                return
            for place, weight in enumerate(self._weight.to_dense().split(self._widths)):
                self._waiting.setdefault(place, weight)
        weights = [self._waiting[place] for place in range(len(self._widths))]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(whole, _ROWS)
        self._waiting.clear()

    def drop(self) -> None:
        """Have no weights until all have come anew."""
        self._weight = None
        self._waiting.clear()
        self._computed = None

    def multiply_all(self, input: Tensor) -> Tensor:
        """The layers' products [..., out], one after the other, of input [..., in]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._weight, self._bias, "none", [], "")
        return product

    def multiply(self, input: Tensor, place: int) -> Tensor:
        """A layer's product [..., out] of input [..., in]; the first layer that asks has it computed for all."""
        computed = self._computed
        if computed is None or computed[0] is not input or place not in computed[1]:
            product = self.multiply_all(input)
            if len(self._widths) == 1:
                return product
            computed = self._computed = input, dict(enumerate(product.split(self._widths, dim=-1)))
        own = computed[1].pop(place)
        if not computed[1]:
            self._computed = None
        return own


class PackedWeights:
    """The packed layers of a model on the CPU, where `is_packed` says that they help; of any other none.

    An output layer that is the embedding too is there twice then: a twentieth of a decoding step is saved by it.
    """

    def __init__(self, model: PreTrainedModel | None = None) -> None:
        self._layers: dict[str, PackedLinear] = {}
        self._copied: dict[str, PackedLinear] = {}
        """by the names of weights that others hold too"""
        if model is None or model.device.type != "cpu":
            return
        embedding: Any = model.get_input_embeddings()
        if not is_packed(model.dtype, embedding.weight.shape[1]):
            return
        for name, module in list(model.named_modules()):
            for layers in _stacks_of(module):
                Stack(list(layers.values()))
                for child, layer in layers.items():
                    self._hold(f"{name}.{child}.weight", layer)
        self._pack_head(model)

    def put(self, name: str, weight: Tensor) -> bool:
        """Take a weight over; whether nothing else holds it."""
        layer = self._layers.get(name) or self._copied.get(name)
        if layer is not None:
            layer.stack.put(layer.place, weight)
        return name in self._layers

    def pack(self) -> None:
        """Bring in what was put, where parts of stacks are missing."""
        for layer in self._layers.values():
            layer.stack.pack()

    def drop(self) -> None:
        """Have no weights until all have come anew."""
        for layer in (*self._layers.values(), *self._copied.values()):
            layer.stack.drop()

    def _hold(self, name: str, layer: Any) -> None:
        """Leave a layer's weight to its stack alone."""
        layer.weight = nn.Parameter(layer.weight.detach().to("meta"), requires_grad=False)
        self._layers[name] = layer

    def _pack_head(self, model: PreTrainedModel) -> None:
        head: Any = model.get_output_embeddings()
        if not _is_plain(head):
            return
        names = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is head.weight]
        Stack([head])
        if len(names) == 1:
            self._hold(names[0], head)
        else:
            self._copied = dict.fromkeys(names, head)


def is_packed(dtype: torch.dtype, width: int) -> bool:
    """Whether weights of a type are packed on this CPU, in a model of a width: torch has to be built with oneDNN.

    In bfloat16 the processor has to have instructions for it, in float32 those of the AVX family, and the width has to be worth it.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and width >= _NARROW and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _stacks_of(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The layers of a module that are packed, by name: those that read the same, and the others one by one."""
    linear = {name: layer for name, layer in module.named_children() if _is_plain(layer)}
    for together in _TOGETHER:
        layers = {name: linear[name] for name in together if name in linear}
        alike = {(layer.in_features, layer.bias is None) for layer in layers.values()}
        if len(alike) == 1:
            yield layers
        else:
            yield from ({name: layer} for name, layer in layers.items())
    yield from ({name: linear[name]} for name in _ALONE if name in linear)


def _is_plain(module: Any) -> bool:
    return type(module) is nn.Linear and module.weight.dtype in (torch.bfloat16, torch.float32)
