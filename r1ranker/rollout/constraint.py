"""Answers constrained to the pool: inside the answer block only continuations of a candidate's name or label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from r1ranker.data.tokenise import plain_ids
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENING = "<answer>"
_CLOSING = "</answer>"


@dataclass(frozen=True)
class PoolConstraint:
    """The token sequences that an answer may be made of, as plain data that can be sent to a worker."""

    more: tuple[tuple[int, ...], ...]
    """per candidate: its name and the line break before the next one; empty where one name is the whole answer"""
    last: tuple[tuple[int, ...], ...]
    """per candidate: its name, the closing tag and EOS"""
    begun: bool
    """the prompt has already opened the answer block"""


def build_constraint(
    tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str], mode: Mode, answer_format: AnswerFormat
) -> PoolConstraint:
    """The constraint for a pool: one candidate (iterative), or all of them, each once (direct)."""
    if answer_format.answer_style == "label":
        names = [f"[{position}]" for position in range(1, len(candidates) + 1)]
    else:
        names = [shown(name) for name in candidates]
    eos = int(tokenizer.eos_token_id)
    # a name and what follows it are tokenised together, since the break between them may be inside a token
    last = tuple((*_ids(tokenizer, name + _CLOSING), eos) for name in names)
    more = tuple(_ids(tokenizer, name + "\n") for name in names) if mode == "direct" else ()
    return PoolConstraint(more=more, last=last, begun=not answer_format.think)


@lru_cache(maxsize=2**16)
def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Kept, since the same candidates stand in many pools."""
    return tuple(plain_ids(tokenizer, text))


class ConstraintState:
    """Where one response stands: free, inside the answer block, or after it."""

    def __init__(self, constraint: PoolConstraint, token_text: Callable[[int], str]) -> None:
        self._constraint = constraint
        self._token_text = token_text
        self._tail = ""
        self._free = not constraint.begun
        self._remaining = tuple(range(len(constraint.last)))
        self._matching = self._remaining
        self._depth = 0

    def _sequence(self, candidate: int) -> tuple[int, ...]:
        whole = (
            self._constraint.last if len(self._remaining) == 1 or not self._constraint.more else self._constraint.more
        )
        return whole[candidate]

    def allowed(self) -> list[int]:
        """Token ids that may come next, ascending; empty: any."""
        if self._free:
            return []
        return sorted({self._sequence(candidate)[self._depth] for candidate in self._matching})

    def rest(self) -> tuple[int, ...] | None:
        """The tokens up to the answer's end where none of them is a choice any more; None where one is."""
        if self._free or len(self._matching) > 1:
            return None
        (chosen,) = self._matching
        left = [candidate for candidate in self._remaining if candidate != chosen] if self._constraint.more else []
        if len(left) > 1:
            return None
        after = self._constraint.last[left[0]] if left else ()
        return self._sequence(chosen)[self._depth :] + after

    def advance(self, token: int) -> None:
        """Take the sampled token, which must be among the allowed ones."""
        if self._free:
            self._tail = (self._tail + self._token_text(token))[-64:]
            _, tag, after = self._tail.rpartition(_OPENING)
            self._free = not (tag and not after.strip())
            return
        self._matching = tuple(
            candidate for candidate in self._matching if self._sequence(candidate)[self._depth] == token
        )
        if not self._matching:
            raise ValueError(f"token {token} is not allowed at this place of the answer")
        self._depth += 1
        if self._depth == len(self._sequence(self._matching[0])) and len(self._remaining) > 1 and self._constraint.more:
            chosen = self._matching[0]
            self._remaining = tuple(candidate for candidate in self._remaining if candidate != chosen)
            self._matching, self._depth = self._remaining, 0
