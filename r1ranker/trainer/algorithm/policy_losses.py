"""Losses of the policy a token, each a pure function of tensors [R], which are of several responses one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipRange:
    """Bounds of the importance ratio: [1 - low, 1 + high]; `dual` bounds the loss of negative advantages."""

    low: float = 0.2
    high: float = 0.2
    dual: float = 3.0


@dataclass(frozen=True)
class TokenTerms:
    """What a policy loss is computed from."""

    logprobs: Tensor
    """[R] of the policy that learns"""
    old_logprobs: Tensor
    """[R] of the one that the batch belongs to"""
    advantages: Tensor
    """[R]"""
    responses: Tensor
    """[R] the number of the response that each token is of"""
    learned: Tensor
    """[R] bool: tokens that take part"""

    @property
    def log_ratio(self) -> Tensor:
        """[R]; bounded so that an outlier cannot overflow. A clip is in force long before."""
        return (self.logprobs - self.old_logprobs).clamp(-20.0, 20.0)


PolicyLossFunction = Callable[[TokenTerms, ClipRange], tuple[Tensor, Tensor]]
"""-> losses [R], and 1 where one was clipped [R]"""


def vanilla(terms: TokenTerms, clip: ClipRange) -> tuple[Tensor, Tensor]:
    """The clipped surrogate (PPO, arXiv 1707.06347) with dual clip (arXiv 1912.09729).

    With ratio = exp(logprobs - old_logprobs): max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)), and for A < 0 at most -A dual.
    """
    losses, clipped = _clipped(terms.log_ratio.exp(), terms.advantages, clip)
    bounded = torch.minimum(losses, -terms.advantages * clip.dual)
    return torch.where(terms.advantages < 0, bounded, losses), clipped


def gspo(terms: TokenTerms, clip: ClipRange) -> tuple[Tensor, Tensor]:
    """Group sequence policy optimisation (arXiv 2507.18071), in the form with a gradient a token (its section 4.3).

    Every token of a response y has the ratio s = exp(mean over y of (logprobs - old_logprobs)), of which only its own
    log-probability carries a gradient: sg[s] exp(logprobs - sg[logprobs]); then as the clipped surrogate, without dual clip.
    """
    difference = torch.where(terms.learned, terms.logprobs - terms.old_logprobs, 0.0).detach()
    count = int(terms.responses.max()) + 1 if len(terms.responses) else 0
    zeros = difference.new_zeros(count)
    sums = zeros.index_add(0, terms.responses, difference)
    tokens = zeros.index_add(0, terms.responses, terms.learned.to(zeros.dtype)).clamp_min(1.0)
    of_response = (sums / tokens)[terms.responses]
    log_ratio = (terms.logprobs - terms.logprobs.detach() + of_response).clamp(max=10.0)
    return _clipped(log_ratio.exp(), terms.advantages, clip)


def cispo(terms: TokenTerms, clip: ClipRange) -> tuple[Tensor, Tensor]:
    """Clipped importance weights (MiniMax-M1, arXiv 2506.13585, equation 4): -sg[clamp(ratio, 1 - low, 1 + high)] A logprobs.

    No token loses its gradient: the weight is bounded, and carries none.
    """
    ratio = terms.log_ratio.detach().exp()
    bounded = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    return -bounded * terms.advantages * terms.logprobs, (bounded != ratio).float()


def _clipped(ratio: Tensor, advantages: Tensor, clip: ClipRange) -> tuple[Tensor, Tensor]:
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    return torch.maximum(plain, clipped), (clipped > plain).float()


POLICY_LOSSES: dict[str, PolicyLossFunction] = {
    "vanilla": vanilla,
    "gspo": gspo,
    "cispo": cispo,
    "dr_grpo": vanilla,  # which is in how the losses are summed
}
