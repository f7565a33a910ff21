"""The policy on one process: log-probabilities of trajectories, and updates from them. Also serves as the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.fsdp import each_micro_batch, reshard
from r1ranker.model.policy_model import PolicyModel
from r1ranker.trainer.algorithm.kl import kl_estimate
from r1ranker.trainer.algorithm.policy_losses import POLICY_LOSSES, ClipRange, TokenTerms
from r1ranker.trainer.batch.packing import MicroBatch, pack, split_responses
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import ActorConfig
from r1ranker.trainer.learners.optimisation import Optimisation

Bins = Sequence[Sequence[Trajectory]]
"""trajectories of each micro-batch; an empty one keeps this process in step with the others"""


@dataclass(frozen=True)
class PolicyLoss:
    """What the policy's loss is made of."""

    clip: ClipRange
    entropy_coeff: float = 0.0
    kl_coef: float = 0.0
    """0: no KL loss"""
    kl_type: str = "k3"
    mode: str = "vanilla"
    """of POLICY_LOSSES"""

    @classmethod
    def from_config(cls, actor: ActorConfig) -> PolicyLoss:
        """The published loss with the values of `actor`."""
        clip = ClipRange(
            low=actor.clip_ratio if actor.clip_ratio_low is None else actor.clip_ratio_low,
            high=actor.clip_ratio if actor.clip_ratio_high is None else actor.clip_ratio_high,
            dual=actor.clip_ratio_c,
        )
        kl_coef = actor.kl_loss_coef if actor.use_kl_loss else 0.0
        return cls(clip, actor.entropy_coeff, kl_coef, actor.kl_loss_type, actor.policy_loss.loss_mode)

    def __call__(self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        """This micro-batch's part of the loss, and its parts of the metrics (sums over tokens, not yet divided)."""
        weights = batch.columns["weights"]
        learned = weights > 0
        old = batch.columns.get("old_logprobs", logprobs.detach())
        old = torch.where(learned, old, logprobs.detach())  # what an unusable token holds may not be a number
        terms = TokenTerms(logprobs, old, batch.columns["advantages"], batch.responses, learned)
        losses, clipped = POLICY_LOSSES[self.mode](terms, self.clip)
        policy_part = (weights * losses).sum()
        loss = policy_part
        sums = {
            "actor/pg_loss": policy_part.item(),
            "actor/pg_clipfrac": clipped[learned].sum().item(),
            "actor/ppo_kl": (old - logprobs.detach())[learned].sum().item(),
        }
        if entropy is not None:
            if self.entropy_coeff:
                loss = loss - self.entropy_coeff * (weights * entropy).sum()
            sums["actor/entropy"] = entropy.detach()[learned].sum().item()
        if self.kl_coef:
            kl = kl_estimate(logprobs, batch.columns["ref_logprobs"], self.kl_type)
            loss = loss + self.kl_coef * (weights * kl).sum()
            sums["actor/kl_loss"] = kl.detach()[learned].sum().item()
        return loss, sums


class Policy:
    """A sharded causal language model over packed rows."""

    def __init__(self, path: str, device: torch.device, temperature: float, execution: ExecutionOptions) -> None:
        self.device = device
        self._temperature = temperature
        self._execution = execution
        self.module = execution.load(path, device, PolicyModel)
        self.language_model = self.module.language_model

    def pack(self, trajectories: Sequence[Trajectory]) -> MicroBatch:
        """A micro-batch on this device."""
        return pack(trajectories, self._execution.share_prompts, forced_ends=False).to(self.device)

    def forward(
        self, batch: MicroBatch, with_entropy: bool, entropy_requires_grad: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [R] and entropies [R] of the sampled tokens of a micro-batch on this device."""
        logprobs, entropy = self.module(
            batch.predicting,
            batch.targets,
            batch.constrained,
            batch.allowed,
            self._temperature,
            with_entropy,
            entropy_requires_grad,
            **batch.model_inputs(),
        )
        return logprobs, entropy

    @torch.no_grad()
    def logprobs(self, bins: Bins) -> list[list[np.ndarray]]:
        """Log-probabilities [L] of each trajectory of each bin."""
        results = []
        for trajectories in bins:
            logprobs, _ = self.forward(self.pack(trajectories), with_entropy=False)
            results.append(split_tokens(logprobs, trajectories))
        reshard(self.module)
        return results

    def accumulate_gradients(self, bins: Bins, loss: PolicyLoss) -> dict[str, float]:
        """Add the gradient of a mini-batch's loss, micro-batch by micro-batch; returns it, and sums of the metrics over tokens."""
        totals = {"loss": 0.0}
        for trajectories in each_micro_batch(self.module, bins, self._execution.sums_on_device):
            batch = self.pack(trajectories)
            logprobs, entropy = self.forward(batch, with_entropy=True, entropy_requires_grad=loss.entropy_coeff != 0)
            value, sums = loss(batch, logprobs, entropy)
            # FSDP averages gradients over processes; the shares in the loss are already global
            (value * self._execution.world_size).backward()
            sums |= logprob_mismatch(batch, logprobs.detach()) | {"loss": value.item()}
            for name, number in sums.items():
                totals[name] = (
                    max(totals.get(name, 0.0), number) if name.endswith("_max") else totals.get(name, 0.0) + number
                )
        return totals

    def update(self, bins: Bins, loss: PolicyLoss, optimisation: Optimisation) -> dict[str, float]:
        """One optimizer step on a mini-batch; none where its loss or gradient is not finite, and then the norm is not."""
        totals = self.accumulate_gradients(bins, loss)
        return totals | {"actor/grad_norm": optimisation.step(math.isfinite(totals.pop("loss")))}

    @torch.no_grad()
    def losses(self, bins: Bins, loss: PolicyLoss) -> list[list[float]]:
        """Each trajectory's own part of the loss, of each bin."""
        results = []
        for trajectories in bins:
            batch = self.pack(trajectories)
            logprobs, entropy = self.forward(batch, with_entropy=True)
            results.append(
                [
                    loss(part, logprobs[own], None if entropy is None else entropy[own])[0].item()
                    for own, part in split_responses(batch, trajectories)
                ]
            )
        reshard(self.module)
        return results


def logprob_mismatch(batch: MicroBatch, logprobs: Tensor) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's: sum and maximum of the absolute difference.

    rollout/kl is the sum over sampled tokens of engine - trainer, an unbiased estimate of KL(engine || trainer).
    """
    sampled = batch.columns["rollout_logprobs"]
    difference = (sampled - logprobs)[sampled.isfinite()]
    return {
        "rollout/logprob_diff": difference.abs().sum().item(),
        "rollout/logprob_diff_max": difference.abs().max().item() if len(difference) else 0.0,
        "rollout/kl": difference.sum().item(),
    }


def split_tokens(tokens: Tensor, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
    """A column [R] of a micro-batch cut into one float64 array a trajectory."""
    column = tokens.double().cpu().numpy()
    bounds = np.cumsum([len(trajectory.response_ids) for trajectory in trajectories])[:-1]
    return list(np.split(column, bounds)) if trajectories else []
