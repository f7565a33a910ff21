"""Rollout with vLLM, in this process: continuous batching, prefix caching, weights handed over in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from r1ranker.pretrained import check_model_directory, load_tokenizer
from r1ranker.rollout.constraint import ConstraintState
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams, Session, check_length
from r1ranker.rollout.loops import LONGEST, SHORTEST, TIMES
from r1ranker.rollout.vllm_start import max_model_len, remove_shared_memory, start_vllm


class VLLMEngine:
    """Rollout engine over a vLLM model in this process."""

    def __init__(self, directory: str, device: torch.device, settings: EngineSettings) -> None:
        check_model_directory(directory)
        self._on_cpu = device.type == "cpu"
        self.max_model_len: int | None = max_model_len(directory, settings)
        self.tokenizer = load_tokenizer(directory)
        self._token_text = cache(lambda token: str(self.tokenizer.decode([token])))
        self.llm = start_vllm(directory, device, settings)
        self._constrained = settings.constrained
        self.llm.apply_model(_expect_all_weights)
        # at level 2 the weights are dropped rather than kept in host memory: the next sync brings others anyway
        self._sleep_level = 2 if settings.synced_weights else 1
        self._has_weights = not settings.synced_weights
        self._asleep: set[str] = set()

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Complete every request `params.n` times."""
        for request in requests:
            check_length(len(request.token_ids), params.max_tokens, self.max_model_len)
        self._wake_to_generate()
        prompts = [prompt_of(request) for request in requests]
        outputs = self.llm.generate(prompts, [self.params_of(request, params) for request in requests], use_tqdm=False)
        return [self.completions(request, output) for request, output in zip(requests, outputs, strict=True)]

    def completions(self, request: Request, output: Any) -> list[Completion]:
        """The completions in vLLM's output, in the order of their samples."""
        cached = output.num_cached_tokens or 0
        return [self._completion(request, one, cached) for one in sorted(output.outputs, key=lambda one: one.index)]

    def session(self, fair: bool = False) -> Session:
        """A session over vLLM's own queue, which begins requests in the order in which they came."""
        self._wake_to_generate()
        return _Session(self)

    def params_of(self, request: Request, params: SamplingParams) -> Any:
        """vLLM's own parameters for a request."""
        import vllm
        from vllm.sampling_params import RepetitionDetectionParams

        from r1ranker.rollout.vllm_constraint import STATE

        if request.constraint and not self._constrained:
            raise RuntimeError("a request has a constraint, and the engine was started for requests without")
        return vllm.SamplingParams(
            n=params.n,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=params.max_tokens,
            seed=request.seed % 2**62,
            logprobs=len(self._state(request).allowed_token_ids()) if params.choices and request.constraint else 0,
            detokenize=False,
            repetition_detection=RepetitionDetectionParams(LONGEST, SHORTEST, TIMES) if params.end_loops else None,
            extra_args={STATE: lambda: self._state(request)} if request.constraint else None,
        )

    def _state(self, request: Request) -> ConstraintState:
        assert request.constraint is not None
        return ConstraintState(request.constraint, self._token_text)

    def _completion(self, request: Request, sample: Any, cached: int) -> Completion:
        token_ids = list(sample.token_ids)
        allowed: list[list[int]] = []
        if request.constraint:
            state = self._state(request)
            for place, token in enumerate(token_ids):
                allowed.append(state.allowed_token_ids())
                if place + 1 < len(token_ids):
                    state.accept_token(token)
        return Completion(
            token_ids=token_ids,
            logprobs=[entry[token].logprob for token, entry in zip(token_ids, sample.logprobs, strict=True)],
            finish_reason="stop" if sample.finish_reason == "stop" else "length",
            allowed=allowed,
            choices=[known[token].logprob for token in allowed[0]] if len(known := sample.logprobs[0]) > 1 else [],
            cached_tokens=cached,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take named parameters over into the model, one by one; what was cached of the old ones is dropped.

        Raises RuntimeError where one of the model's parameters is not among them.
        """
        self._wake("weights")  # the cache's memory is not needed yet
        self._has_weights = False
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self._on_cpu:
            self.llm.apply_model(_repack_tied_head)
        self.llm.reset_prefix_cache()
        self._has_weights = True

    def sleep(self) -> None:
        """Give the GPU's memory back: the cache is dropped, and so are weights that syncs bring; others go to host memory."""
        if "weights" not in self._asleep:
            self.llm.sleep(level=self._sleep_level)
            self._asleep = {"weights", "kv_cache"}
            self._has_weights = self._has_weights and self._sleep_level == 1

    def close(self) -> None:
        """Shut the engine down, with its shared memory."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        destroy_model_parallel()
        remove_shared_memory()

    def _wake_to_generate(self) -> None:
        if not self._has_weights:
            raise RuntimeError("vLLM has no weights: load_weights brings them, after the start and after every sleep")
        self._wake("weights", "kv_cache")

    def _wake(self, *parts: str) -> None:
        for part in parts:
            if part in self._asleep:
                self.llm.wake_up(tags=[part])
                self._asleep.discard(part)


class _Session:
    def __init__(self, engine: VLLMEngine) -> None:
        self._engine = engine
        self._open: dict[str, tuple[int, Request]] = {}

    def add(self, key: int, request: Request, params: SamplingParams) -> None:
        engine = self._engine
        check_length(len(request.token_ids), params.max_tokens, engine.max_model_len)
        (name,) = engine.llm.enqueue([prompt_of(request)], [engine.params_of(request, params)], use_tqdm=False)
        self._open[name.partition("-")[0]] = (key, request)

    def step(self, once: bool = False) -> list[tuple[int, list[Completion]]]:
        done: list[tuple[int, list[Completion]]] = []
        while self._open and not done:
            for output in self._engine.llm.llm_engine.step():
                if output.finished and output.request_id in self._open:
                    key, request = self._open.pop(output.request_id)
                    done.append((key, self._engine.completions(request, output)))
            if once:
                break
        return done

    def cancel(self, key: int) -> None:
        names = [name for name, (own, _) in self._open.items() if own == key]
        for name in names:
            del self._open[name]
        if not names:  # what vLLM keeps of others it drops by itself
            return
        self._engine.llm.llm_engine.abort_request(names)


def prompt_of(request: Request) -> Any:
    """vLLM's own prompt for a request."""
    return {"prompt_token_ids": list(request.token_ids)}


def _repack_tied_head(model: Any) -> None:
    """The CPU build repacks lm_head when it is loaded, and reload_weights leaves a tied one as it was: do it again."""
    head = getattr(model, "lm_head", None)
    if head is not None:  # whether it is tied the config need not say: vLLM ties one that a checkpoint holds twice
        head.quant_method.process_weights_after_loading(head)


def _expect_all_weights(model: Any) -> None:
    """Have a sync that leaves a parameter out fail. vLLM only warns, and goes on with old weights or with none."""
    wanted = {name for name, _ in model.named_parameters()}
    load = model.load_weights

    def load_all(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = load(weights)
        if missing := sorted(wanted - loaded):
            raise RuntimeError(f"the weights that came leave {len(missing)} of vLLM's as they were: {missing[0]}, ...")
        return loaded

    model.load_weights = load_all
