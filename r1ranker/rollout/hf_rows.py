"""What is under way in a continuous batch: requests, prompts and responses."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from r1ranker.rollout.constraint import ConstraintState
from r1ranker.rollout.engine import Completion, Request


@dataclass
class OpenRequest:
    """A request, and its completions as they come."""

    key: int
    request: Request
    completions: list[Completion | None]


@dataclass
class Group:
    """A prompt and how many of its responses are under way."""

    slot: int
    length: int
    live: int
    cached: int = 0
    """tokens of it that had been computed before"""


@dataclass
class Row:
    """One response under way."""

    open: OpenRequest
    sample: int
    group: Group
    born: int
    """the step that sampled its first token"""
    state: ConstraintState | None
    allowed: list[list[int]] = field(default_factory=list)
    choices: list[float] = field(default_factory=list)
    """log-probabilities of allowed[0], where they are wanted"""
    ids: list[int] = field(default_factory=list)
    """what was sampled, where loops are looked for"""
    rest: int = 0
    """tokens at its end that the constraint left no choice about, put down without a step"""


@dataclass(frozen=True)
class DecodeLayout:
    """What of a decode step stays the same until a response joins or leaves."""

    rows: Tensor
    members: Tensor
    places: Tensor | None
    prompt_bias: Tensor
    oldest: int
    """the first step of the response that is the longest so far"""
    newest: int
    """that of the shortest"""
    reach: int
    """tokens of the longest sequence, less the step"""
