"""The critic on one process: values of trajectories' states, and updates towards their returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.fsdp import each_micro_batch, reshard
from r1ranker.model.value import ValueModel
from r1ranker.trainer.algorithm.losses import value_loss
from r1ranker.trainer.batch.packing import MicroBatch, pack, split_responses
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.learners.optimisation import Optimisation
from r1ranker.trainer.learners.policy import Bins, split_tokens


class Critic:
    """A sharded value model over packed rows."""

    def __init__(self, path: str, device: torch.device, clip_range: float, execution: ExecutionOptions) -> None:
        self.device = device
        self._clip_range = clip_range
        self._execution = execution
        self.module = execution.load(path, device, ValueModel)

    def pack(self, trajectories: Sequence[Trajectory]) -> MicroBatch:
        """A micro-batch on this device."""
        return pack(trajectories, self._execution.share_prompts).to(self.device)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Values [R] of the states before the sampled tokens of a micro-batch on this device."""
        values: Tensor = self.module(batch.predicting, **batch.model_inputs())
        return values

    @torch.no_grad()
    def values(self, bins: Bins) -> list[list[np.ndarray]]:
        """Values [L] of each trajectory of each bin."""
        values = [split_tokens(self.forward(self.pack(trajectories)), trajectories) for trajectories in bins]
        reshard(self.module)
        return values

    def update(self, bins: Bins, optimisation: Optimisation) -> dict[str, float]:
        """One optimizer step on a mini-batch, or none, as of the policy; returns sums of the metrics over tokens."""
        totals = {"critic/vf_loss": 0.0, "critic/vf_clipfrac": 0.0}
        for trajectories in each_micro_batch(self.module, bins, self._execution.sums_on_device):
            batch = self.pack(trajectories)
            weights = batch.columns["weights"]
            losses, clipped = value_loss(
                self.forward(batch), batch.columns["values"], batch.columns["returns"], self._clip_range
            )
            part = (weights * losses).sum()
            (part * self._execution.world_size).backward()
            totals["critic/vf_loss"] += part.item()
            totals["critic/vf_clipfrac"] += clipped[weights > 0].sum().item()
        return totals | {"critic/grad_norm": optimisation.step(math.isfinite(totals["critic/vf_loss"]))}

    @torch.no_grad()
    def losses(self, bins: Bins) -> list[list[float]]:
        """Each trajectory's own part of the loss, of each bin."""
        results = []
        for trajectories in bins:
            batch = self.pack(trajectories)
            losses, _ = value_loss(
                self.forward(batch), batch.columns["values"], batch.columns["returns"], self._clip_range
            )
            weighted = batch.columns["weights"] * losses
            results.append([weighted[own].sum().item() for own, _ in split_responses(batch, trajectories)])
        reshard(self.module)
        return results
