"""AdamW with moments of eight bits (Dettmers et al. 2022, arXiv 2110.02861), by the library torchao.

Each block of a row has a scale, its largest moment, and codes of the others as shares of it. Blocks lie within rows, so that any
number of processes finds the same codes and scales again: torchao's own run on from row to row.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from r1ranker.errors import UserError
from r1ranker.model.fsdp import local_shard

LARGEST_BLOCK = 256
"""numbers that have one scale, as in the paper"""
LEAST_BLOCK = 64
"""where rows divide into smaller ones only, scales would take too much: moments stay float32"""

_COMPILERS = ("g++", "clang++", "c++")


def block_length(columns: int) -> int:
    """Numbers of a row with one scale: the most, up to LARGEST_BLOCK, that divide it. 0 where moments stay float32."""
    largest = max(size for size in range(1, min(LARGEST_BLOCK, columns) + 1) if columns % size == 0)
    return largest if largest >= LEAST_BLOCK else 0


def eight_bit_numbers(columns: int, moments: int) -> int:
    """Numbers of float32 that take as much memory as `moments` of matrices so wide do: codes and scales."""
    size = block_length(columns)
    return moments // 4 + moments // size if size else moments


class EightBitAdamW(torch.optim.Optimizer):
    """AdamW over parameters, each process on its own rows. Vectors, and matrices of odd widths, have moments in float32.

    torchao's own optimizer compiles a step for sharded tensors, and takes the rows of the first process for those of all.
    Raises UserError where torchao is not installed, or no C++ compiler: torch compiles the step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        if not any(map(shutil.which, (os.environ.get("CXX", _COMPILERS[0]), *_COMPILERS))):
            raise UserError(
                f"optim.name=adamw_8bit: found no C++ compiler; one of {', '.join(_COMPILERS)} is wanted on the PATH"
            )
        try:
            from torchao.optim.adam import single_param_adam
            from torchao.optim.subclass_8bit import OptimState8bit
        except ImportError as error:
            raise UserError(
                "optim.name=adamw_8bit: torchao is not installed; pip install 'r1ranker[torchao]' brings it"
            ) from error
        self._state_type = OptimState8bit
        self._update = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    def begin(self, parameter: nn.Parameter, updates: float = 0.0) -> None:
        """Have moments of zeros for this process's rows of a parameter that was updated so many times."""
        rows, _ = local_shard(parameter.detach())
        size = block_length(rows.shape[-1]) if rows.ndim > 1 and len(rows) else 0
        self.state[parameter]["step"] = torch.tensor(updates)
        for kind, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            self.state[parameter][kind] = (
                self._state_type.zeros(rows.shape, signed, size, rows.device, rows.dtype)
                if size
                else torch.zeros_like(rows)
            )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient."""
        with torch._dynamo.utils.disable_cache_limit():  # one step a shape is compiled, and there are only so many
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, group)

    def _step(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        if not self.state[parameter]:
            self.begin(parameter)
        state = self.state[parameter]
        state["step"] += 1
        rows, _ = local_shard(parameter.detach())
        assert parameter.grad is not None
        gradient, _ = local_shard(parameter.grad)
        if not len(rows):
            return
        rate, betas = torch.tensor(group["lr"]), group["betas"]  # as a number it would be compiled in
        self._update(
            rows,
            gradient,
            state["step"],
            state["exp_avg"],
            state["exp_avg_sq"],
            None,
            rate,
            *betas,
            group["weight_decay"],
            group["eps"],
            IS_ADAMW=True,
            BF16_STOCHASTIC_ROUND=False,
        )


def moment_rows(kind: str, moment: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, rows) of what a process's rows of a moment consist of: themselves, or their codes and scales."""
    codes, scale = getattr(moment, "codes", None), getattr(moment, "scale", None)
    if codes is None or scale is None:
        yield kind, moment
    else:
        yield f"{kind}_codes", codes
        yield f"{kind}_scale", scale.view(len(codes), -1)
