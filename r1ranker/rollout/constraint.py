"""Answers constrained to the pool: inside the answer block only continuations of a candidate's name or label."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from r1ranker.data.chat_template import chat_template_of
from r1ranker.data.names import CLOSING, check_told_apart, spell
from r1ranker.data.tokenise import ANSWER, BREAK
from r1ranker.errors import UserError
from r1ranker.tasks.labels import write_label
from r1ranker.tasks.prompts import AnswerFormat, Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PoolConstraint:
    """The token sequences that an answer may be made of, as plain data that can be sent to a worker."""

    separated_ids: tuple[tuple[int, ...], ...]
    """per candidate: its name and the line break before the next one; empty where one name is the whole answer"""
    final_ids: tuple[tuple[int, ...], ...]
    """per candidate: its name, the closing tag and EOS"""
    answer_open: bool
    """the prompt has already opened the answer block"""
    first_ids: tuple[tuple[int, ...], ...] = ()
    """separated_ids of the name that comes first, directly behind the tag; empty where they are the same"""

    def without(self, places: Collection[int]) -> PoolConstraint:
        """The same without some of the candidates, of answers that are one name."""
        if not places:
            return self
        assert not self.separated_ids
        left = tuple(ids for place, ids in enumerate(self.final_ids) if place not in places)
        return replace(self, final_ids=left)

    @property
    def opening_ids(self) -> tuple[tuple[int, ...], ...]:
        """Per candidate: what an answer that names it first begins with."""
        return self.first_ids or self.separated_ids or self.final_ids


def build_constraint(
    tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str], mode: Mode, answer_format: AnswerFormat
) -> PoolConstraint:
    """The constraint for a pool: one candidate (iterative), or all of them, each once (direct).

    Raises UserError where the tokenizer does not tell two candidates apart.
    """
    template = chat_template_of(tokenizer)
    if answer_format.by_label:
        names = [write_label(answer_format.answer_style, place) for place in range(len(candidates))]
    else:
        check_told_apart(template, candidates)
        names = list(candidates)
    eos = int(tokenizer.eos_token_id)
    listed = mode == "direct" and len(names) > 1
    # a name and what follows it are tokenised together, since the break between them may be inside a token
    final = tuple((*spell(template, name, BREAK if listed else ANSWER, CLOSING).ids, eos) for name in names)
    more = tuple(spell(template, name, BREAK, BREAK).ids for name in names) if mode == "direct" else ()
    first = tuple(spell(template, name, ANSWER, BREAK).ids for name in names) if mode == "direct" else ()
    for sequences in (final, more, first):
        _check_distinct(tokenizer, names, sequences)
    return PoolConstraint(more, final, not answer_format.think, first if first != more else ())


MOST_LABELS = 100


def count_single_token_labels(tokenizer: PreTrainedTokenizerBase, mode: Mode, answer_format: AnswerFormat) -> int:
    """Candidates of the largest pool, up to MOST_LABELS, whose labels differ in one and the same token, so that one pass gives the
    probability of each; 0 where answers are names.

    Where digits are tokens it is 9, since 1 and 10 begin alike.
    """
    if not answer_format.by_label:
        return 0
    names = [f"candidate {place}" for place in range(MOST_LABELS)]
    openings = build_constraint(tokenizer, names, mode, answer_format).opening_ids
    for count in range(2, MOST_LABELS + 1):
        alternatives = map(len, map(set, zip(*openings[:count], strict=False)))
        if next(several for several in alternatives if several > 1) < count:
            return count - 1
    return MOST_LABELS


def _check_distinct(
    tokenizer: PreTrainedTokenizerBase, names: Sequence[str], sequences: Sequence[tuple[int, ...]]
) -> None:
    """Raise UserError where one of the sequences begins another: what was sampled would not say which one is meant."""
    order = sorted(range(len(sequences)), key=lambda place: sequences[place])
    for place, following in pairwise(order):
        if sequences[following][: len(sequences[place])] == sequences[place]:
            raise UserError(
                f"candidates {names[place]!r} and {names[following]!r}: the tokenizer of {tokenizer.name_or_path} does not tell "
                "an answer of the one from the beginning of the other; answer_style=label is wanted"
            )


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
        known = self._constraint
        if len(self._remaining) == 1 or not known.separated_ids:
            return known.final_ids[candidate]
        is_first = len(self._remaining) == len(known.final_ids)
        return (known.first_ids if is_first and known.first_ids else known.separated_ids)[candidate]

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
            _, tag, after = self._tail.rpartition(ANSWER)
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
