"""Each token's share in the loss, which fixes how losses are summed; and the critic's loss a token.

A loss is always sum(share * loss of the token): shares are known before the first micro-batch, so that the update does
not depend on how tokens are split over micro-batches or processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def loss_weights(valid: Sequence[np.ndarray], mode: str, longest: int = 1) -> list[np.ndarray]:
    """Each token's share [L] in the loss of a mini-batch, given which of its tokens take part.

    token-mean: 1 / tokens; seq-mean-token-sum: 1 / responses; seq-mean-token-mean: 1 / (responses * its tokens);
    seq-mean-token-sum-norm: 1 / (responses * `longest`), the tokens that a response may have (Dr. GRPO, arXiv 2503.20783).
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
            "seq-mean-token-sum-norm": responses * longest,
        }[mode]
        shares.append(mask / divisor if own else np.zeros(len(mask)))
    return shares


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Clipped squared error [R], 0.5 max((v - R)^2, (clamp(v, v_old - c, v_old + c) - R)^2), and where it was clipped."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    return 0.5 * torch.maximum(plain_error, clipped_error), (clipped_error > plain_error).float()
