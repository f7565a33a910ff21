"""Statistics of a batch: its groups, how much the critic explains, and mean, maximum and minimum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIGNAL_TOLERANCE = 1e-6
"""a group whose scores spread less than this says nothing: its advantages are exactly 0"""


def group_statistics(scores: Sequence[float], groups: Sequence[int]) -> tuple[dict[int, np.ndarray], set[int]]:
    """Scores of each group (float64), and the groups without signal: of one sample, or with equal scores."""
    members: dict[int, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        members.setdefault(group, []).append(float(score))
    arrays = {group: np.array(values, dtype=np.float64) for group, values in members.items()}
    silent = {group for group, values in arrays.items() if len(values) < 2 or np.ptp(values) < SIGNAL_TOLERANCE}
    return arrays, silent


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns); 0 where the returns do not vary."""
    variance = float(np.var(returns)) if len(returns) else 0.0
    return 1.0 - float(np.var(returns - values)) / variance if variance > 0 else 0.0


def summarise(name: str, values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Mean (weighted by `weights`, shaped as `values`, where given), maximum and minimum under `name`; nothing for no values."""
    if len(values) == 0:
        return {}
    return {
        f"{name}/mean": float(np.average(values, weights=weights)),
        f"{name}/max": float(values.max()),
        f"{name}/min": float(values.min()),
    }
