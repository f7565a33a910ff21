"""The coefficient of the KL term in the reward: fixed, or adapted to a target."""

from __future__ import annotations

from dataclasses import dataclass


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
