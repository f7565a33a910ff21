"""Teachers of a cold start: who say which order is right, and think aloud before they do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from r1ranker.tasks.custom import asked_query
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import Mode

TEACHERS = ("frequent", "right")
NAMED = 3
"""candidates in a thought"""
WORDS = 6
"""of a request in a thought"""
LONGEST_NAME = 6
"""words of a candidate that a thought writes in full; of longer ones it writes fewer"""


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of an example."""

    order: tuple[int, ...]
    """places of the candidates, best first"""
    thought: str


Teacher = Callable[[RankingExample, Mode, Sequence[str]], Lesson]
"""an example, and how its candidates are written in an answer"""


def teach_frequent_labels(counts: Counter[tuple[str, str]]) -> Teacher:
    """The teacher who answers by `counts`, those of `count_positives`; of equals the one that is listed first is before."""

    def teach(example: RankingExample, mode: Mode, written: Sequence[str]) -> Lesson:
        places = range(len(example.candidates))
        order = sorted(places, key=lambda place: -counts[example.task, example.candidates[place]])
        shown = order if mode == "direct" else order[::-1]
        often = "Most" if mode == "direct" else "Least"
        return Lesson(tuple(order), f"{often} often chosen: {', '.join(written[place] for place in shown[:NAMED])}.")

    return teach


def teach_right_answers(example: RankingExample, mode: Mode, written: Sequence[str]) -> Lesson:
    """The teacher who knows the grades: of equals the candidate that has more of the request's words is before.

    The thought says which of these words the candidates at the answer's end of the order have, and which they lack.
    """
    asked = content_words(asked_query(example) or " ".join(example.history))[:WORDS]
    shared = [
        [word for word in asked if _stem(word) in {_stem(own) for own in content_words(text)}]
        for text in example.texts or example.candidates
    ]
    places = range(len(example.candidates))
    order = sorted(places, key=lambda place: (-example.grade_of(example.candidates[place]), -len(shared[place])))
    if not asked:
        return Lesson(tuple(order), f"There are {len(order)} candidates. I compare them with what is asked.")
    said = [f"Asked: {', '.join(asked)}."]
    for place in (order if mode == "direct" else order[::-1])[:NAMED]:
        lacking = [word for word in asked if word not in shared[place]]
        has = f"has {', '.join(shared[place])}" if shared[place] else "has none"
        said.append(f"{_shorten(written[place])} {has}{f', not {lacking[0]}' if shared[place] and lacking else ''}.")
    return Lesson(tuple(order), " ".join(said))


def _shorten(name: str) -> str:
    words = name.split()
    return name if len(words) <= LONGEST_NAME else " ".join([*words[: LONGEST_NAME - 2], "..."])


def content_words(text: str) -> list[str]:
    """The words of a text, each once and in lower case, without English stop words."""
    return list(_words(text))


@lru_cache(maxsize=4096)  # a text comes again in every sub-pool
def _words(text: str) -> tuple[str, ...]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    found = re.findall(r"\w{2,}", text.casefold())
    return tuple(dict.fromkeys(word for word in found if word not in ENGLISH_STOP_WORDS))


def _stem(word: str) -> str:
    """What is left of the common endings: enough to see that `caves` is `cave`."""
    return re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e)$", "", word)
