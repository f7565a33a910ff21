"""The names that a value of the config may be one of."""

from __future__ import annotations

BY_GROUP = ("grpo", "rloo", "maxrl")
"""estimators that compare whole responses to one prompt"""
ESTIMATORS = ("gae", *BY_GROUP, "reinforce_plus_plus")
LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
KL_TYPES = ("k1", "k2", "k3")
CORRECTION_LEVELS = ("token", "sequence")
"""of importance weights against the engine's log-probabilities"""
