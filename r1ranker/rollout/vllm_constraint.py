"""Constrained answers in vLLM: logits processors that follow each request's ConstraintState, one for each model runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm import EngineArgs, SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from r1ranker.rollout.constraint import ConstraintState

STATE = "r1ranker_constraint"
"""key in SamplingParams.extra_args under which a request carries a function that makes its ConstraintState"""


def processor_for(arguments: dict[str, Any]) -> type:
    """The class that constrains answers in the model runner which vLLM chooses for an engine with these arguments.

    V2 is its runner where Triton is, so on GPUs; V1 the one of the CPU. Each refuses the other's processors, and which
    it will be is not ours to guess: vLLM is asked for the configuration that it makes of the arguments (milliseconds).
    """
    config = EngineArgs(**arguments).create_engine_config()
    return SlotConstraints if config.use_v2_model_runner else RowConstraints


def _state_of(params: SamplingParams) -> ConstraintState | None:
    make: Callable[[], ConstraintState] | None = (params.extra_args or {}).get(STATE)
    return make() if make else None


class RowConstraints(AdapterLogitsProcessor):
    """For runner V1: leaves of each constrained row only the logits of tokens that may come next."""

    def is_argmax_invariant(self) -> bool:
        """Greedy choices change as well."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The masking of one response; None where it is free."""
        state = _state_of(params)
        return _Masking(state) if state else None


class _Masking:
    def __init__(self, state: ConstraintState) -> None:
        self._state = state
        self._taken = 0

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        for token in output_ids[self._taken :]:
            self._state.accept_token(token)
        self._taken = len(output_ids)
        allowed: Any = self._state.allowed_token_ids()
        if not allowed:
            return logits
        masked = torch.full_like(logits, -torch.inf)
        masked[allowed] = logits[allowed]
        return masked


@dataclass
class _Response:
    """A constrained response in a slot of the runner."""

    state: ConstraintState
    seen: int
    """tokens of its sequence that the state stands behind; at first those of the prompt"""


class SlotConstraints(LogitsProcessor):
    """For runner V2: the same for the whole batch at once. A request has a slot there, and its tokens are on the device."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._requests = req_states
        self._responses: dict[int, _Response] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take note of the request in a slot; whether it is constrained.

        One that was preempted is added once more, with what it had generated behind its prompt.
        """
        state = _state_of(sampling_params)
        if state is None:
            self._responses.pop(req_idx, None)  # a slot changes hands without a word
        else:
            self._responses[req_idx] = _Response(state, int(self._requests.prompt_len.np[req_idx]))
        return state is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Mask `logits` [requests, vocabulary] in place."""
        slots = ctx.idx_mapping_np.tolist()
        # several rows a request come with drafts (speculative decoding), which the engine has none of
        assert len(slots) == len(logits)
        # what a token is sampled behind: exact, since there are no drafts
        lengths = ctx.seq_lens_upper_bound_np[: len(slots)].tolist()
        self._advance({slot: length for slot, length in zip(slots, lengths, strict=True) if slot in self._responses})
        rows: list[int] = []
        ids: list[int] = []
        for row, slot in enumerate(slots):
            allowed = self._responses[slot].state.allowed_token_ids() if slot in self._responses else []
            rows += [row] * len(allowed)
            ids += allowed
        if rows:
            row_of, id_of = torch.tensor([rows, ids], device=logits.device)
            kept = logits[row_of, id_of]
            logits.index_fill_(0, row_of, -torch.inf)
            logits[row_of, id_of] = kept
        return logits

    def _advance(self, lengths: dict[int, int]) -> None:
        """Take the tokens that were sampled since the last time, of all slots in one copy from the device."""
        slots: list[int] = []
        places: list[int] = []
        for slot, length in lengths.items():
            response = self._responses[slot]
            slots += [slot] * (length - response.seen)  # none while the prompt is computed in parts
            places += range(response.seen, length)
            response.seen = max(response.seen, length)
        if not slots:
            return
        all_tokens = self._requests.all_token_ids.gpu
        slot_of, place_of = torch.tensor([slots, places], device=all_tokens.device)
        for slot, token in zip(slots, all_tokens[slot_of, place_of].tolist(), strict=True):
            self._responses[slot].state.accept_token(token)
