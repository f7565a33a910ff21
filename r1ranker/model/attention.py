"""Attention over one packed row of sequences: each attends to itself alone, causally, and to the prompt that it continues.

Registered with transformers as 'packed'. On GPUs in half precision it is one variable-length flash kernel (flash-attn where
installed, else torch's own); elsewhere scaled_dot_product_attention, segment by segment. The segments come as `layout`.
Values narrower than keys are filled up for the kernels; a cap on scores, which they lack, is computed in the open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from r1ranker.errors import UserError, note
from r1ranker.model.layout import RowLayout
from r1ranker.model.prefix_attention import PrefixAttention

PACKED = "packed"
SETTING = "actor_rollout_ref.model.path: "
"""before what the trainer refuses a model for"""
_NOT_COMPUTED = {
    "s_aux": "sinks",
    "position_bias": "a bias by distance",
    "indices": "chosen tokens alone",
    "block_indices": "chosen blocks alone",
}
"""what some models of transformers hand their attention"""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: RowLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, H, T, D] over key [1, G, T, D] and value [1, G, T, E <= D] as `layout` lies; [1, T, H, E].

    With `softcap` a score s is softcap * tanh(s / softcap), as in Gemma 2 (arXiv 2408.00118).
    """
    check_full_attention(attention_mask, dropout, sliding_window, others, layout.max_seqlen_k, SETTING)
    # a copy here, since some models take the heads together by a view
    if softcap:
        return capped_attention(query, key, value, layout, scaling, softcap).transpose(1, 2).contiguous(), None
    width = value.shape[3]
    if width < key.shape[3]:
        value = pad(value, (0, key.shape[3] - width))
    return _full_width_attention(query, key, value, layout, scaling)[..., :width].contiguous(), None


def _full_width_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None
) -> Tensor:
    kernel = _flash_kernel() if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) else None
    if kernel is not None:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return kernel(q, k, v, layout, scaling)[None]
    if layout.has_prefixes and not query.is_cuda:
        out: Tensor = PrefixAttention.apply(query, key, value, layout, scaling)
        return out.transpose(1, 2)
    return segmented_attention(query, key, value, layout, scaling).transpose(1, 2)


def check_full_attention(
    attention_mask: Tensor | None,
    dropout: float,
    sliding_window: int | None,
    others: Mapping[str, Any],
    longest: int,
    where: str = "",
) -> None:
    """Refuse what attention over whole sequences of up to `longest` tokens cannot do; `others` is what else a model hands it.

    Raises ValueError for a mask or dropout; UserError, begun with `where`, for a window that is shorter, and for sinks,
    biases and chosen places.
    """
    if attention_mask is not None or dropout:
        raise ValueError("attention over packed rows takes neither a mask nor dropout")
    if sliding_window is not None and longest > sliding_window:
        raise UserError(
            f"{where}this model attends over a window of {sliding_window} tokens, and a sequence has {longest}; a model "
            "with full attention is wanted, or shorter sequences"
        )
    for name, what in _NOT_COMPUTED.items():
        if others.get(name) is not None:
            raise UserError(f"{where}this model attends with {what} ({name}); a model with full attention is wanted")


def segmented_attention(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scale: float | None) -> Tensor:
    """The same [1, H, T, D] by torch's public attention alone, with a copy of a prompt's keys for each of its segments."""
    return _by_segment(partial(_attend_plainly, scale=scale), query, key, value, layout)


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scale: float | None, softcap: float
) -> Tensor:
    """Attention [1, H, T, E] whose scores are capped; the softmax is in float32, as transformers' own is."""
    return _by_segment(partial(_attend_capped, scale=scale, softcap=softcap), query, key, value, layout)


def attend_at_end(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None = None
) -> Tensor:
    """Causal attention [B, H, T, E] of the last T of S tokens, query [B, H, T, D] over key [B, G, S, D] and value [B, G, S, E <= D]."""
    if softcap:
        return _attend_capped(query, key, value, scale, softcap)
    width = value.shape[3]
    out = _attend_plainly(query, key, pad(value, (0, key.shape[3] - width)), scale)
    return out[..., :width]


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    own, every = query.shape[2], key.shape[2]
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(own, every) if own < every else None,
        is_causal=own == every,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_capped(query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float) -> Tensor:
    (heads, own), (groups, every) = query.shape[1:3], key.shape[1:3]
    grouped = query.unflatten(1, (groups, heads // groups))
    scores = grouped @ key[:, :, None].transpose(3, 4) * (query.shape[3] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    later = torch.ones(own, every, dtype=torch.bool, device=query.device).triu(every - own + 1)
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2)


def _by_segment(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor, layout: RowLayout
) -> Tensor:
    """`attend` from each segment to its prefix and itself, joined along the row."""
    parts = []
    for (start, end), prefix in zip(layout.spans, layout.prefixes, strict=True):
        keys, values = key[:, :, start:end], value[:, :, start:end]
        if prefix >= 0:
            before = slice(*layout.spans[prefix])
            keys, values = torch.cat([key[:, :, before], keys], 2), torch.cat([value[:, :, before], values], 2)
        parts.append(attend(query[:, :, start:end], keys, values))
    return torch.cat(parts, dim=2)


@cache
def _flash_kernel() -> Callable[[Tensor, Tensor, Tensor, RowLayout, float | None], Tensor]:
    """A causal kernel over [T, H, D] whose masks are aligned at the ends of queries and keys, as a continuation wants it."""
    try:
        from flash_attn import flash_attn_varlen_func
    except (ImportError, OSError) as error:  # built against another torch, it lacks symbols or libraries
        if not (isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"):
            note(f"flash-attn cannot be imported ({error}); attention is by the kernel that torch has")
        from torch.nn.attention.varlen import varlen_attn

        def torch_kernel(q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float | None) -> Tensor:
            keys, values = _keys(k, v, layout)
            out: Any = varlen_attn(
                q,
                keys,
                values,
                layout.cu_seqlens_q,
                layout.cu_seqlens_k,
                layout.max_seqlen_q,
                layout.max_seqlen_k,
                scale=scale,
                window_size=(-1, 0),
                enable_gqa=q.shape[1] != k.shape[1],
            )
            return out

        return torch_kernel

    def flash_kernel(q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float | None) -> Tensor:
        return flash_attn_varlen_func(
            q,
            *_keys(k, v, layout),
            layout.cu_seqlens_q,
            layout.cu_seqlens_k,
            layout.max_seqlen_q,
            layout.max_seqlen_k,
            softmax_scale=scale,
            causal=True,
        )

    return flash_kernel


def _keys(key: Tensor, value: Tensor, layout: RowLayout) -> tuple[Tensor, Tensor]:
    """Keys and values of every segment, a prompt's once for each that continues it: few bytes beside the activations."""
    return (key[layout.key_indices], value[layout.key_indices]) if layout.has_prefixes else (key, value)


def register_packed() -> None:
    """Make `attn_implementation="packed"` known to transformers."""
    AttentionInterface.register(PACKED, packed_attention)
