"""What a rollout engine is: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from r1ranker.rollout.constraint import PoolConstraint

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


@dataclass(frozen=True)
class Request:
    """One prompt to be completed `SamplingParams.n` times."""

    token_ids: Sequence[int]
    seed: int = 0
    """of this prompt; sample i of it draws from the stream (seed, i), whatever else is in the batch"""
    constraint: PoolConstraint | None = None
    """None: anything may be sampled"""


@dataclass(frozen=True)
class Completion:
    """One sampled response. EOS, where it was sampled, is its last token."""

    token_ids: list[int]
    logprobs: list[float]
    """of each token, in the distribution it was sampled from: after temperature and constraint, before top_p, top_k"""
    finish_reason: FinishReason
    allowed: list[list[int]] = field(default_factory=list)
    """under a constraint: for each token the ids that were allowed, empty where all were; else an empty list"""


class Engine(Protocol):
    """A rollout engine. Completions come in the order of the requests, n for each."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]: ...
