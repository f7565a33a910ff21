"""Losses a token, as pure functions of tensors [R]; and each token's share in the loss, which fixes how they are summed.

A loss is always sum(share * loss of the token): shares are known before the first micro-batch, so that the update does
not depend on how tokens are split over micro-batches or processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def loss_weights(valid: Sequence[np.ndarray], mode: str) -> list[np.ndarray]:
    """Each token's share [L] in the loss of a mini-batch, given which of its tokens take part.

    token-mean: 1 / tokens; seq-mean-token-sum: 1 / responses; seq-mean-token-mean: 1 / (responses * its tokens).
    Tokens and responses are counted over the whole mini-batch; a response without valid tokens does not count.
    """
    tokens = sum(int(mask.sum()) for mask in valid)
    responses = sum(bool(mask.any()) for mask in valid)
    shares = []
    for mask in valid:
        own = int(mask.sum())
        divisor = {
            "token-mean": tokens,
            "seq-mean-token-sum": responses,
            "seq-mean-token-mean": responses * own,
        }[mode]
        shares.append(mask / divisor if own else np.zeros(len(mask)))
    return shares


@dataclass(frozen=True)
class ClipRange:
    """Bounds of the importance ratio: [1 - low, 1 + high]; `dual` bounds the loss of negative advantages."""

    low: float = 0.2
    high: float = 0.2
    dual: float = 3.0


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: ClipRange) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss [R] (PPO, arXiv 1707.06347) with dual clip (arXiv 1912.09729), and where it was clipped [R].

    With ratio = exp(logprobs - old_logprobs): max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)), and for A < 0 at most
    -A dual.
    """
    # the exponent is bounded so that an outlier cannot overflow; the clip is in force long before
    ratio = (logprobs - old_logprobs).clamp(-20.0, 20.0).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    losses = torch.maximum(plain, clipped)
    bounded = torch.where(advantages < 0, torch.minimum(losses, -advantages * clip.dual), losses)
    return bounded, (clipped > plain).float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Clipped squared error [R], 0.5 max((v - R)^2, (clamp(v, v_old - c, v_old + c) - R)^2), and where it was clipped."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    return 0.5 * torch.maximum(plain_error, clipped_error), (clipped_error > plain_error).float()
