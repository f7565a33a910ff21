"""Baselines against formulas worked out by hand, hand-made rows, and the figures known of the real data."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS
from r1ranker.data.sources.source_example import Split
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines import sasrec
from r1ranker.evaluation.baselines.collaborative import BPR, CoOccurrence, Popularity
from r1ranker.evaluation.baselines.lexical import BM25, TfIdfCosine
from r1ranker.evaluation.baselines.neighbours import NearestQueries
from r1ranker.evaluation.baselines.orders import MostFrequentLabel, fit_baselines, random_order_metrics
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.evaluation.baselines.sequences import reconstruct_sequences
from r1ranker.tasks.catalog import TASK_NAMES, Task, register_task
from r1ranker.tasks.example import RankingExample

PASSAGES = ("red fox runs", "red red dog", "a blue whale swims far away")


def passages(query: str, texts: Sequence[str] = PASSAGES) -> RankingExample:
    names = tuple(f"passage {number}" for number in range(len(texts)))
    return RankingExample("Passage-5", names, "passage 0", query=query, texts=tuple(texts))


def watched(history: str, positive: str, candidates: str = "") -> RankingExample:
    """Films are single letters."""
    return RankingExample("Rec-Movie", tuple(candidates or positive), positive, history=tuple(history))


def test_equal_scores_are_shared_and_the_last_bits_of_a_sum_are_no_difference() -> None:
    class Fixed(ScoringBaseline):
        name = "fixed"

        def scores(self, example: RankingExample) -> list[float]:
            return [0.1 + 0.2, 0.3, -math.inf, 7.0]

    example = RankingExample("Rec-Movie", tuple("abcd"), "b", history=("x",))
    assert Fixed()(example, (2,)) == pytest.approx(
        {"mrr": (1 / 2 + 1 / 3) / 2, "hit@2": 0.5, "ndcg@2": 0.5 / math.log2(3)}
    )
    last = RankingExample("Rec-Movie", tuple("abcd"), "c", history=("x",))
    assert Fixed()(last, (2,))["mrr"] == 1 / 4


def test_bm25_is_the_formula() -> None:
    def term(tf: int, df: int, length: int) -> float:
        mean = (3 + 3 + 5) / 3  # 'a' is too short to be a word
        return math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / mean))

    expected = [term(1, 2, 3) + 2 * term(1, 1, 3), term(2, 2, 3), 0.0]
    assert BM25().scores(passages("The red, FOX fox unicorn")) == pytest.approx(expected, abs=1e-12)
    assert BM25().scores(passages("unicorn")) == [0, 0, 0]
    assert BM25().scores(passages("")) == BM25().scores(passages("?", ("", "!", ""))) == [0, 0, 0]


def test_tfidf_is_the_formula_with_the_frequencies_of_training() -> None:
    training = [passages("x", ("red fox", "red dog", "red")), passages("y", ("red fox", "blue sea", "sky"))]
    weight = {word: math.log((1 + 5) / (1 + df)) + 1 for word, df in (("red", 3), ("fox", 1), ("whale", 0))}

    def cosine(first: dict[str, int], second: dict[str, int]) -> float:
        a, b = ({word: count * weight[word] for word, count in one.items()} for one in (first, second))
        dot = sum(a[word] * b.get(word, 0) for word in a)
        return dot / math.hypot(*a.values()) / math.hypot(*b.values())

    found = TfIdfCosine(training).scores(passages("red whale", ("whale whale", "red red fox", "fox", "")))
    query = {"red": 1, "whale": 1}
    expected = [cosine(query, {"whale": 2}), cosine(query, {"red": 2, "fox": 1}), 0.0, 0.0]
    assert found == pytest.approx(expected, abs=1e-12)


def test_words_are_those_of_the_history_and_the_titles_where_there_is_no_query() -> None:
    example = RankingExample(
        "Rec-Game", ("Chess Deluxe", "Kart Racing Wii", "Racing"), "Racing", history=("Ski Wii", "Wii Racing")
    )
    for baseline in (BM25(), TfIdfCosine([example])):
        scores = baseline.scores(example)
        assert scores[0] == 0 < min(scores[1:])
    own = RankingExample("Mine", ("Reset your password", "Backups"), request="How do I reset a password?")
    assert BM25().scores(own)[1] == 0 < BM25().scores(own)[0]


def test_popularity_counts_an_item_of_a_row_once() -> None:
    training = [watched("aab", "c"), watched("ad", "b"), watched("A", "a")]
    popularity = Popularity.of_sequences(reconstruct_sequences(training))
    assert popularity.scores(watched("x", "a", "abcde")) == [3, 2, 1, 1, 0]  # 'A' is 'a' to a reader
    assert popularity(watched("x", "c", "abcde"), (3,))["mrr"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def atomic_files(directory: Path, taken: dict[str, str]) -> tuple[str, str]:
    """RecBole files of users and the letters they took in order; the titles are 'Film a' and so on."""
    inter, item = directory / "films.inter", directory / "films.item"
    rows = [f"{user}\tid-{film}\tnan\t{place}" for user, films in taken.items() for place, film in enumerate(films)]
    random.Random(0).shuffle(rows)
    inter.write_text("\n".join(["user_id:token\titem_id:token\trating:float\tposition:float", *rows, ""]))
    films = sorted(set("".join(taken.values())))
    item.write_text("\n".join(["item_id:token\ttitle:token_seq", *(f"id-{film}\tFilm {film}" for film in films), ""]))
    return str(inter), str(item)


def test_popularity_of_interactions_leaves_out_what_test_users_did_after_their_history(tmp_path: Path) -> None:
    files = atomic_files(tmp_path, {"u": "abcd", "v": "bace", "w": "aba", "z": "abfc"})
    test = RankingExample(
        "Rec-Movie", tuple(f"Film {film}" for film in "abcdef"), "Film c", history=("Film a", "Film b")
    )
    popularity = Popularity.of_interactions(*files, [test])
    assert popularity.scores(test) == [4, 4, 1, 0, 1, 0]  # u, w and z began with a and b; v did not
    longer = RankingExample("Rec-Movie", ("Film c",), "Film c", history=("Film a", "Film b", "Film f"))
    assert Popularity.of_interactions(*files, [longer, test]).scores(test) == [
        4,
        4,
        1,
        0,
        1,
        0,
    ]  # z: the shorter counts
    assert Popularity.of_interactions(*files, []).scores(test) == [5, 4, 3, 1, 1, 1]
    later = RankingExample("Rec-Movie", ("Film d",), "Film d", history=("Film b", "Film c"))  # of u, as is `test`
    assert Popularity.of_interactions(*files, [later]).scores(test) == [5, 4, 3, 0, 1, 1]
    assert Popularity.of_interactions(*files, [later, test]).scores(test) == [4, 4, 1, 0, 1, 0]
    with pytest.raises(UserError, match=r"films\.inter: no user has the history of 1 of 2 test rows"):
        Popularity.of_interactions(*files, [test, watched("xy", "z")])


def test_co_occurrence_counts_rows_that_hold_both() -> None:
    training = [watched("ab", "c"), watched("ac", "d"), watched("be", "d"), watched("a", "c")]
    rank = CoOccurrence(reconstruct_sequences(training))
    # a and c: three rows, b and c: one; a and d: one, b and d: one; b and e: one
    assert rank.scores(watched("abz", "c", "cdef")) == [4, 2, 1, 0]
    assert rank.scores(watched("aabz", "c", "cdef")) == [4, 2, 1, 0]


def clusters(rows: int, seed: int) -> list[RankingExample]:
    """Users who keep to one of two kinds of items, a to h and i to p; the pool is all that they do not have."""
    rng = random.Random(seed)
    found = []
    for _ in range(rows):
        *history, positive = rng.sample(rng.choice(["abcdefgh", "ijklmnop"]), 5)
        found.append(watched("".join(history), positive, "".join(sorted(set("abcdefghijklmnop") - set(history)))))
    return found


def test_bpr_puts_items_of_the_same_kind_first() -> None:
    rank = BPR(reconstruct_sequences(clusters(60, 0)), seed=1)
    for example in clusters(20, 1):
        kind = "abcdefgh" if example.history[0] in "abcdefgh" else "ijklmnop"
        scores = dict(zip(example.candidates, rank.scores(example), strict=True))
        assert min(scores[name] for name in scores if name in kind) > max(
            scores[name] for name in scores if name not in kind
        )


def test_bpr_repeats_itself_and_knows_only_items_of_training() -> None:
    example = watched("ab", "c", "cdefz")
    first, again, other = (BPR(reconstruct_sequences(clusters(30, 0)), seed=seed).scores(example) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[-1] == -math.inf < min(first[:-1])
    stranger = BPR(reconstruct_sequences(clusters(30, 0)), seed=1).scores(
        watched("yz", "c", "cdef")
    )  # nothing is known: the items' bias
    assert all(map(math.isfinite, stranger))


LLMS = ("small", "large", "coder")


def routed(query: str, positive: str, grades: tuple[float, ...] = ()) -> RankingExample:
    return RankingExample("Router-Cost", LLMS, positive, query=query, grades=grades)


def test_the_nearest_queries_vote() -> None:
    training = [
        routed("write python code", "coder"), routed("python code to sort", "coder"), routed("fix python", "large"),
        routed("capital city of France", "small"), routed("which city", "small"),
    ]  # fmt: skip
    rank = NearestQueries(training, neighbours=3)
    assert rank.scores(routed("debug my python code", "coder")) == pytest.approx([0, 1 / 3, 2 / 3])
    # two are near, and the other three, equally far, share the third place
    assert rank.scores(routed("a city", "small")) == pytest.approx([2 / 3, 1 / 9, 2 / 9])
    assert NearestQueries(training).scores(routed("a city", "small")) == pytest.approx([2 / 5, 1 / 5, 2 / 5])


def test_neighbours_are_those_of_the_cosine_worked_out() -> None:
    rng = random.Random(0)
    words = ["red", "blue", "green", "sum", "sort", "city", "poem", "code"]
    training = [routed(" ".join(rng.choices(words, k=4)), rng.choice(LLMS)) for _ in range(40)]
    test = routed("red code sort", "small")
    bags = [Counter(example.query.split()) for example in (*training, test)]
    idf = {word: math.log(41 / (1 + sum(word in bag for bag in bags[:-1]))) + 1 for word in words}
    vectors = np.array([[bag[word] * idf[word] for word in words] for bag in bags])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (vectors[:-1] @ vectors[-1]).round(9)
    nearest = np.argsort(-cosines, kind="stable")[:10]
    assert cosines[nearest[9]] > sorted(cosines)[-11]  # no tie at the edge
    expected = [sum(training[row].positive == name for row in nearest) / 10 for name in LLMS]
    assert NearestQueries(training).scores(test) == pytest.approx(expected)


def test_graded_neighbours_give_the_mean_grade() -> None:
    training = [
        routed("city", "large", (1.0, 3.0, 0.0)),
        routed("city", "large", (2.0, 3.0, 0.0)),
        routed("code", "coder"),
    ]
    assert NearestQueries(training, 2).scores(routed("city", "large")) == [1.5, 3.0, 0.0]


def test_each_scenario_has_the_baselines_that_suit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sasrec, "SASRec", partial(sasrec.SASRec, steps=5))
    register_task(Task("Mine", "own", "item", "items", "how well it answers", "{{ query }}", (3,)))
    rows = [
        *clusters(5, 0), routed("a city", "small"), passages("red fox"),
        RankingExample("Mine", ("one thing", "another"), "another", request="which thing"),
    ]  # fmt: skip
    sequential = {"SASRec"} if sasrec.is_installed() else set()
    expected = {
        "Rec-Movie": {"BM25", "TF-IDF", "popularity", "co-occurrence", "BPR"} | sequential,
        "Router-Cost": {"BM25", "TF-IDF", "nearest queries"},
        "Passage-5": {"BM25", "TF-IDF"},
        "Mine": {"BM25", "TF-IDF"},
    }
    for task, names in expected.items():
        baselines = fit_baselines(rows, task)
        assert {baseline.name for baseline in baselines} == names
        for example in (row for row in rows if row.task == task):
            for baseline in baselines:
                metrics = baseline(example, (3,))
                assert len(baseline.scores(example)) == len(example.candidates)
                assert metrics.keys() == random_order_metrics(example, (3,)).keys()
                assert 0 < metrics["mrr"] <= 1
    with pytest.raises(UserError, match="Rec-Game: no training rows"):
        fit_baselines(rows, "Rec-Game")


def rows_of(mini: Path, split: Split) -> dict[str, list[RankingExample]]:
    found: dict[str, list[RankingExample]] = {task: [] for task in TASK_NAMES}
    for _, example in read_ranking_bench(str(mini), "direct", split):
        found[example.task].append(example)
    return found


@pytest.mark.parametrize(("task", "known"), [("Performance", 72.1), ("Balance", 53.8), ("Cost", 71.4)])
def test_label_frequency_on_the_real_data_is_to_the_digit_what_its_notes_say(
    mini: Path, task: str, known: float
) -> None:
    """The notes rank equal counts by name; the baseline, which takes the mean over their orders, is 0.1 or less below."""
    training, test = rows_of(mini, "train")[f"Router-{task}"], rows_of(mini, "test")[f"Router-{task}"]
    rank = MostFrequentLabel(training)
    by_name = []
    for example in test:
        scores = dict(zip(example.candidates, rank.scores(example), strict=True))
        order = sorted(example.candidates, key=lambda name: (-scores[name], name))
        by_name.append(100 / (order.index(example.positive) + 1))
    assert len(test) == 40
    assert round(float(np.mean(by_name)), 1) == known
    assert np.mean(by_name) - 0.1 <= 100 * np.mean([rank(example, (3,))["mrr"] for example in test]) <= np.mean(by_name)


@pytest.mark.parametrize(
    ("task", "of_rows", "of_interactions", "known"),
    [("Rec-Movie", 42.80, 51.82, 51.9), ("Rec-Music", 45.55, 44.31, 44.4), ("Rec-Game", 23.51, 44.18, 45.8)],
)
def test_popularity_on_the_real_data(
    mini: Path, real_raw: Path, task: str, of_rows: float, of_interactions: float, known: float
) -> None:
    """By interactions it is near what the notes say, which do not say how they counted; by the few training rows far less."""
    test, training = rows_of(mini, "test")[task], rows_of(mini, "train")[task]
    inter, item = (str(real_raw / "rec" / f"{RECBOLE_DATA_SETS[task]}.{kind}") for kind in ("inter", "item"))

    def mrr(rank: ScoringBaseline) -> float:
        return 100 * float(np.mean([rank(example, (3,))["mrr"] for example in test]))

    rank = Popularity.of_interactions(inter, item, test)
    assert mrr(Popularity.of_sequences(reconstruct_sequences(training))) == pytest.approx(of_rows, abs=0.006)
    assert mrr(rank) == pytest.approx(of_interactions, abs=0.006)
    assert mrr(rank) == pytest.approx(known, abs=1.7)
    # with their targets counted again, which would be a leak, popularity only rises
    everything = Popularity.of_interactions(inter, item, [])
    for example in test:
        place = example.candidates.index(example.positive)
        assert everything.scores(example)[place] > rank.scores(example)[place]


def test_popularity_of_films_is_what_pandas_counts(mini: Path, real_raw: Path) -> None:
    inter = pd.read_csv(real_raw / "rec" / "ml-1m.inter", sep="\t", dtype=str)
    item = pd.read_csv(real_raw / "rec" / "ml-1m.item", sep="\t", dtype=str).set_index("item_id:token")
    inter["title"] = inter["item_id:token"].map(item["movie_title:token_seq"])
    test = rows_of(mini, "test")["Rec-Movie"]
    shown = {example.history for example in test}
    inter["place"] = inter["position:float"].astype(int)
    inter = inter.sort_values(["user_id:token", "place"])
    began = inter.groupby("user_id:token")["title"].agg(lambda titles: tuple(titles[:20]) in shown)
    kept = inter[~(inter["user_id:token"].map(began) & (inter.groupby("user_id:token").cumcount() >= 20))]
    counts = kept["title"].value_counts()
    assert began.sum() == 40
    rank = Popularity.of_interactions(str(real_raw / "rec" / "ml-1m.inter"), str(real_raw / "rec" / "ml-1m.item"), test)
    for example in test:
        assert rank.scores(example) == [counts.get(name, 0) for name in example.candidates]
