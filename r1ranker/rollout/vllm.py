"""Rollout with vLLM, in this process: continuous batching, prefix caching, weights handed over in place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from r1ranker.device import compute_dtype
from r1ranker.errors import UserError
from r1ranker.model.loading import check_model_directory, load_tokenizer
from r1ranker.rollout.constraint import ConstraintState
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams, Session

if TYPE_CHECKING:
    import vllm


CPU_BLOCK = 32
"""tokens of a block of the prefix cache"""


class VLLMEngine:
    """Rollout engine over a vLLM model in this process."""

    def __init__(self, directory: str, device: torch.device, settings: EngineSettings) -> None:
        check_model_directory(directory)
        self._on_cpu = device.type == "cpu"
        self._max_model_len = min(settings.max_model_len, _positions(directory) or settings.max_model_len)
        self.tokenizer = load_tokenizer(directory)
        _environment()
        import vllm

        from r1ranker.rollout.vllm_constraint import STATE, ConstraintProcessor

        if settings.tensor_parallel_size > 1:
            _name_shared_memory()
        self._state_key = STATE
        self._vllm = vllm
        self._token_text = cache(lambda token: str(self.tokenizer.decode([token])))
        self.llm: vllm.LLM = vllm.LLM(
            directory,
            trust_remote_code=False,
            dtype=str(compute_dtype(device)).removeprefix("torch."),
            max_model_len=self._max_model_len,
            max_num_seqs=settings.max_num_seqs,
            tensor_parallel_size=settings.tensor_parallel_size,
            distributed_executor_backend="external_launcher" if settings.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=self._on_cpu or settings.enforce_eager,
            enable_prefix_caching=True,
            # the CPU build's own are of 128 tokens, and only whole ones are found again
            **({"block_size": CPU_BLOCK} if self._on_cpu else {}),
            # the CPU build cannot take back a seeded draw for a prompt that is only partly computed: prompts stay whole
            enable_chunked_prefill=not self._on_cpu,
            max_num_batched_tokens=max(self._max_model_len, 8192),
            # log-probabilities of the distribution that is sampled from: after temperature and constraint
            logprobs_mode="processed_logprobs",
            logits_processors=[ConstraintProcessor],
            # the constraint of a token needs to know the one before it
            async_scheduling=False,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            enable_sleep_mode=not self._on_cpu,
        )
        self._asleep: set[str] = set()

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Complete every request `params.n` times."""
        for request in requests:
            self.check_length(request, params)
        self._wake("weights", "kv_cache")
        prompts = [self._vllm.TokensPrompt(prompt_token_ids=list(request.token_ids)) for request in requests]
        outputs = self.llm.generate(prompts, [self.params_of(request, params) for request in requests], use_tqdm=False)
        return [self.completions(request, output) for request, output in zip(requests, outputs, strict=True)]

    def completions(self, request: Request, output: Any) -> list[Completion]:
        """The completions in vLLM's output, in the order of their samples."""
        cached = output.num_cached_tokens or 0
        return [self._completion(request, one, cached) for one in sorted(output.outputs, key=lambda one: one.index)]

    def session(self) -> Session:
        """A session over vLLM's own queue."""
        self._wake("weights", "kv_cache")
        return _Session(self)

    def check_length(self, request: Request, params: SamplingParams) -> None:
        """Raise UserError for a request that the engine cannot hold."""
        if len(request.token_ids) + params.max_tokens > self._max_model_len:
            raise UserError(
                f"a prompt of {len(request.token_ids)} tokens and a response of up to {params.max_tokens}: this vLLM "
                f"engine holds {self._max_model_len} tokens together"
            )

    def params_of(self, request: Request, params: SamplingParams) -> vllm.SamplingParams:
        return self._vllm.SamplingParams(
            n=params.n,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=params.max_tokens,
            seed=request.seed % 2**62,
            logprobs=0,
            detokenize=False,
            extra_args={self._state_key: lambda: self._state(request)} if request.constraint else None,
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
                allowed.append(state.allowed())
                if place + 1 < len(token_ids):
                    state.advance(token)
        return Completion(
            token_ids=token_ids,
            logprobs=[entry[token].logprob for token, entry in zip(token_ids, sample.logprobs, strict=True)],
            finish_reason="stop" if sample.finish_reason == "stop" else "length",
            allowed=allowed,
            cached_tokens=cached,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take named parameters over into the model, one by one; what was cached of the old ones is dropped."""
        self._wake("weights")  # the cache's memory is not needed yet
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self._on_cpu:
            self.llm.apply_model(_repack_tied_head)
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Move the weights to host memory and drop the cache; on the CPU there is nothing to be won."""
        if not self._on_cpu and not self._asleep:
            self.llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def close(self) -> None:
        """Shut the engine down, with its shared memory."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        destroy_model_parallel()
        for left in Path("/dev/shm").glob(f"{os.environ.get('MASTER_PORT')}-*-cpushm_*"):
            left.unlink(missing_ok=True)

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
        engine.check_length(request, params)
        prompt = {"prompt_token_ids": list(request.token_ids)}
        (name,) = engine.llm.enqueue([prompt], [engine.params_of(request, params)], use_tqdm=False)
        self._open[name.partition("-")[0]] = (key, request)

    def step(self) -> list[tuple[int, list[Completion]]]:
        done: list[tuple[int, list[Completion]]] = []
        while self._open and not done:
            for output in self._engine.llm.llm_engine.step():
                if output.finished:
                    key, request = self._open.pop(output.request_id)
                    done.append((key, self._engine.completions(request, output)))
        return done


def _name_shared_memory() -> None:
    """Give the CPU build's shared memory a name of this run: by itself every run that we launch has the same."""
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    def arguments(self: ExecutorWithExternalLauncher) -> tuple[str, int, int]:
        # the process group is there already, so the address only serves as a name
        return f"tcp://joined:{os.environ['MASTER_PORT']}", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    ExecutorWithExternalLauncher._distributed_args = arguments


def _repack_tied_head(model: Any) -> None:
    """The CPU build repacks lm_head when it is loaded, and reload_weights leaves a tied one as it was: do it again."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(model.config, "tie_word_embeddings", False):
        head.quant_method.process_weights_after_loading(head)


def _positions(directory: str) -> int | None:
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(directory, trust_remote_code=False), "max_position_embeddings", None)


def _environment() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # no binding of threads to cores: the trainer's processes share them
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
