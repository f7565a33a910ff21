"""One ranking example: what is known of the request, the candidates, and which one is right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from r1ranker.errors import UserError
from r1ranker.tasks.text import canonical, find_name

_NUMBER_FOR_NAME = re.compile(r"passage \d+")
HIGHEST_GRADE = 1000
"""2^grade has to stay a float, and so has a sum of them"""


@dataclass(frozen=True, slots=True)
class RankingExample:
    """A request with its candidates; `validate` says whether it can be ranked.

    Either the structured fields (`query`, `history`, `texts`) hold the request, and prompts.py words it, or `problem`
    holds a wording that could not be taken apart, which is then used as it is.
    """

    task: str
    """name in the catalogue, e.g. 'Rec-Movie'"""
    candidates: tuple[str, ...]
    """names that an answer uses, in the order shown; ids such as 'passage 0' for passages"""
    positive: str = ""
    """the relevant candidate; empty where it is not known (when ranking for a user)"""
    query: str = ""
    """the question, for routing and passages"""
    history: tuple[str, ...] = ()
    """earlier items in order, for recommendation"""
    texts: tuple[str, ...] = ()
    """a text for each candidate (a passage, an LLM's description), or empty"""
    problem: str = ""
    """wording of a request that could not be taken apart, else empty"""
    request: str = ""
    """of a task of one's own: the request as it was worded, where query and history are not known apart"""
    grades: tuple[float, ...] = ()
    """how relevant each candidate is, from 0; empty where only the positive is known"""
    subject: str = ""
    """the user or query that it is about, where several examples can be about the same one"""
    hints: tuple[str, ...] = ()
    """thoughts on similar requests, shown before this one"""

    def __post_init__(self) -> None:
        """A positive that looks like a candidate, in another Unicode form or with other white space, is that candidate."""
        if self.positive and self.positive not in self.candidates:
            place = find_name(self.candidates, self.positive)
            if place is not None:
                object.__setattr__(self, "positive", self.candidates[place])

    def validate(self, where: str = "example") -> None:
        """Raise UserError, naming `where`, unless the candidates are distinct names and hold the positive."""
        if not self.candidates:
            raise UserError(f"{where}: candidates is empty; at least one name is wanted")
        seen: dict[str, str] = {}
        for name in self.candidates:
            # as it is shown: names that look the same in a prompt cannot be told apart in an answer
            written = canonical(name)
            if not written:
                raise UserError(f"{where}: candidates holds a blank name")
            if written in seen:
                forms = f" (as {seen[written]!a} and {name!a})" if seen[written] != name else ""
                raise UserError(f"{where}: candidates holds {name!r} twice{forms}; names must be distinct")
            seen[written] = name
        if self.positive and self.positive not in self.candidates:
            raise UserError(f"{where}: the positive {self.positive!r} is not among the {len(seen)} candidates")
        if self.grades:
            self._validate_grades(where)
        if self.texts and len(self.texts) != len(self.candidates):
            raise UserError(f"{where}: {len(self.texts)} texts for {len(self.candidates)} candidates")

    def _validate_grades(self, where: str) -> None:
        if len(self.grades) != len(self.candidates):
            raise UserError(f"{where}: {len(self.grades)} grades for {len(self.candidates)} candidates")
        if any(not 0 <= grade <= HIGHEST_GRADE for grade in self.grades):
            raise UserError(f"{where}: grades holds {list(self.grades)}; numbers from 0 to {HIGHEST_GRADE} are wanted")
        best = max(self.grades)
        if best == 0:
            raise UserError(f"{where}: all grades are 0; at least one relevant candidate is wanted")
        if self.positive and self.grade_of(self.positive) != best:
            raise UserError(f"{where}: the positive {self.positive!r} is not of the highest grade, {best:g}")

    @property
    def has_numbers_for_names(self) -> bool:
        """Whether the texts are all that tells the candidates apart: their names only count."""
        return bool(self.texts) and names_are_numbers(self.candidates)

    def grade_of(self, name: str) -> float:
        """How relevant a candidate is; where there are no grades, 1 for the positive and 0 for the others."""
        if not self.grades:
            return float(name == self.positive)
        return self.grades[self.candidates.index(name)]

    @property
    def best_text(self) -> str:
        """The best candidate's text, its name where it has none; of equals the first's. Empty where none is known to be relevant."""
        place = max(range(len(self.candidates)), key=lambda number: self.grade_of(self.candidates[number]))
        if not self.grade_of(self.candidates[place]):
            return ""
        return (self.texts or self.candidates)[place]

    def with_pool(self, pool: tuple[str, ...]) -> RankingExample:
        """The same request with only the candidates of `pool`, in the order of `pool`, each with its own text.

        Without the positive, the first of the highest grade is the positive; none where there are no grades above 0.
        """
        place = {name: index for index, name in enumerate(self.candidates)}
        positive = self.positive
        if positive not in pool:
            positive = max((name for name in pool if self.grade_of(name) > 0), key=self.grade_of, default="")
        return replace(
            self,
            candidates=pool,
            texts=tuple(self.texts[place[name]] for name in pool) if self.texts else (),
            grades=tuple(self.grades[place[name]] for name in pool) if self.grades else (),
            positive=positive,
        )


def number_passages(count: int) -> tuple[str, ...]:
    """Names that only count, for candidates that their texts alone tell apart."""
    return tuple(f"passage {place}" for place in range(count))


def names_are_numbers(names: Iterable[str]) -> bool:
    """Whether candidates are called 'passage 0', 'passage 1' and so on."""
    return all(map(_NUMBER_FOR_NAME.fullmatch, names))


def count_positives(examples: Iterable[RankingExample]) -> Counter[tuple[str, str]]:
    """(task, candidate) -> how often it was the positive."""
    return Counter((example.task, example.positive) for example in examples)
