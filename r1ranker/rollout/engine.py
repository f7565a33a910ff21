"""What a rollout engine is: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from r1ranker.errors import UserError
from r1ranker.rollout.constraint import PoolConstraint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; temperature 0 is greedy."""

    n: int = 1
    """completions a prompt"""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    """-1: off"""
    max_tokens: int = 1024
    choices: bool = False
    """under a constraint: log-probabilities of all that was allowed as the first token, too"""
    end_loops: bool = False
    """end a response that repeats itself (loops.py); for measuring and ranking, since training samples from the whole distribution"""


@dataclass(frozen=True)
class Request:
    """One prompt to be completed `SamplingParams.n` times."""

    token_ids: Sequence[int]
    seed: int = 0
    """of this prompt; sample i of it draws from the stream (seed, i), whatever else is in the batch"""
    constraint: PoolConstraint | None = None
    """None: anything may be sampled"""
    is_continued: bool = False
    """the next request of this key in the session begins as this one with its response, or at least as this one"""


@dataclass(frozen=True)
class Completion:
    """One sampled response. EOS, where it was sampled, is its last token."""

    token_ids: list[int]
    logprobs: list[float]
    """of each token, after temperature and constraint; with vLLM after top_p and top_k as well, which are off in training"""
    finish_reason: FinishReason
    """length: neither EOS nor the end of a constraint was reached"""
    allowed: list[list[int]] = field(default_factory=list)
    """under a constraint: for each token the ids that were allowed, empty where all were; else an empty list"""
    choices: list[float] = field(default_factory=list)
    """where they were wanted: log-probability of each of allowed[0], which sum to 1"""
    cached_tokens: int = 0
    """of the prompt: those that the engine's prefix cache held already"""


USUAL_LENGTH = 4096
"""tokens that vLLM holds where nobody asked for a number"""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with; an engine looks at what concerns it."""

    max_model_len: int | None = None
    """tokens of prompt and response together, no more than the model has positions for; None: as many as those, but with vLLM
    no more than USUAL_LENGTH, since it wants room for them at once"""
    max_num_seqs: int = 256
    """responses generated at once"""
    tensor_parallel_size: int = 1
    """processes that an engine spans; they call every method of it together, with the same arguments"""
    gpu_memory_utilization: float = 0.4
    """share of a GPU that the engine may take while it is awake"""
    enforce_eager: bool = False
    """no CUDA graphs"""
    dtype: str = "auto"
    """float32 | bfloat16, of the weights and what is computed; auto: bfloat16 on GPUs, float32 on the CPU"""
    constrained: bool = True
    """whether requests may carry a constraint"""
    synced_weights: bool = False
    """weights come by load_weights, before the first generation and after every sleep: the engine reads and keeps none"""


class Session(Protocol):
    """Requests that come one by one, whenever the caller has one, and are completed in no fixed order."""

    def add(self, key: int, request: Request, params: SamplingParams) -> None:
        """Have a request completed; `key` is not open already. Raises UserError for one that is too long."""
        ...

    def step(self, once: bool = False) -> list[tuple[int, list[Completion]]]:
        """Go on until a request is complete, or `once`; (key, its completions) of those that are, none where none is open."""
        ...

    def cancel(self, key: int) -> None:
        """Drop an open request, of which nothing comes any more, or what was kept of one that is to be continued."""
        ...


class Engine(Protocol):
    """A rollout engine. Completions come in the order of the requests, n for each."""

    tokenizer: PreTrainedTokenizerBase
    max_model_len: int | None
    """tokens of prompt and response that it holds; None: any number"""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Complete every request `params.n` times; raises UserError for one that is too long."""
        ...

    def session(self, fair: bool = False) -> Session:
        """A session; one at a time, and nothing else is asked of the engine while a request in it is open.

        `fair`: requests are begun in the order in which they came, whatever their lengths and parameters, so that none waits for
        all that come after it; else in the order in which a given set of them ends soonest.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over named parameters, which come one by one; nothing computed with the old ones is used again."""
        ...

    def sleep(self) -> None:
        """Give memory back until the engine is needed again; it wakes by itself."""
        ...

    def close(self) -> None:
        """End the engine; nothing may be asked of it afterwards."""
        ...


def check_length(prompt: int, response: int, most: int | None) -> None:
    """Raise UserError for tokens of a prompt and a response that an engine of `most` (None: any number) cannot hold."""
    if most is not None and prompt + response > most:
        raise UserError(
            f"a prompt of {prompt:,} tokens and a response of up to {response:,}: {prompt + response:,} together, and the "
            f"engine holds {most:,}; shorter ones, or a larger max_model_len where the model holds more, are wanted"
        )
