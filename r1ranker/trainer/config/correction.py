"""The bounds of algorithm.rollout_correction, which veRL writes as numbers, or as two numbers in a text."""

from __future__ import annotations

import math
from typing import Any

from r1ranker.errors import UserError, suggest
from r1ranker.trainer.config.schema import RolloutCorrectionConfig

Bounds = tuple[float | None, float]
"""lower (None: there is none) and upper"""
REJECTIONS = (
    *(f"{level}_{kind}" for level in ("token", "seq_sum", "seq_mean") for kind in ("k1", "k2", "k3")),
    "seq_max_k2",
    "seq_max_k3",
)
"""options of rollout_rs"""


def parse_bounds(key: str, found: Any) -> Bounds:
    """(lower, upper) of a number, which is the upper bound alone, or of a text such as 0.5_5.0; raises UserError, naming `key`."""
    try:
        if isinstance(found, bool):
            raise ValueError
        lower, _, upper = str(found).rpartition("_")
        bounds = (float(lower) if lower else None, float(upper))
    except ValueError:
        bounds = (None, math.nan)
    if not bounds[1] > 0 or (bounds[0] is not None and not 0 < bounds[0] <= bounds[1]):
        raise UserError(
            f"algorithm.rollout_correction.{key}: found {found!r}; a number over 0, or two as 0.5_5.0, the smaller one first, is wanted"
        )
    return bounds


def parse_rejections(config: RolloutCorrectionConfig) -> dict[str, Bounds]:
    """option -> its bounds, of rollout_rs; raises UserError for unknown ones, and for bounds that do not go with them."""
    options = [one.strip() for one in (config.rollout_rs or "").split(",") if one.strip()]
    thresholds = [one.strip() for one in str(config.rollout_rs_threshold or "").split(",") if one.strip()]
    where = "algorithm.rollout_correction.rollout_rs"
    for option in options:
        if option not in REJECTIONS:
            raise UserError(
                f"{where}: found {option!r}{suggest(option, REJECTIONS)}; of {', '.join(REJECTIONS)} are wanted"
            )
    if options and len(thresholds) not in (1, len(options)):
        raise UserError(
            f"{where}_threshold: found {config.rollout_rs_threshold!r}; one bound for all, or one for each of {', '.join(options)}, "
            "is wanted"
        )
    bounds = [parse_bounds("rollout_rs_threshold", one) for one in thresholds] * (
        len(options) // max(1, len(thresholds))
    )
    found = dict(zip(options, bounds, strict=True))
    for option, (lower, upper) in found.items():
        if lower is None and option.endswith("k1") and upper < 1:
            raise UserError(
                f"{where}_threshold: found {upper:g} alone for {option}; a ratio of at least 1, or two as 0.5_2.0, are wanted"
            )
        if lower is not None and not option.endswith("k1"):
            raise UserError(f"{where}_threshold: found two bounds for {option}; one is wanted")
    return found
