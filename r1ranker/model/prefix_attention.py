"""Attention over rows whose sequences share prompts, on the CPU: a prompt's keys are neither copied nor computed twice.

A continuing segment attends to its prompt (all of it) and to itself (causally) in two parts, each by torch's flash kernel; the
parts are brought together by their log-sum-exps, and the backward kernel is handed the joint output and log-sum-exp, with which
each part's gradient is that of the whole (the decomposition of ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1ranker.model.layout import RowLayout

FASTER_IN_FLOAT32 = 256
"""tokens of a segment up to which the backward kernel takes bfloat16 more slowly than float32: at 64 a fifth as fast"""
flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
"""attention and the log-sum-exps of its scores, on the CPU"""
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class PrefixAttention(torch.autograd.Function):
    """Attention of query [1, H, T, D] over key and value [1, G, T, D] with the segments of a layout; returns [1, H, T, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scale: float | None) -> Tensor:
        heads = query.shape[1]
        out = torch.empty_like(query)
        joint = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for (start, end), rest in layout.prefix_groups:
            for first, last in ((start, end), *rest):
                own = slice(first, last)
                out[:, :, own], joint[:, :, own] = flash_forward(
                    query[:, :, own],
                    _spread(key[:, :, own], heads),
                    _spread(value[:, :, own], heads),
                    0.0,
                    True,
                    scale=scale,
                )
            if not rest:
                continue
            before, after = slice(start, end), slice(rest[0][0], rest[-1][1])
            folded = _folded(query[:, :, after], key.shape[1])
            part, part_lse = flash_forward(folded, key[:, :, before], value[:, :, before], 0.0, False, scale=scale)
            part, part_lse = _unfolded(part, heads), _unfolded(part_lse, heads)
            total = torch.logaddexp(joint[:, :, after], part_lse)
            own_share = (joint[:, :, after] - total).exp()[..., None].to(out.dtype)
            out[:, :, after] = out[:, :, after] * own_share + part * (part_lse - total).exp()[..., None].to(out.dtype)
            joint[:, :, after] = total
        ctx.save_for_backward(query, key, value, out, joint)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, joint = ctx.saved_tensors
        (gradient,) = gradients
        heads, groups = query.shape[1], key.shape[1]
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for (start, end), rest in ctx.layout.prefix_groups:
            for first, last in ((start, end), *rest):
                own = slice(first, last)
                to_query, to_key, to_value = _backward_within(
                    gradient[:, :, own],
                    query[:, :, own],
                    _spread(key[:, :, own], heads),
                    _spread(value[:, :, own], heads),
                    out[:, :, own],
                    joint[:, :, own],
                    ctx.scale,
                )
                of_query[:, :, own] = to_query
                of_key[:, :, own], of_value[:, :, own] = _gathered(to_key, groups), _gathered(to_value, groups)
            if not rest:
                continue
            before, after = slice(start, end), slice(rest[0][0], rest[-1][1])
            to_query, to_key, to_value = _backward(
                _folded(gradient[:, :, after], groups),
                _folded(query[:, :, after], groups),
                key[:, :, before],
                value[:, :, before],
                _folded(out[:, :, after], groups),
                _folded(joint[:, :, after], groups),
                0.0,
                False,
                scale=ctx.scale,
            )
            of_query[:, :, after] += _unfolded(to_query, heads)
            of_key[:, :, before] += to_key
            of_value[:, :, before] += to_value
        return of_query, of_key, of_value, None, None


def _backward_within(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, joint: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of one segment's causal attention to itself."""
    tensors = [gradient, query, key, value, out]
    if query.dtype.itemsize < 4 and query.shape[2] <= FASTER_IN_FLOAT32:
        tensors = [tensor.float() for tensor in tensors]
    to_query, to_key, to_value = _backward(*tensors, joint, 0.0, True, scale=scale)
    return to_query, to_key, to_value


def _spread(tensor: Tensor, heads: int) -> Tensor:
    """[1, G, T, D] with each head repeated for the query heads that share it."""
    repeats = heads // tensor.shape[1]
    return tensor.repeat_interleave(repeats, dim=1) if repeats > 1 else tensor


def _gathered(tensor: Tensor, groups: int) -> Tensor:
    """The gradient of what `_spread` repeated."""
    return tensor.unflatten(1, (groups, -1)).sum(dim=2) if tensor.shape[1] != groups else tensor


def _folded(tensor: Tensor, groups: int) -> Tensor:
    """[1, H, C, ...] -> [1, G, (H / G) C, ...]: without a causal mask, heads that share keys are only more queries."""
    return tensor.unflatten(1, (groups, -1)).flatten(2, 3)


def _unfolded(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `_folded`."""
    return tensor.unflatten(2, (heads // tensor.shape[1], -1)).flatten(1, 2)
