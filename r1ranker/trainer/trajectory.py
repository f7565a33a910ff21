"""Trajectories as ragged lists, and their packing into micro-batches of at most so many tokens. No padding anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r1ranker.rollout.engine import FinishReason
from r1ranker.rollout.sampling import pad_allowed


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

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def valid(self) -> np.ndarray:
        """[L] bool: tokens that can be trained on, those whose log-probability is finite."""
        return np.isfinite(self.rollout_logprobs)


@dataclass
class MicroBatch:
    """S trajectories packed into one row of T tokens, R of them sampled."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T], restarting at 0 for each trajectory
    cu_seqlens: Tensor  # [S + 1] int32
    max_seqlen: int
    predicting: Tensor  # [R] places in the row whose logits predict the sampled tokens
    targets: Tensor  # [R] the sampled tokens
    constrained: Tensor  # [C] rows of [R] under a constraint
    allowed: Tensor  # [C, K] ids allowed there, padded with -1
    columns: dict[str, Tensor]  # name -> [R] float32: weights, advantages, old_logprobs, ...
    is_filler: bool  # holds nothing to learn from; keeps processes in step

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        moved["columns"] = {name: column.to(device) for name, column in self.columns.items()}
        return MicroBatch(**moved)

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for a transformers model with packed attention."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_seqlen,
            "max_length_k": self.max_seqlen,
        }


_COLUMNS = ("rollout_logprobs", "old_logprobs", "ref_logprobs", "values", "advantages", "returns", "weights")


def pack(trajectories: Sequence[Trajectory]) -> MicroBatch:
    """One micro-batch of all the trajectories, in their order; of none: a filler of one token."""
    if not trajectories:
        return _filler()
    lengths = [len(trajectory) for trajectory in trajectories]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens: list[int] = []
    predicting: list[np.ndarray] = []
    allowed: list[list[int]] = []
    for start, trajectory in zip(starts, trajectories, strict=False):
        tokens += [*trajectory.prompt_ids, *trajectory.response_ids]
        first = start + len(trajectory.prompt_ids) - 1  # the last prompt token predicts the first sampled one
        predicting.append(np.arange(first, first + len(trajectory.response_ids)))
        allowed += trajectory.allowed or [[] for _ in trajectory.response_ids]
    columns = {}
    for name in _COLUMNS:
        arrays = [getattr(trajectory, name) for trajectory in trajectories]
        if all(array is not None for array in arrays):
            columns[name] = torch.from_numpy(np.concatenate(arrays)).float()
    constrained, ids = pad_allowed(allowed)
    return MicroBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        cu_seqlens=torch.from_numpy(starts).to(torch.int32),
        max_seqlen=max(lengths),
        predicting=torch.from_numpy(np.concatenate(predicting)),
        targets=torch.tensor([token for trajectory in trajectories for token in trajectory.response_ids]),
        constrained=constrained,
        allowed=ids,
        columns=columns,
        is_filler=False,
    )


def _filler() -> MicroBatch:
    empty = torch.zeros(0, dtype=torch.long)
    constrained, ids = pad_allowed([])
    return MicroBatch(
        input_ids=torch.zeros(1, 1, dtype=torch.long),
        position_ids=torch.zeros(1, 1, dtype=torch.long),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        max_seqlen=1,
        predicting=empty,
        targets=empty,
        constrained=constrained,
        allowed=ids,
        columns={name: torch.zeros(0) for name in _COLUMNS},
        is_filler=True,
    )


def bins_of(lengths: Sequence[int], max_tokens: int, max_sequences: int | None = None) -> list[list[int]]:
    """First-fit decreasing: indices of `lengths` in bins of at most `max_tokens` tokens and `max_sequences` entries.

    Raises ValueError where one length alone is over `max_tokens`.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > max_tokens:
            raise ValueError(f"a sequence of {length} tokens does not fit into a micro-batch of {max_tokens}")
        for place, free in enumerate(room):
            if length <= free and (max_sequences is None or len(bins[place]) < max_sequences):
                bins[place].append(index)
                room[place] -= length
                break
        else:
            bins.append([index])
            room.append(max_tokens - length)
    assert all(sum(lengths[index] for index in one) <= max_tokens for one in bins)
    return bins


def deal(loads: Sequence[int], hands: int) -> list[list[int]]:
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
