"""Attention over one packed row of sequences: each attends to itself alone, causally. Registered as 'packed'.

On GPUs in half precision it is one variable-length flash kernel (flash-attn where installed, else torch's own);
elsewhere scaled_dot_product_attention, sequence by sequence. The sequences' bounds come as `cu_seq_lens_q`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from r1ranker.errors import UserError

PACKED = "packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, H, T, D] over key and value [1, G, T, D]; returns [1, T, H, D].

    `cu_seq_lens_q` [S + 1] holds the bounds of the S sequences, from 0 to T; `max_length_q` the longest one's length.
    """
    if attention_mask is not None or dropout:
        raise ValueError("packed attention takes neither a mask nor dropout")
    if s_aux is not None or (sliding_window is not None and max_length_q > sliding_window):
        raise UserError(
            f"actor_rollout_ref.model.path: this model attends over a window of {sliding_window} tokens or with sinks, and a "
            f"sequence has {max_length_q}; a model with full attention is wanted, or shorter sequences"
        )
    kernel = _flash_kernel() if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) else None
    if kernel is not None:
        rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return kernel(*rows, cu_seq_lens_q, max_length_q, scaling)[None], None
    bounds = cu_seq_lens_q.tolist()
    grouped = query.shape[1] != key.shape[1]
    parts = [
        scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@cache
def _flash_kernel() -> Callable[..., Tensor]:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        def torch_kernel(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
            repeats = q.shape[1] // k.shape[1]
            k, v = (tensor.repeat_interleave(repeats, dim=1) if repeats > 1 else tensor for tensor in (k, v))
            out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0))
            return out

        return torch_kernel

    def flash_kernel(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
        return flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, softmax_scale=scale, causal=True)

    return flash_kernel


def register_packed() -> None:
    """Make `attn_implementation="packed"` known to transformers."""
    AttentionInterface.register(PACKED, packed_attention)
