"""Rollout with transformers, in this process: continuous batching, each prompt computed and kept once for its samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1ranker.device import compute_dtype, pick_device, release_cached_memory
from r1ranker.model.loading import (
    init_empty_causal_lm,
    load_causal_lm,
    move_to_device,
    stop_token_ids,
)
from r1ranker.model.weights import locate_weights, match_parameters, materialise
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.context import context_length, smaller_of, steady_positions
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams, Session, check_length
from r1ranker.rollout.hf_batch import ContinuousBatch
from r1ranker.rollout.hf_cache import GROUPED, register_grouped
from r1ranker.rollout.hf_kept import KeptSequences
from r1ranker.rollout.hf_layers import use_fast_layers
from r1ranker.rollout.hf_packed import PackedWeights


class HFEngine:
    """Rollout engine over a transformers model in this process, whose attention it takes over."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
    ) -> None:
        register_grouped()
        model.set_attn_implementation(GROUPED)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_model_len = smaller_of(max_model_len, context_length(model.config), steady_positions(model.config))
        self._max_num_seqs = max_num_seqs
        self._has_weights = True
        self._synced = False
        """all weights come by load_weights, after every sleep too"""
        self._dropped: list[tuple[nn.Parameter, torch.Size]] = []
        """weights that were given back, with their shapes"""
        self._packed = PackedWeights()
        self._stop = set(stop_token_ids(model, tokenizer))
        self._token_text = cache(lambda token: str(tokenizer.decode([token])))

    @classmethod
    def from_pretrained(
        cls, directory: str, device: torch.device | None = None, settings: EngineSettings | None = None
    ) -> HFEngine:
        """Model and tokenizer of a local directory or hub id; raises UserError where either is missing."""
        device, settings = device or pick_device(), settings or EngineSettings()
        tokenizer = load_tokenizer(directory)
        dtype = compute_dtype(device, settings.dtype)
        model = init_empty_causal_lm(directory, dtype, "eager") if settings.synced_weights else None
        # where the trainer has its model loaded by transformers, so has the engine: both then have the same parameters
        given = model is not None and match_parameters(model, locate_weights(directory), directory) is not None
        if model is None or not given:
            model = load_causal_lm(directory, dtype, "eager")
        else:
            materialise(model, device)
        engine = cls(move_to_device(model, device), tokenizer, settings.max_num_seqs, settings.max_model_len)
        engine._packed, engine._has_weights, engine._synced = (
            PackedWeights(engine.model),
            not given,
            settings.synced_weights,
        )
        use_fast_layers(engine.model)
        return engine

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy named parameters into the model; they may come one by one.

        Raises RuntimeError where one is missing that the engine does not have: all come before the first generation and after a sleep.
        """
        for parameter, shape in self._dropped:
            parameter.data = parameter.data.new_empty(shape)
        self._dropped = []
        own = dict(self.model.named_parameters())
        missing = set() if self._has_weights else set(own)
        with torch.no_grad():
            try:
                for name, weight in weights:
                    if not self._packed.put(name, weight):
                        own[name].copy_(weight)
                    missing.discard(name)
            finally:
                self._packed.pack()
        if missing:
            raise RuntimeError(f"no weights came for {min(missing)}, and the engine has none")
        self._has_weights = True

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Complete every request `params.n` times; raises UserError for one longer than the model or the engine holds."""
        session = self.session()
        for key, request in enumerate(requests):
            session.add(key, request, params)
        completions: dict[int, list[Completion]] = {}
        while done := session.step():
            completions.update(done)
        return [completions[key] for key in range(len(requests))]

    def session(self, fair: bool = False) -> Session:
        """A session. Requests with the same sampling parameters share a batch; others wait until it is done."""
        self.check_weights()
        return _Session(self, fair)

    def batch(self, params: SamplingParams, kept: KeptSequences | None = None, fair: bool = False) -> ContinuousBatch:
        """An empty batch of responses sampled with `params`, which goes on with what is `kept`."""
        return ContinuousBatch(self.model, self._stop, self._token_text, self._max_num_seqs, params, kept, fair)

    def check_weights(self) -> None:
        """Raise RuntimeError where there are no weights to generate with."""
        if not self._has_weights:
            raise RuntimeError(
                "no weights were loaded: load_weights comes before the first generation and after a sleep"
            )

    def sleep(self) -> None:
        """Give cached blocks back, as generation and training allocate in different sizes, and weights that syncs bring."""
        if self._synced and not self._dropped:
            self._has_weights = False
            self._packed.drop()
            # vectors are small, and those of packed layers are parts of another
            held = [one for one in self.model.parameters() if one.ndim > 1 and not one.is_meta]
            self._dropped = [(parameter, parameter.shape) for parameter in held]
            for parameter in held:
                parameter.data = parameter.data.new_empty(0)
        release_cached_memory(self.model.device)

    def close(self) -> None:
        """Nothing outlives the process."""


class _Session:
    def __init__(self, engine: HFEngine, fair: bool) -> None:
        self._engine, self._fair, self._kept = engine, fair, KeptSequences()
        self._batches: list[ContinuousBatch] = []
        """the first one is run until nothing is left of it: two at once would hold twice the memory"""

    def add(self, key: int, request: Request, params: SamplingParams) -> None:
        check_length(len(request.token_ids), params.max_tokens, self._engine.max_model_len)
        # a fair one lets nobody into the batch that runs while another kind waits for its end
        joins = self._batches[1:] if self._fair and len(self._batches) > 1 else self._batches
        batch = next((one for one in joins if one.params == params), None)
        if batch is None:
            batch = self._engine.batch(params, self._kept, self._fair)
            self._batches.append(batch)
        batch.add(key, request)

    def step(self, once: bool = False) -> list[tuple[int, list[Completion]]]:
        self._engine.check_weights()
        while self._batches:
            done = self._batches[0].step()
            self._drop_empty()
            if done or once:
                return done
        return []

    def cancel(self, key: int) -> None:
        self._kept.take(key)
        for batch in self._batches:
            batch.cancel(key)
        self._drop_empty()

    def _drop_empty(self) -> None:
        self._batches = [batch for batch in self._batches if not batch.is_empty]
