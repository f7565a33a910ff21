"""Constrained answers in vLLM: a logits processor that follows each request's ConstraintState."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from r1ranker.rollout.constraint import ConstraintState

STATE = "r1ranker_constraint"
"""key in SamplingParams.extra_args under which a request carries a function that makes its ConstraintState"""


class ConstraintProcessor(AdapterLogitsProcessor):
    """Leaves of each constrained row only the logits of tokens that may come next."""

    def is_argmax_invariant(self) -> bool:
        """Greedy choices change as well."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The masking of one response; None where it is free."""
        make: Callable[[], ConstraintState] | None = (params.extra_args or {}).get(STATE)
        return _Masking(make()) if make else None


class _Masking:
    def __init__(self, state: ConstraintState) -> None:
        self._state = state
        self._taken = 0

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        for token in output_ids[self._taken :]:
            self._state.advance(token)
        self._taken = len(output_ids)
        allowed: Any = self._state.allowed()
        if not allowed:
            return logits
        masked = torch.full_like(logits, -torch.inf)
        masked[allowed] = logits[allowed]
        return masked
