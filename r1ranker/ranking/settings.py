"""How a model is asked to rank: what it was trained for, which is saved beside its weights, and how far pools are parted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from r1ranker.errors import UserError, check_at_least
from r1ranker.tasks.labels import ANSWER_STYLES
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.thoughts.similarity import ShotContent, Similarity, Within

Strategy = Literal["iterative", "direct", "logits", "windows", "tournament"]
Inside = Literal["answer", "logits"]
Rounds = Literal["separate", "conversation"]
MODES: tuple[Mode, ...] = get_args(Mode)

_SAVED: dict[str, Any] = {
    "strategy": MODES,
    "answer_style": ANSWER_STYLES,
    "think": bool,
    "constrain": ("none", "candidates"),
    "max_response_length": int,
}
"""its values, or their type"""


@dataclass(frozen=True)
class EliminationSettings:
    """How an elimination goes."""

    eliminate: int = 1
    """candidates that go out a round: those most likely to, where that can be computed, else those that answers name most often"""
    votes: int = 1
    """answers sampled a round; as many as `eliminate` at least, unless probabilities are computed"""
    top_k: int = 0
    """stop when so few are left, without telling them apart; 0: rank all. With a tournament: the places that it fills"""

    @property
    def samples(self) -> int:
        """Answers a round."""
        return max(self.votes, self.eliminate)


@dataclass(frozen=True)
class WindowSettings:
    """How large pools are parted."""

    size: int = 20
    """candidates of a window, or of a tournament's group"""
    step: int = 10
    """candidates by which a window moves on"""
    passes: int = 1
    """times that windows go from the back to the front"""
    inside: Inside = "answer"
    """how a window is ranked: as the model was trained to answer, or by the probabilities of its first choice"""


@dataclass(frozen=True)
class ShotSettings:
    """Thoughts on similar requests before a request, as templates (IRanker-COT of the paper)."""

    bank: str | None = None
    """parquet of `r1ranker thoughts collect`; None: none are shown"""
    count: int = 3
    similarity: Similarity = "tfidf"
    embedder: str | None = None
    """model directory of sentence-transformers, for similarity by embeddings"""
    within: Within = "task"
    content: ShotContent = "thoughts"


@dataclass(frozen=True)
class RankerSettings:
    """How a model is to be asked; the first part is saved beside the weights, since it has to be asked as it was trained."""

    strategy: Strategy = "iterative"
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    constrain: Literal["none", "candidates"] = "none"
    max_tokens: int = 1024
    """of an answer"""
    top_p: float = 0.7
    """published; of no effect at temperature 0"""
    temperature: float = 0.0
    """0: greedy, but where several answers a round are wanted, or a second try"""
    seed: int = 0
    elimination: EliminationSettings = field(default_factory=EliminationSettings)
    trained: Mode = "iterative"
    """what it is asked by strategies that are no kind of answer: for the worst candidate, or for all of them in order"""
    windows: WindowSettings = field(default_factory=WindowSettings)
    passage_tokens: int | None = None
    """of a candidate's text at most, cut between words; None: texts are shown whole"""
    shots: ShotSettings = field(default_factory=ShotSettings)
    rounds: Rounds = "separate"
    """whether each elimination is asked anew, or all are turns of one conversation"""
    keep_thoughts: bool = True
    """in a conversation: earlier turns stay with their thoughts"""

    @property
    def mode(self) -> Mode:
        """What the model is asked for."""
        return self.strategy if self.strategy in ("iterative", "direct") else self.trained

    @property
    def parts_pools(self) -> bool:
        """Whether large pools are ranked part by part."""
        return self.strategy in ("windows", "tournament")

    @property
    def by_logits(self) -> bool:
        """Whether probabilities take the place of answers."""
        return self.strategy == "logits" or (self.parts_pools and self.windows.inside == "logits")

    @property
    def is_constrained(self) -> bool:
        """Whether an engine is asked for nothing but candidates."""
        return self.constrain == "candidates" or self.by_logits

    @property
    def weighs(self) -> bool:
        """Whether probabilities of whole answers can be computed: answers at once, constrained to the pool."""
        return self.constrain == "candidates" and not self.answer_format.think

    @classmethod
    def from_pretrained(cls, directory: str) -> RankerSettings:
        """Those saved with the model; the published ones where there are none."""
        from r1ranker.pretrained import SETTINGS_FILE  # and with it transformers, which options alone do not wait for

        file = Path(directory) / SETTINGS_FILE
        if not file.is_file():
            return cls()
        try:
            saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            for key, kinds in _SAVED.items():
                if saved[key] not in kinds if isinstance(kinds, tuple) else type(saved[key]) is not kinds:
                    raise ValueError(f"{key} is {saved[key]!r}")
            return cls(
                strategy=saved["strategy"],
                answer_format=AnswerFormat(saved["answer_style"], saved["think"]),
                constrain=saved["constrain"],
                max_tokens=saved["max_response_length"],
                trained=saved["strategy"],
                rounds=_rounds_of(saved),
                keep_thoughts=bool(saved.get("keep_thoughts", True)),
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{file}: not the settings of a ranker ({type(error).__name__}: {error})") from error

    def check(self) -> None:
        """Raise UserError, naming the option, for values out of range and for what does not go together."""
        check_at_least("--seed", self.seed, 0)
        check_at_least("--eliminate", self.elimination.eliminate, 1)
        check_at_least("--votes", self.elimination.votes, 1)
        check_at_least("--top_k", self.elimination.top_k, 0)
        check_at_least("--window", self.windows.size, 2)
        check_at_least("--step", self.windows.step, 1)
        check_at_least("--passes", self.windows.passes, 1)
        if self.passage_tokens is not None:
            check_at_least("--max_passage_tokens", self.passage_tokens, 1)
        check_at_least("--shots", self.shots.count, 1)
        if (self.shots.similarity == "embeddings") != (self.shots.embedder is not None):
            raise UserError(
                f"--similarity: found {self.shots.similarity} and --embedder {self.shots.embedder}; "
                "embeddings want --embedder DIR, and nothing else does"
            )
        several = self.elimination.votes > 1 or (self.elimination.eliminate > 1 and not self.weighs)
        if self.rounds == "conversation" and (self.mode != "iterative" or several or self.by_logits):
            raise UserError(
                "--rounds: a conversation asks for the worst candidate, one answer a round; it goes with the strategies iterative and "
                "tournament of an iterative ranker, without --votes, and with --eliminate where answers at once are constrained"
            )
        if self.windows.step > self.windows.size:
            raise UserError(f"--step: found {self.windows.step}; at most --window, {self.windows.size}, is wanted")
        if self.by_logits and self.answer_format.think:
            raise UserError("--strategy: probabilities of answers want --no-think; found thoughts before answers")


def _rounds_of(saved: dict[str, Any]) -> Rounds:
    """Rankers from before there was a choice ask each round anew."""
    rounds: Rounds = saved.get("rounds", "separate")
    if rounds not in get_args(Rounds):
        raise ValueError(f"rounds is {rounds!r}")
    return rounds
