"""Users' sequences put together from rows, and SASRec, which learns from them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from r1ranker.data.files.tally import TaskTally
from r1ranker.data.raw import find_recbole_files
from r1ranker.data.sources.recommendation import RecommendationSettings, read_recommendation
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines import sasrec
from r1ranker.evaluation.baselines.collaborative import CoOccurrence, Popularity
from r1ranker.evaluation.baselines.sasrec import SASRec
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.evaluation.baselines.sequences import items_of, reconstruct_sequences
from r1ranker.tasks.example import RankingExample


def row(items: str, candidates: str = "") -> RankingExample:
    """A user's items, single letters; the last one is the positive."""
    return RankingExample("Rec-Movie", tuple(candidates or items[-1]), items[-1], history=tuple(items[:-1]))


def joined(*rows: str) -> list[str]:
    return ["".join(items) for items in reconstruct_sequences([row(items) for items in rows])]


def test_rows_that_overlap_are_one_users() -> None:
    assert joined("abcdef", "defghi", "uvwxyz", "ghijkl") == ["abcdefghijkl", "uvwxyz"]
    assert joined("ghijkl", "defghi", "abcdef") == ["abcdefghijkl"]
    assert joined("abcde", "bcd", "xyz", "abc", "xyz") == ["abcde", "xyz"]  # within another one, or twice
    assert joined("abc", "bcd", "cde") == ["abc", "bcd", "cde"]  # two items in common are chance
    assert joined("abcd", "bcde", "bcdf") == ["abcde", "bcdf"]  # two users went on from there
    assert joined("abcde", "cdexy", "bcdez") == ["abcdez", "cdexy"]  # the longest overlap first
    assert joined("abcd", "bcda") == ["abcd", "bcda"]  # nobody takes an item twice
    assert joined("abcd", "cdef", "bcde", "efab") == ["abcdef", "efab"]
    assert joined() == []


def test_popularity_and_co_occurrence_count_a_user_once() -> None:
    sequences = reconstruct_sequences([row("abcdef"), row("cdefgh"), row("axy")])
    asked = row("ab", "acxz" + "b")
    assert Popularity.of_sequences(sequences).scores(asked) == [2, 1, 1, 0, 1]
    assert CoOccurrence(sequences).scores(row("abc", "cx")) == [2, 1]


@pytest.mark.parametrize(
    ("task", "name"), [("Rec-Movie", "ml-1m"), ("Rec-Movie", "ml-100k"), ("Rec-Game", "Amazon_Video_Games")]
)
def test_no_two_real_users_are_joined_and_overlaps_are_undone(
    task: str, name: str, request: pytest.FixtureRequest
) -> None:
    files = find_recbole_files(str(request.getfixturevalue("real_raw")), task, name)
    rows = [
        (one.key, one.example)
        for one in read_recommendation(task, *files, RecommendationSettings(users=300, positions=5), TaskTally())
    ]
    users = {items_of(example): user for user, example in rows}
    items: dict[str, set[str]] = {}
    for user, example in rows:
        items.setdefault(user, set()).update(items_of(example))
    sequences = reconstruct_sequences([example for _, example in rows])
    for sequence in sequences:
        windows = [sequence[start : start + 21] for start in range(len(sequence) - 20)]
        assert len({users[window] for window in windows if window in users}) == 1
        assert len(set(sequence)) == len(sequence)
    extra = sum(map(len, sequences)) / sum(map(len, items.values())) - 1
    assert 0 <= extra < 0.005  # rows with one or two items in common
    assert sum(len(items_of(example)) for _, example in rows) > 1.4 * sum(map(len, sequences))


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def walks(rows: int, seed: int) -> list[RankingExample]:
    """The next letter is determined by the last one, and all letters are equally popular."""
    rng = random.Random(seed)
    order = random.Random(0).sample(LETTERS, len(LETTERS))
    found = []
    for _ in range(rows):
        start = rng.randrange(len(order))
        items = [order[(start + step) % len(order)] for step in range(6)]
        pool = [items[-1], *rng.sample(sorted(set(LETTERS) - set(items)), 9)]
        found.append(row("".join(items), "".join(rng.sample(pool, len(pool)))))
    return found


def mean_mrr(rank: ScoringBaseline, test: list[RankingExample]) -> float:
    return float(np.mean([rank(example, (3,))["mrr"] for example in test]))


def test_sasrec_learns_what_comes_next_where_popularity_cannot() -> None:
    pytest.importorskip("cornac")
    sequences = [items_of(example) for example in walks(80, 1)]
    test = walks(60, 2)
    assert mean_mrr(SASRec(sequences, history=5, steps=240), test) > 0.95
    assert mean_mrr(Popularity.of_sequences(sequences), test) < 0.5


def test_sasrec_repeats_itself_and_knows_only_items_of_training() -> None:
    pytest.importorskip("cornac")
    sequences = [items_of(example) for example in walks(20, 1)]
    asked = row("abc", "c0d")
    torch.manual_seed(5)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    first, again, other = (SASRec(sequences, 5, steps=4, seed=seed).scores(asked) for seed in (1, 1, 2))
    assert torch.rand(1) == expected  # draws of others are left alone
    assert torch.get_num_threads() == threads
    assert first == again
    assert first != other
    assert first[1] == -math.inf < min(first[0], first[2])
    stranger = SASRec(sequences, 5, steps=4).scores(row("12a", "cd3"))  # nothing is known: all known items alike
    assert stranger == [stranger[0], stranger[0], -math.inf]


def test_without_its_library_sasrec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sasrec, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"SASRec: cornac is not installed; pip install 'r1ranker\[baselines\]'"):
        SASRec([("a", "b")], 5)
