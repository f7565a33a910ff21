"""The KL divergence from the reference: estimated a token, and the coefficient of its term in the reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return logprobs - ref_logprobs


def _k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return 0.5 * (logprobs - ref_logprobs).square()


def _k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    difference = (ref_logprobs - logprobs).clamp(-20.0, 20.0)
    # an outlier is bounded, and has no gradient, as in veRL
    return (difference.exp() - difference - 1.0).clamp(max=10.0)


_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Estimates [R] of KL(policy || reference) from samples of the policy (Schulman, 'Approximating KL divergence', 2020).

    With d = log p - log q: k1 = d (unbiased), k2 = d^2 / 2 (small variance), k3 = exp(-d) + d - 1 (both, never negative).
    As a loss k1 teaches nothing: its gradient is that of log p, whose expectation under p is 0.
    """
    return _ESTIMATORS[kind](logprobs, ref_logprobs)


@dataclass
class KLController:
    """Coefficient `value`; with a `target` it follows the measured KL (Ziegler et al., arXiv 1909.08593, section 2.2)."""

    value: float
    target: float | None = None
    horizon: float = 10000.0

    def update(self, kl: float, samples: int) -> None:
        """Move the coefficient by at most 20% of samples / horizon towards what keeps `kl` (nats a token) at the target."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * samples / self.horizon
