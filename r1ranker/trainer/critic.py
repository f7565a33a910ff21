"""The critic on one process: values of trajectories' states, and updates towards their returns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from r1ranker.model.attention import PACKED
from r1ranker.model.fsdp import shard
from r1ranker.model.loading import checkpoint_activations, load_causal_lm
from r1ranker.model.value import ValueModel
from r1ranker.trainer.losses import value_loss
from r1ranker.trainer.optimisation import Optimisation
from r1ranker.trainer.policy import Bins, split_by_response
from r1ranker.trainer.trajectory import MicroBatch, pack


class Critic:
    """A sharded value model over packed rows."""

    def __init__(
        self, path: str, device: torch.device, world_size: int, clip_range: float, offload: bool, checkpointing: bool
    ) -> None:
        self.device = device
        self._world_size = world_size
        self._clip_range = clip_range
        language_model = load_causal_lm(path, dtype=torch.float32, attention=PACKED)
        if checkpointing:
            checkpoint_activations(language_model)
        model = ValueModel(language_model)
        self.module = model if offload else model.to(device)
        shard(self.module, model.layers, device, world_size, offload)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Values [R] of the states before the sampled tokens of a micro-batch on this device."""
        return self.module(batch.predicting, **batch.model_inputs())

    @torch.no_grad()
    def values(self, bins: Bins) -> list[list[np.ndarray]]:
        """Values [L] of each trajectory of each bin."""
        return [
            split_by_response(self.forward(pack(trajectories).to(self.device)), trajectories) for trajectories in bins
        ]

    def update(self, bins: Bins, optimisation: Optimisation) -> dict[str, float]:
        """One optimizer step on a mini-batch; returns sums of the metrics over tokens."""
        totals = {"critic/vf_loss": 0.0, "critic/vf_clipfrac": 0.0}
        for trajectories in bins:
            batch = pack(trajectories).to(self.device)
            weights = batch.columns["weights"]
            losses, clipped = value_loss(
                self.forward(batch), batch.columns["values"], batch.columns["returns"], self._clip_range
            )
            part = (weights * losses).sum()
            (part * self._world_size).backward()
            totals["critic/vf_loss"] += part.item()
            totals["critic/vf_clipfrac"] += clipped[weights > 0].sum().item()
        return totals | {"critic/grad_norm": optimisation.step()}
