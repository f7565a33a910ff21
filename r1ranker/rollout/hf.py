"""Rollout with transformers: a group's prompt is prefilled once, finished responses leave the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from r1ranker.device import compute_dtype, pick_device, release_cached_memory
from r1ranker.model.loading import load_causal_lm, load_tokenizer, moved, stop_token_ids
from r1ranker.rollout.constraint import ConstraintState
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams, Session
from r1ranker.rollout.sampling import choose, uniform_stream


@dataclass
class _Response:
    """One response under way."""

    place: tuple[int, int]
    """request and sample"""
    uniforms: Any
    state: ConstraintState | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed: list[list[int]] = field(default_factory=list)


class HFEngine:
    """Rollout engine over a transformers model in this process."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_num_seqs: int = 256) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._max_num_seqs = max_num_seqs
        self._stop = set(stop_token_ids(model, tokenizer))
        self._token_text = cache(lambda token: str(tokenizer.decode([token])))

    @classmethod
    def from_pretrained(
        cls, directory: str, device: torch.device | None = None, settings: EngineSettings | None = None
    ) -> HFEngine:
        """Model and tokenizer of a local directory or hub id; raises UserError where either is missing."""
        device = device or pick_device()
        tokenizer = load_tokenizer(directory)
        model = moved(load_causal_lm(directory, compute_dtype(device), "sdpa"), device)
        return cls(model, tokenizer, (settings or EngineSettings()).max_num_seqs)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy named parameters into the model; they may come one by one."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)

    def session(self) -> Session:
        """A session; what is open is completed together."""
        return _Session(self)

    def sleep(self) -> None:
        """Give cached blocks back: generation and training allocate in different sizes."""
        release_cached_memory(self.model.device)

    def close(self) -> None:
        """Nothing outlives the process."""

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Complete every request `params.n` times; prompts of like length share a batch of at most max_num_seqs."""
        completions: dict[tuple[int, int], Completion] = {}
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].token_ids))
        step = max(1, self._max_num_seqs // params.n)
        for start in range(0, len(order), step):
            chunk = order[start : start + step]
            self._generate_chunk(chunk, [requests[index] for index in chunk], params, completions)
        return [[completions[index, sample] for sample in range(params.n)] for index in range(len(requests))]

    def _generate_chunk(
        self,
        places: Sequence[int],
        requests: Sequence[Request],
        params: SamplingParams,
        completions: dict[tuple[int, int], Completion],
    ) -> None:
        responses = [
            _Response(
                place=(place, sample),
                uniforms=uniform_stream(request.seed, sample, params.max_tokens),
                state=ConstraintState(request.constraint, self._token_text) if request.constraint else None,
            )
            for place, request in zip(places, requests, strict=True)
            for sample in range(params.n)
        ]
        logits, past, mask = self._prefill([request.token_ids for request in requests], params.n)
        device = mask.device
        for step in range(params.max_tokens):
            allowed = [response.state.allowed() if response.state else [] for response in responses]
            uniforms = torch.tensor([response.uniforms[step] for response in responses], dtype=torch.float64)
            tokens, logprobs = choose(logits, uniforms.to(device), allowed, params)
            going: list[int] = []
            for row, (response, token, logprob) in enumerate(
                zip(responses, tokens.tolist(), logprobs.tolist(), strict=True)
            ):
                response.token_ids.append(token)
                response.logprobs.append(logprob)
                if response.state:
                    response.allowed.append(allowed[row])
                if token in self._stop:
                    completions[response.place] = _completion(response, stopped=True)
                else:
                    going.append(row)
                    if response.state:
                        response.state.advance(token)
            if not going or step == params.max_tokens - 1:
                break
            if len(going) < len(responses):
                rows = torch.tensor(going, device=device)
                past.batch_select_indices(rows)
                mask, tokens = mask[rows], tokens[rows]
                responses = [responses[row] for row in going]
            position = mask.sum(dim=1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=past,
                use_cache=True,
            ).logits[:, -1]
        for response in responses:
            completions.setdefault(response.place, _completion(response, stopped=False))

    def _prefill(self, prompts: Sequence[Sequence[int]], n: int) -> tuple[Tensor, DynamicCache, Tensor]:
        """Logits after each prompt [B n, V], the cache and the mask [B n, P]; padded on the left, computed once a prompt."""
        width = max(len(prompt) for prompt in prompts)
        device = self.model.device
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        past = DynamicCache(config=self.model.config)
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if n > 1:
            past.batch_repeat_interleave(n)
        return logits.repeat_interleave(n, dim=0), past, mask.repeat_interleave(n, dim=0)


class _Session:
    def __init__(self, engine: HFEngine) -> None:
        self._engine = engine
        self._open: dict[SamplingParams, dict[int, Request]] = {}

    def add(self, key: int, request: Request, params: SamplingParams) -> None:
        self._open.setdefault(params, {})[key] = request

    def step(self) -> list[tuple[int, list[Completion]]]:
        opened, self._open = self._open, {}
        return [
            done
            for params, requests in opened.items()
            for done in zip(requests, self._engine.generate(list(requests.values()), params), strict=True)
        ]


def _completion(response: _Response, stopped: bool) -> Completion:
    return Completion(
        token_ids=response.token_ids,
        logprobs=response.logprobs,
        finish_reason="stop" if stopped else "length",
        allowed=response.allowed,
    )
