"""Trajectories as ragged lists, and their packing into micro-batches of at most so many tokens. No padding anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r1ranker.model.layout import RowLayout
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

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def free_length(self) -> int:
        """Sampled tokens up to the last that could have been another one; the constraint left no choice after it."""
        if not self.allowed:
            return len(self.response_ids)
        return next((end for end in range(len(self.allowed), 0, -1) if len(self.allowed[end - 1]) != 1), 0)

    @property
    def valid(self) -> np.ndarray:
        """[L] bool: tokens that can be trained on, those whose log-probability is finite."""
        return np.isfinite(self.rollout_logprobs)


@dataclass
class MicroBatch:
    """Trajectories packed into one row of T tokens, with R sampled tokens to predict."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T], each token's place in its own sequence
    layout: RowLayout
    predicting: Tensor  # [R] places in the row whose states predict the sampled tokens
    targets: Tensor  # [R] the sampled tokens
    constrained: Tensor  # [C] rows of [R] under a constraint
    allowed: Tensor  # [C, K] ids allowed there, padded with -1
    columns: dict[str, Tensor]  # name -> [R] float32: weights, advantages, old_logprobs, ...
    is_filler: bool  # holds nothing to learn from; keeps processes in step

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor | RowLayout) else value
            for name, value in vars(self).items()
        }
        moved["columns"] = {name: column.to(device) for name, column in self.columns.items()}
        return MicroBatch(**moved)

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for a transformers model with packed attention."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "layout": self.layout}


COLUMNS = ("rollout_logprobs", "old_logprobs", "ref_logprobs", "values", "advantages", "returns", "weights")


def group_by_prompt(prompts: Sequence[Sequence[int]], share: bool = True) -> list[list[int]]:
    """Indices of `prompts`, those with the same prompt together; with `share` off each by itself."""
    if not share:
        return [[index] for index in range(len(prompts))]
    families: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        families.setdefault(tuple(prompt), []).append(index)
    return list(families.values())


def pack(trajectories: Sequence[Trajectory], share_prompts: bool = True, forced_ends: bool = True) -> MicroBatch:
    """One micro-batch of all the trajectories, their sampled tokens in their order; of none: a filler of one token.

    A prompt that several have stands in the row once, followed by their responses, which all attend to it
    (`share_prompts` off: each has its own). The last sampled token predicts nothing and is left out. Without
    `forced_ends` so are the tokens at a response's end that the constraint left no choice about: their probability is 1
    whatever the state, so the prompt's last one is said to predict them.
    """
    if not trajectories:
        return _filler()
    tokens: list[int] = []
    positions: list[np.ndarray] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    predicting: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(trajectories)

    def put(segment: list[int], first_position: int, prefix: int) -> None:
        tokens.extend(segment)
        positions.append(np.arange(first_position, first_position + len(segment)))
        lengths.append(len(segment))
        prefixes.append(prefix)

    for family in group_by_prompt([trajectory.prompt_ids for trajectory in trajectories], share_prompts):
        prompt = trajectories[family[0]].prompt_ids
        ends = [
            len(trajectories[index].response_ids) if forced_ends else trajectories[index].free_length
            for index in family
        ]
        inputs = [trajectories[index].response_ids[: max(end - 1, 0)] for index, end in zip(family, ends, strict=True)]
        start, beginning = len(tokens), len(lengths)
        if len(family) == 1:
            put([*prompt, *inputs[0]], 0, -1)
            place = start + len(prompt)
        else:
            put(prompt, 0, -1)
        first = start + len(prompt) - 1  # the prompt's last token predicts the first sampled one
        for index, end, response in zip(family, ends, inputs, strict=True):
            if len(family) > 1:
                place = len(tokens)
                if response:
                    put(response, len(prompt), beginning)
            predicting[index] = np.full(len(trajectories[index].response_ids), first)
            predicting[index][1:end] = np.arange(place, place + len(response))
    allowed = [ids for one in trajectories for ids in one.allowed or [[] for _ in one.response_ids]]
    columns = {}
    for name in COLUMNS:
        arrays = [getattr(trajectory, name) for trajectory in trajectories]
        if all(array is not None for array in arrays):
            columns[name] = torch.from_numpy(np.concatenate(arrays)).float()
    constrained, ids = pad_allowed(allowed)
    return MicroBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        layout=RowLayout.from_lengths(lengths, prefixes),
        predicting=torch.from_numpy(np.concatenate(predicting)),
        targets=torch.tensor([token for one in trajectories for token in one.response_ids], dtype=torch.long),
        constrained=constrained,
        allowed=ids,
        columns=columns,
        is_filler=False,
    )


def split_responses(batch: MicroBatch, trajectories: Sequence[Trajectory]) -> Iterator[tuple[slice, MicroBatch]]:
    """For each of the trajectories a batch was packed from: its tokens among the R, and the batch with their columns alone."""
    start = 0
    for trajectory in trajectories:
        own = slice(start, start + len(trajectory.response_ids))
        yield own, replace(batch, columns={name: column[own] for name, column in batch.columns.items()})
        start = own.stop


def _filler() -> MicroBatch:
    empty = torch.zeros(0, dtype=torch.long)
    constrained, ids = pad_allowed([])
    return MicroBatch(
        input_ids=torch.zeros(1, 1, dtype=torch.long),
        position_ids=torch.zeros(1, 1, dtype=torch.long),
        layout=RowLayout.from_lengths([1]),
        predicting=empty,
        targets=empty,
        constrained=constrained,
        allowed=ids,
        columns={name: torch.zeros(0) for name in COLUMNS},
        is_filler=True,
    )


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
