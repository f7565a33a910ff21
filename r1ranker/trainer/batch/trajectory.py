"""Trajectories as ragged lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from r1ranker.rollout.engine import FinishReason


@dataclass
class Trajectory:
    """One prompt with one sampled response of L tokens, and what is known of it so far."""

    prompt_ids: list[int]
    response_ids: list[int]
    """[L], as sampled; EOS is part of it"""
    rollout_logprobs: np.ndarray
    """[L] float64, the engine's"""
    finish_reason: FinishReason
    group_id: int
    """equal for the samples of one prompt"""
    policy_version: int = 0
    """number of updates that the sampling policy had seen"""
    allowed: list[list[int]] = field(default_factory=list)
    """[L] ids allowed at each token, empty where all were; or an empty list where none was constrained"""
    score: float = 0.0
    """the reward of the whole response"""
    sample_weight: float = 1.0
    """so many samples: of a group that holds every answer, their number times this one's probability"""
    old_logprobs: np.ndarray | None = None
    """[L], of the policy before this batch's updates"""
    ref_logprobs: np.ndarray | None = None
    """[L], of the reference policy"""
    values: np.ndarray | None = None
    """[L], the critic's, of the state before each token"""
    advantages: np.ndarray | None = None
    """[L]"""
    returns: np.ndarray | None = None
    """[L]"""
    weights: np.ndarray | None = None
    """[L], share of each token in the loss of its mini-batch; 0 for tokens that take no part"""
    loss: float | None = None
    """its own part of the loss; known only of a mini-batch whose loss or gradient was not finite"""
    episode: int = -1
    """equal for the turns of one conversation; -1: it is by itself"""
    turn: int = 0
    """its number in the conversation, from 0"""
    rejected: np.ndarray | None = None
    """[L] bool: tokens that are too far from the policy that sampled them to be learned from"""
    root_length: int | None = None
    """tokens of the prompt that the conversation began with; None: all of the prompt"""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def free_length(self) -> int:
        """Sampled tokens up to the last that could have been another one; the constraint left no choice after it."""
        if not self.allowed:
            return len(self.response_ids)
        return next((end for end in range(len(self.allowed), 0, -1) if len(self.allowed[end - 1]) != 1), 0)

    def count_inputs(self, forced_ends: bool = True) -> int:
        """Response tokens that predict others; without `forced_ends` none behind the last that could have been another one."""
        return max(0, (len(self.response_ids) if forced_ends else self.free_length) - 1)

    @property
    def valid(self) -> np.ndarray:
        """[L] bool: tokens that can be trained on, those whose log-probability is finite, and which were not rejected."""
        known = np.isfinite(self.rollout_logprobs)
        return known if self.rejected is None else known & ~self.rejected


COLUMNS = ("rollout_logprobs", "old_logprobs", "ref_logprobs", "values", "advantages", "returns", "weights")
"""fields of a trajectory that hold a number a sampled token"""


def number_groups(trajectories: Sequence[Trajectory]) -> list[int]:
    """A number for each that those alone share which are compared: the samples of a prompt; of its conversations the same turn."""
    numbers: dict[tuple[int, int], int] = {}
    return [numbers.setdefault((one.group_id, one.turn), len(numbers)) for one in trajectories]


def deal_by_load(loads: Sequence[int], hands: int) -> list[list[int]]:
    """Indices of `loads` dealt to `hands` processes, heaviest first to the one with least; every list equally long.

    Lists are filled up with -1, which stands for an empty bin.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    total = [0] * hands
    most = -(-len(loads) // hands)
    for index in sorted(range(len(loads)), key=lambda index: (-loads[index], index)):
        hand = min((hand for hand in range(hands) if len(dealt[hand]) < most), key=lambda hand: (total[hand], hand))
        dealt[hand].append(index)
        total[hand] += loads[index]
    return [hand + [-1] * (most - len(hand)) for hand in dealt]
