"""Packing of trajectories into one row: a micro-batch. No padding anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r1ranker.model.layout import RowLayout
from r1ranker.rollout.sampling import pad_allowed
from r1ranker.trainer.batch.chains import chain, group_by_prompt
from r1ranker.trainer.batch.trajectory import COLUMNS, Trajectory


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
    responses: Tensor  # [R] the number of the trajectory that each sampled token is of
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


def pack(trajectories: Sequence[Trajectory], share_prompts: bool = True, forced_ends: bool = True) -> MicroBatch:
    """One micro-batch of all the trajectories, their sampled tokens in their order; of none: a filler of one token.

    A prompt that several have stands in the row once, followed by their responses, which all attend to it, and the turns of a
    conversation are one sequence (`share_prompts` off: each trajectory has a sequence of its own). The last sampled token
    predicts nothing and is left out. Without `forced_ends` so are the tokens at a response's end that the constraint left no
    choice about: their probability is 1 whatever the state, so the prompt's last one is said to predict them.
    """
    if not trajectories:
        return _filler()
    tokens: list[int] = []
    positions: list[np.ndarray] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    predicting: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(trajectories)

    def put(segment: Sequence[int], first_position: int, prefix: int) -> None:
        tokens.extend(segment)
        positions.append(np.arange(first_position, first_position + len(segment)))
        lengths.append(len(segment))
        prefixes.append(prefix)

    chains = chain(trajectories, share_prompts, forced_ends)
    for family in group_by_prompt(chains, share_prompts):
        prompt = chains[family[0]].prompt
        start, beginning = len(tokens), len(lengths)
        if len(family) == 1:
            put([*prompt, *chains[family[0]].inputs], 0, -1)
            behind = start + len(prompt)
        else:
            put(prompt, 0, -1)
        for own in (chains[place] for place in family):
            if len(family) > 1:
                behind = len(tokens)
                if own.inputs:
                    put(own.inputs, len(prompt), beginning)
            for index in own.members:
                one = trajectories[index]
                # a place in the sequence, and then in the row: the prompt's last token predicts the first sampled one
                places = np.full(len(one.response_ids), len(one.prompt_ids) - 1)
                end = one.count_inputs(forced_ends) + 1
                places[:end] += np.arange(len(places[:end]))
                predicting[index] = np.where(places < len(prompt), start + places, behind + places - len(prompt))
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
        responses=torch.repeat_interleave(torch.tensor([len(one.response_ids) for one in trajectories])),
        columns=columns,
        is_filler=False,
    )


def split_responses(batch: MicroBatch, trajectories: Sequence[Trajectory]) -> Iterator[tuple[slice, MicroBatch]]:
    """For each of the trajectories a batch was packed from: its tokens among the R, and the batch with their columns alone."""
    start = 0
    for trajectory in trajectories:
        own = slice(start, start + len(trajectory.response_ids))
        columns = {name: column[own] for name, column in batch.columns.items()}
        yield own, replace(batch, columns=columns, responses=torch.zeros_like(batch.responses[own]))
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
        responses=empty,
        columns={name: torch.zeros(0) for name in COLUMNS},
        is_filler=True,
    )
