"""Answers constrained to the pool: inside the answer block only continuations of a candidate's name or label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from r1ranker.data.tokenise import encode_text
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import sanitise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENING = "<answer>"
_CLOSING = "</answer>"


@dataclass(frozen=True)
class PoolConstraint:
    """The token sequences that an answer may be made of, as plain data that can be sent to a worker."""

    separated_ids: tuple[tuple[int, ...], ...]
    """per candidate: its name and the line break before the next one; empty where one name is the whole answer"""
    final_ids: tuple[tuple[int, ...], ...]
    """per candidate: its name, the closing tag and EOS"""
    answer_open: bool
    """the prompt has already opened the answer block"""


def build_constraint(
    tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str], mode: Mode, answer_format: AnswerFormat
) -> PoolConstraint:
    """The constraint for a pool: one candidate (iterative), or all of them, each once (direct)."""
    if answer_format.answer_style == "label":
        names = [f"[{position}]" for position in range(1, len(candidates) + 1)]
    else:
        names = [sanitise(name) for name in candidates]
    eos = int(tokenizer.eos_token_id)
    # a name and what follows it are tokenised together, since the break between them may be inside a token
    last = tuple((*_ids(tokenizer, name + _CLOSING), eos) for name in names)
    more = tuple(_ids(tokenizer, name + "\n") for name in names) if mode == "direct" else ()
    return PoolConstraint(separated_ids=more, final_ids=last, answer_open=not answer_format.think)


@lru_cache(maxsize=2**16)
def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Kept, since the same candidates stand in many pools."""
    return tuple(encode_text(tokenizer, text))


class ConstraintState:
    """Where one response stands: free, inside the answer block, or after it."""

    def __init__(self, constraint: PoolConstraint, token_text: Callable[[int], str]) -> None:
        self._constraint = constraint
        self._token_text = token_text
        self._tail = ""
        self._free = not constraint.answer_open
        self._remaining = tuple(range(len(constraint.final_ids)))
        self._matching = self._remaining
        self._depth = 0

    def _sequence(self, candidate: int) -> tuple[int, ...]:
        whole = (
            self._constraint.final_ids
            if len(self._remaining) == 1 or not self._constraint.separated_ids
            else self._constraint.separated_ids
        )
        return whole[candidate]

    def allowed_token_ids(self) -> list[int]:
        """Token ids that may come next, ascending; empty: any."""
        if self._free:
            return []
        return sorted({self._sequence(candidate)[self._depth] for candidate in self._matching})

    def forced_token_ids(self) -> tuple[int, ...] | None:
        """The tokens up to the answer's end where none of them is a choice any more; None where one is."""
        if self._free or len(self._matching) > 1:
            return None
        (chosen,) = self._matching
        left = (
            [candidate for candidate in self._remaining if candidate != chosen]
            if self._constraint.separated_ids
            else []
        )
        if len(left) > 1:
            return None
        after = self._constraint.final_ids[left[0]] if left else ()
        return self._sequence(chosen)[self._depth :] + after

    def accept_token(self, token: int) -> None:
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
        if (
            self._depth == len(self._sequence(self._matching[0]))
            and len(self._remaining) > 1
            and self._constraint.separated_ids
        ):
            chosen = self._matching[0]
            self._remaining = tuple(candidate for candidate in self._remaining if candidate != chosen)
            self._matching, self._depth = self._remaining, 0
