"""Root mean square normalisation that is quick on a CPU: rows in blocks that stay in the cache, and a backward pass of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from r1ranker.model.blocks import split_rows

BLOCK_NUMBERS = 2**18
"""of a block of rows in float32: a megabyte"""


class RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) in float32, rounded to the type of x, times weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    x [..., D], weight [D]. Rounded where transformers' own modules round, so that both give the same bits. Only x and a number a row are kept
    for the backward pass, which takes a third of the time of the one that torch puts together of single steps in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The normalised rows, in the type that x and weight have together."""
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(rows.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
        scale = rows.new_empty(len(rows), 1, dtype=torch.float32)
        for block in _blocks(rows):
            wide = rows[block].float()
            own = wide.square()
            scale[block] = own.mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
            torch.mul(torch.mul(wide, scale[block], out=own).to(x.dtype), weight, out=out[block])
        ctx.save_for_backward(x, weight, scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With n = x scale and h = gradient weight: scale (h - n mean(h n)) for x, the sum of gradient n for weight."""
        x, weight, scale = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        gradient = gradients[0].reshape(rows.shape)
        of_rows, wide_weight = torch.empty_like(rows), weight.float()
        of_weight = torch.zeros_like(wide_weight) if ctx.needs_input_grad[1] else None
        for block in _blocks(rows):
            normed, own = rows[block] * scale[block], gradient[block].float()
            product = own * normed
            if of_weight is not None:
                of_weight += product.sum(dim=0)
            mean = product.mul_(wide_weight).mean(dim=-1, keepdim=True)
            own = own * wide_weight  # not in place: in float32 it is the gradient itself
            of_rows[block] = own.sub_(normed.mul_(mean)).mul_(scale[block])
        return of_rows.view(x.shape), None if of_weight is None else of_weight.to(weight.dtype), None


def _blocks(rows: Tensor) -> list[slice]:
    return split_rows(len(rows), rows.shape[1], BLOCK_NUMBERS)


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """What RootMeanSquare computes, of a few rows and for no backward pass: nothing but calls of torch counts there."""
    wide = x.float()
    wide = wide.mul(wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_())
    return wide.to(x.dtype) * weight


def use_fast_norms(model: nn.Module) -> None:
    """Have every module of `model` that computes what RootMeanSquare does compute it so. For a model on a CPU."""
    for module in model.modules():
        kind: Any = type(module)
        if is_root_mean_square(kind):
            module.__class__ = _fast(kind)


@cache
def is_root_mean_square(kind: type[Any]) -> bool:
    """Whether modules of a class give the same bits as RootMeanSquare, of a width and an epsilon that are tried."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    eps, generator = 0.01, torch.Generator().manual_seed(0)
    try:
        module: Any = kind(24, eps)
        if [name for name, _ in module.named_parameters()] != ["weight"] or epsilon_of(module) != eps:
            return False
        with torch.no_grad():
            module.weight.copy_(torch.rand(24, generator=generator) + 0.5)
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(2, 7, 24, generator=generator).to(dtype)
                weight = module.to(dtype).weight
                if not torch.equal(module(x), RootMeanSquare.apply(x, weight, eps)):
                    return False
    except (TypeError, AttributeError):  # made of something else
        return False
    return True


@cache
def _fast(kind: type[Any]) -> type[Any]:
    def forward(self: Any, hidden_states: Tensor) -> Any:
        return RootMeanSquare.apply(hidden_states, self.weight, epsilon_of(self))

    return type(kind.__name__, (kind,), {"forward": forward})


def epsilon_of(module: Any) -> float:
    """What a module of root mean squares adds to the mean square."""
    found: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return found
