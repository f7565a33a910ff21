"""What `Ranker.rank` is given: lists of texts, and nothing that only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from r1ranker.errors import UserError
from r1ranker.ranking.conversation import list_texts
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import RankerSettings
from r1ranker.tasks.example import RankingExample

NAMES = ["Heat", "Alien", "Up"]
RANKER = Ranker(None, None, RankerSettings())  # type: ignore[arg-type]  # what is refused is refused before either is used


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("abc", "candidates: found 'abc'; a list of texts is wanted"),
        (b"abc", "candidates: found b'abc'; a list of texts is wanted"),
        (None, "candidates: found None; a list of texts is wanted"),
        ({"Heat": 1, "Up": 2}, "candidates: found {'Heat': 1, 'Up': 2}; a list of texts is wanted"),
        ({"Heat"}, "candidates: found {'Heat'}; a list of texts is wanted"),
        (pd.DataFrame({"a": NAMES, "b": NAMES}), "candidates: found a b 0 Heat Heat"),
        (np.array([NAMES, NAMES]), r"candidates: found array\(\[\['Heat'"),
        (["Heat", None], "candidates: found None at place 1; a text is wanted"),
        (["Heat", float("nan")], "candidates: found nan at place 1; a text is wanted"),
        ([1, 2], "candidates: found 1 at place 0; a text is wanted"),
        (pd.Series(["Heat", None, "Up"]), "candidates: found (None|nan) at place 1; a text is wanted"),
        ([["Heat", "Up"]], r"candidates: found \['Heat', 'Up'\] at place 0; a text is wanted"),
    ],
)
def test_candidates_that_are_no_list_of_texts_are_named(candidates: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as error:
        RANKER.rank(["Jaws"], candidates)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": None}, "query: found None; a list of texts is wanted"),
        ({"query": ["Jaws", None]}, "query: found None at place 1; a text is wanted"),
        ({"query": "Jaws"}, "query: found 'Jaws'; Rec-Movie ranks for a list of texts"),
        ({"query": float("nan"), "task": "Passage-5"}, "query: found nan; Passage-5 ranks for a text"),
        ({"query": ["Jaws"], "texts": "abc"}, "texts: found 'abc'; a list of texts is wanted"),
        ({"query": ["Jaws"], "texts": ["a", None, "c"]}, "texts: found None at place 1; a text is wanted"),
    ],
)
def test_other_arguments_of_another_kind_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        RANKER.rank(candidates=NAMES, **arguments)


@pytest.mark.parametrize("candidates", ["abc", ("Heat", None), ("Heat", float("nan"))])
def test_examples_that_hold_other_than_texts_are_named(candidates: Any, tiny_model: str) -> None:
    ranker = Ranker.from_pretrained(tiny_model)
    with pytest.raises(UserError, match=r"^candidates: found"):
        list(ranker.rank_many([RankingExample("Rec-Movie", candidates, history=("Jaws",))]))


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, pd.Series, pd.Index, pd.Categorical])
def test_sequences_of_texts_are_taken_in_their_order(kind: Any) -> None:
    assert list_texts("candidates", kind(NAMES)) == tuple(NAMES)
