"""The optimizer's step: AdamW, its moments in eight bits, or Muon; warm-up and schedule, gradient clipping over all shards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from threading import Event

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from r1ranker.model.fsdp import local_shard
from r1ranker.trainer.config.models import OptimConfig
from r1ranker.trainer.learners.eight_bit import EightBitAdamW, moment_rows


def learning_rate_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Share of lr at `step` (from 0): linear warm-up that reaches 1 after the warm-up steps, then constant or cosine."""
    warmup = optim.lr_warmup_steps if optim.lr_warmup_steps >= 0 else int(optim.lr_warmup_steps_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.lr_scheduler_type == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


MOMENTS = ("exp_avg", "exp_avg_sq")
"""of AdamW, shaped as their parameter"""
UPDATES = "step"
"""of AdamW, one number a parameter"""
MOMENTUM = ("momentum_buffer",)
"""of Muon"""


def find_hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The matrices inside the transformer blocks that learn: neither embeddings nor heads (Jordan et al. 2024, "Muon")."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if "layers." in name and parameter.ndim == 2 and parameter.requires_grad
    ]


class Optimisation:
    """AdamW, or Muon beside it, over a module's parameters with their schedule."""

    def __init__(self, module: nn.Module, optim: OptimConfig, total_steps: int, grad_clip: float) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._grad_clip = grad_clip
        hidden = find_hidden_matrices(module) if optim.name == "muon" else []
        self._hidden = set(hidden)
        # updates are as large as AdamW's are (Liu et al. 2025, arXiv 2502.16982), so that one rate is for both
        self._muon = (
            torch.optim.Muon(hidden, optim.lr, optim.weight_decay, adjust_lr_fn="match_rms_adamw") if hidden else None
        )
        others = [parameter for parameter in self._parameters if parameter not in self._hidden]
        betas = optim.betas[0], optim.betas[1]
        self.optimizer: torch.optim.Optimizer = (
            EightBitAdamW(others, optim.lr, betas, optim.weight_decay)
            if optim.name == "adamw_8bit"
            # fused: one pass over weights and moments, without tensors in between; on the CPU, too
            else torch.optim.AdamW(others, optim.lr, betas, weight_decay=optim.weight_decay, fused=True)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total_steps, optim)
        )
        self.written = Event()
        """set unless a training state is being written from the very weights and moments, which may not change before"""
        self.written.set()
        self.waited = 0.0
        """seconds that steps have waited for that, since someone put it to 0"""

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What the optimizer keeps of a parameter, by name; empty before its first update."""
        optimizer = self._muon if self._muon is not None and parameter in self._hidden else self.optimizer
        state: dict[str, Tensor] = optimizer.state[parameter]
        return state

    def moments_of(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor, int]]:
        """(name, this process's rows, the first of them) of each tensor that is kept of a parameter."""
        state, (_, first) = self.state_of(parameter), local_shard(parameter)
        for kind in MOMENTUM if parameter in self._hidden else MOMENTS:
            if kind in state:
                for name, rows in moment_rows(kind, local_shard(state[kind])[0]):
                    yield name, rows, first

    def begin(self, parameter: nn.Parameter, updates: float) -> None:
        """Have room for the moments of a parameter that was updated so many times; Muon counts none."""
        if isinstance(self.optimizer, EightBitAdamW):
            self.optimizer.begin(parameter, updates)
            return
        state = self.state_of(parameter)
        kinds = MOMENTUM if parameter in self._hidden else MOMENTS
        if kinds is MOMENTS:  # where AdamW itself would put it
            state[UPDATES] = torch.tensor(updates, dtype=torch.float32, device=parameter.device)
        state |= {kind: torch.zeros_like(parameter) for kind in kinds}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def restore(self, steps: int) -> None:
        """Put the schedule where it stands after `steps` training steps."""
        self.schedule.last_epoch = steps
        rates = [
            base * factor(steps) for base, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def wait_until_written(self) -> None:
        """Return once no training state is being written from weights and moments."""
        if not self.written.is_set():
            began = time.perf_counter()
            self.written.wait()
            self.waited += time.perf_counter() - began

    def step(self, is_finite: bool = True) -> float:
        """Clip, update, clear the gradients; returns their norm before clipping.

        Where the norm, or this or another process's loss (`is_finite`) is not finite, neither weights nor moments are
        touched, and what is returned is not finite.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = total_norm(gradients, is_finite)
        if math.isfinite(norm):
            if norm > self._grad_clip:
                for gradient in gradients:
                    gradient.mul_(self._grad_clip / norm)
            self.wait_until_written()
            self.optimizer.step()
            if self._muon is not None:
                for group in self._muon.param_groups:
                    group["lr"] = self.lr
                self._muon.step()
        self.zero_grad()
        return norm


def total_norm(gradients: Sequence[Tensor], is_finite: bool = True) -> float:
    """Euclidean norm over all gradients and all shards of them, to 1e-6 of it.

    NaN where it is not finite, or `is_finite` is false in any process: all of them have to know.
    """
    if not gradients:
        return 0.0 if is_finite else math.nan
    own = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    squares = torch.stack([_sum_of_squares(shard) for shard in own]).sum()
    # float32 holds no squares of numbers above 1e19, and not all digits of those below 1e-19: all of them together
    # are less than 1e-6 of what is left, or they are looked at again
    if not _LEAST * sum(shard.numel() for shard in own) < squares < math.inf:
        squares = torch.stack([_exact_sum_of_squares(shard) for shard in own]).sum()
    if not is_finite:
        squares = squares * math.nan
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        distributed.all_reduce(squares)
    return math.sqrt(float(squares)) if torch.isfinite(squares) else math.nan


_CHUNK = 1024
"""numbers whose squares are summed in float32"""
_LEAST = 1e-32


def _sum_of_squares(shard: Tensor) -> Tensor:
    """Chunks in float32, their sums in float64: as fast as memory, and no float64 copy of the shard."""
    flat = shard.detach().reshape(-1)
    whole = len(flat) // _CHUNK * _CHUNK
    parts = flat[:whole].view(-1, _CHUNK), flat[whole:].view(1, -1)
    return torch.stack([torch.linalg.vector_norm(part, dim=1).double().square().sum() for part in parts]).sum()


def _exact_sum_of_squares(shard: Tensor) -> Tensor:
    """In float64, of few numbers at a time; NaN and infinity stay."""
    if not shard.any():  # an update that teaches nothing: billions of zeros take float64 a quarter of a minute
        return torch.zeros((), dtype=torch.float64, device=shard.device)
    chunks = shard.detach().reshape(-1).split(2**16)
    return torch.stack([chunk.double().square().sum() for chunk in chunks]).sum()
