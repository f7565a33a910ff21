"""The optimizer's step: AdamW, warm-up and schedule, gradient clipping over all shards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from r1ranker.trainer.config import OptimConfig


def learning_rate_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Share of lr at `step` (from 0): linear warm-up that reaches 1 after the warm-up steps, then constant or cosine."""
    warmup = optim.lr_warmup_steps if optim.lr_warmup_steps >= 0 else int(optim.lr_warmup_steps_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.lr_scheduler_type == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimisation:
    """AdamW over a module's parameters with its schedule."""

    def __init__(self, module: nn.Module, optim: OptimConfig, total_steps: int, grad_clip: float) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._grad_clip = grad_clip
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), weight_decay=optim.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total_steps, optim)
        )

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> float:
        """Clip, update, clear the gradients; returns their norm before clipping. A norm that is not finite: no update."""
        norm: Tensor = nn.utils.clip_grad_norm_(self._parameters, self._grad_clip)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if math.isfinite(value):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value
