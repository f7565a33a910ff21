"""The nine tasks from their raw sources: what becomes of each row, and that nothing is on both sides of a split."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from r1ranker.data.files.parquet import read_training_rows
from r1ranker.data.files.statistics import TaskStatistics
from r1ranker.data.files.tally import Tally, TaskTally
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.passage import PassageSettings, passage_files, read_passages
from r1ranker.data.sources.ranking_bench import CONFIGS, read_ranking_bench
from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS, RecommendationSettings, read_recommendation
from r1ranker.data.sources.routing import LLMS, RoutingQuery, best_llm, read_descriptions, read_routing
from r1ranker.data.sources.toy_raw import write_toy_raw
from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError
from r1ranker.pretrained import load_tokenizer
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.catalog import TASK_NAMES, get_task
from r1ranker.tasks.example import RankingExample


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("raw")
    write_toy_raw(str(directory))
    return directory


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    prepare(PrepareOptions(str(raw), str(directory)))
    return directory


@pytest.fixture(scope="module")
def real(real_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real")
    prepare(PrepareOptions(str(real_raw), str(directory), history=["Rec-Music=7"], users=60))
    return directory


def assert_nothing_leaks(bench: Path) -> None:
    for config in CONFIGS:
        sides = []
        for split in ("train", "test"):
            examples = [example for _, example in read_ranking_bench(str(bench), config, split)]  # type: ignore[arg-type]
            sides.append(
                {
                    "requests": {(get_task(e.task).scenario, e.query, e.history) for e in examples},
                    "history and positive": {(e.task, e.history, e.positive) for e in examples if e.history},
                }
            )
            assert {example.task for example in examples} == set(TASK_NAMES)
        for kind in sides[0]:
            assert not sides[0][kind] & sides[1][kind], kind
    direct = {
        task: {example.query for _, example in read_ranking_bench(str(bench), "direct", "test") if example.task == task}
        for task in TASK_NAMES
        if task.startswith("Router-")
    }
    assert direct["Router-Performance"] == direct["Router-Balance"] == direct["Router-Cost"]


def test_no_request_is_on_both_sides(built: Path) -> None:
    assert_nothing_leaks(built / "bench")


def test_no_request_of_the_real_sources_is_on_both_sides(real: Path) -> None:
    assert_nothing_leaks(real / "bench")


def test_real_sources_and_the_prepared_sample_load_through_the_same_code(real: Path, mini: Path) -> None:
    for config in CONFIGS:
        ours = pq.ParquetFile(real / "bench" / config / "train.parquet").schema_arrow
        theirs = pq.ParquetFile(mini / config / "train.parquet").schema_arrow
        assert set(ours.names) == {*theirs.names, "subject"}
        tasks = [Counter(e.task for _, e in read_ranking_bench(str(d), config, "test")) for d in (real / "bench", mini)]
        assert set(tasks[0]) == set(tasks[1]) == set(TASK_NAMES)
    sizes = {e.task: len(e.candidates) for _, e in read_ranking_bench(str(real / "bench"), "direct", "train")}
    assert sizes == {e.task: len(e.candidates) for _, e in read_ranking_bench(str(mini), "direct", "train")}


@pytest.mark.parametrize("which", ["built", "real"])
def test_pools_hold_no_name_twice_and_the_iterative_rows_are_one_of_each_size(
    which: str, request: pytest.FixtureRequest
) -> None:
    bench = request.getfixturevalue(which) / "bench"
    direct: dict[tuple, list[RankingExample]] = {}
    for _, example in read_ranking_bench(str(bench), "direct", "train"):
        assert len({normalise(name) for name in example.candidates}) == len(example.candidates)
        if example.history:
            assert not {*map(normalise, example.history)} & {*map(normalise, example.candidates)}
        direct.setdefault((example.task, example.query, example.history), []).append(example)
    sizes: dict[tuple, Counter[int]] = {}
    for _, example in read_ranking_bench(str(bench), "iterative", "train"):
        asked = direct[example.task, example.query, example.history]
        (whole,) = [one for one in asked if {*example.texts} <= {*one.texts}][:1]
        assert {*example.candidates} <= {*whole.candidates}
        assert example.positive == whole.positive
        sizes.setdefault((whole.task, whole.query, whole.history, whole.texts), Counter())[len(example.candidates)] += 1
    for (task, *_), found in list(sizes.items())[:50]:
        most = next(len(asked[0].candidates) for (of, *_), asked in direct.items() if of == task)
        assert found == Counter(range(2, most + 1))


def test_users_get_their_first_titles_in_order_of_time(raw: Path) -> None:
    """Against pandas doing the same on the files."""
    name = RECBOLE_DATA_SETS["Rec-Movie"]
    inter, item = raw / "rec" / f"{name}.inter", raw / "rec" / f"{name}.item"
    tally = TaskTally()
    settings = RecommendationSettings(history=10, candidates=6, users=1000)
    examples = {
        one.key: one.example for one in read_recommendation("Rec-Movie", str(inter), str(item), settings, tally)
    }
    rows = pd.read_csv(inter, sep="\t", dtype={"item_id:token": str})
    titles = pd.read_csv(item, sep="\t", dtype=str, keep_default_na=False).set_index("item_id:token")["title:token_seq"]
    titles = titles[(titles != "") & (titles.str.len() <= 200)].str.replace("&amp;", "&")
    rows["form"] = rows["item_id:token"].map(titles).str.casefold()
    known = rows.dropna(subset="form").sort_values("timestamp:float", kind="stable")
    taken = known.drop_duplicates(["user_id:token", "form"]).groupby("user_id:token")["form"].apply(list)
    expected = {user: forms for user, forms in taken.items() if len(forms) > 10}
    assert set(examples) <= set(expected)
    assert len(expected) - len(examples) == tally.left_out["users with the same history and next item as another"] > 0
    for user, example in examples.items():
        assert [name.casefold() for name in example.history] == expected[user][:10]
        assert example.positive.casefold() == expected[user][10]
        assert not {name.casefold() for name in example.candidates} & (set(expected[user]) - {expected[user][10]})
    assert tally.left_out["interactions with an item that has no title"] == rows["form"].isna().sum() > 0
    assert tally.noted["users whose order rests on equal timestamps"] > 0
    assert tally.left_out["users with 10 titles or fewer"] == len(taken) - len(expected) > 0


def test_users_are_drawn_by_the_seed_and_keep_their_pool_whoever_else_there_is(raw: Path) -> None:
    name = RECBOLE_DATA_SETS["Rec-Game"]
    files = (str(raw / "rec" / f"{name}.inter"), str(raw / "rec" / f"{name}.item"))

    def read(users: int, seed: int = 42) -> dict:
        settings = RecommendationSettings(history=8, candidates=5, users=users, seed=seed)
        return {one.key: one.example for one in read_recommendation("Rec-Game", *files, settings, TaskTally())}

    few, many = read(10), read(1000)
    assert len(few) == 10
    assert read(10) == few
    assert set(read(10, seed=7)) != set(few)
    assert all(many[user] == example for user, example in few.items())


def test_positions_spread_over_a_users_sequence_and_the_first_is_the_one_of_a_single_position(raw: Path) -> None:
    name = RECBOLE_DATA_SETS["Rec-Game"]
    files = (str(raw / "rec" / f"{name}.inter"), str(raw / "rec" / f"{name}.item"))

    def read(history: int, positions: int) -> dict[str, list[RankingExample]]:
        settings = RecommendationSettings(history, candidates=5, users=0, positions=positions)
        found: dict[str, list[RankingExample]] = {}
        for one in read_recommendation("Rec-Game", *files, settings, TaskTally()):
            found.setdefault(one.key, []).append(one.example)
        return found

    one, four, every = read(8, 1), read(8, 4), read(8, 1000)
    assert one == {user: rows[:1] for user, rows in four.items()} == {user: rows[:1] for user, rows in every.items()}
    for user, rows in every.items():
        sequence = [*rows[0].history, *(row.positive for row in rows)]  # all that the user took
        assert len(set(sequence)) == len(sequence) > 8
        targets = [sequence.index(row.positive) for row in four[user]]
        assert len(targets) == min(4, len(rows))
        gaps = np.diff([*targets, len(sequence)])
        assert targets[0] == 8
        assert gaps.max() - gaps.min() <= 1
        for row in four[user]:
            place = sequence.index(row.positive)
            assert list(row.history) == sequence[place - 8 : place]
            assert {*row.candidates} & {*sequence} == {row.positive}
    assert len({row.candidates for rows in four.values() for row in rows}) == sum(map(len, four.values()))


def test_all_rows_of_a_user_are_on_one_side(real_raw: Path, tmp_path: Path) -> None:
    """On ml-100k, whose timestamps order each user's films; users are told from the files, not from the rows' subjects."""
    options = PrepareOptions(
        str(real_raw), str(tmp_path), tasks=["Rec-Movie"], users=150, positions=4, recbole=["Rec-Movie=ml-100k"]
    )
    prepare(options)
    inter = pd.read_csv(real_raw / "rec" / "ml-100k.inter", sep="\t", dtype={"item_id:token": str})
    item = pd.read_csv(real_raw / "rec" / "ml-100k.item", sep="\t", dtype=str).set_index("item_id:token")
    inter["form"] = inter["item_id:token"].map(item["movie_title:token_seq"]).map(normalise)
    inter = inter.sort_values("timestamp:float", kind="stable").drop_duplicates(["user_id:token", "form"])
    windows: dict[tuple[str, ...], set[int]] = {}
    for user, forms in inter.groupby("user_id:token")["form"].agg(tuple).items():
        for end in range(21, len(forms) + 1):
            windows.setdefault(forms[end - 21 : end], set()).add(int(user))
    users, subjects = [], set()
    for split in ("train", "test"):
        rows = [e for _, e in read_ranking_bench(str(tmp_path / "bench"), "direct", split)]  # type: ignore[arg-type]
        taker = [windows[tuple(map(normalise, (*row.history, row.positive)))] for row in rows]
        found = Counter(user for takers in taker for user in takers)
        subjects |= {(row.subject, *takers) for row, takers in zip(rows, taker, strict=True)}
        assert len(rows) == sum(found.values())
        assert max(found.values()) == 4
        users.append(set(found))
    assert not users[0] & users[1]
    assert [len(one) for one in users] == [120, 30]
    assert len(subjects) == len({subject for subject, *_ in subjects}) == 150  # a subject is a user


def test_a_query_is_one_subject_in_all_its_tasks_and_a_user_another_in_each_data_set(raw: Path, tmp_path: Path) -> None:
    prepare(PrepareOptions(str(raw), str(tmp_path), users=0, positions=2, history=["8"], candidates=5))
    subjects: dict[str, dict[str, set[str]]] = {}
    for config in ("direct", "iterative"):
        for split in ("train", "test"):
            for _, row in read_ranking_bench(str(tmp_path / "bench"), config, split):  # type: ignore[arg-type]
                subjects.setdefault(row.task, {}).setdefault(row.query or row.subject, set()).add(row.subject)
    assert len(subjects) == 9
    assert all(len(found) == 1 for of in subjects.values() for found in of.values())
    routing = [of for task, of in subjects.items() if task.startswith("Router-")]
    assert routing[0] == routing[1] == routing[2]
    passages = {
        query: found for task in ("Passage-5", "Passage-7", "Passage-9") for query, found in subjects[task].items()
    }
    assert all(
        subjects[task][query] == passages[query] for task in subjects if "Passage" in task for query in subjects[task]
    )
    films, games = subjects["Rec-Movie"], subjects["Rec-Game"]
    assert films
    assert games
    assert not set(films) & set(games)  # both files call their users u0, u1, ...


def test_test_rows_of_a_user_and_sizes_of_pools_are_bounded(raw: Path, tmp_path: Path) -> None:
    def rows(name: str, config: str, split: str, **options: Any) -> list[RankingExample]:
        if not (tmp_path / name).exists():
            chosen = {"tasks": ["Rec-Game"], "users": 0, "positions": 4, "history": ["8"], "candidates": 5}
            prepare(PrepareOptions(str(raw), str(tmp_path / name), **(chosen | options)))  # type: ignore[arg-type]
        return [one for _, one in read_ranking_bench(str(tmp_path / name / "bench"), config, split)]  # type: ignore[arg-type]

    every, few = rows("all", "direct", "test"), rows("few", "direct", "test", test_rows=2, pool_sizes="2-3")
    assert rows("few", "direct", "train") == rows("all", "direct", "train")
    assert 0 < len(few) < len(every)
    assert set(few) < set(every)
    kept = [one in few for one in every]
    assert sum(kept[:4]) == sum(kept[4:8]) == 2  # a user's four rows stand together
    pools = [one for one in rows("all", "iterative", "train") if len(one.candidates) in (2, 3)]
    assert rows("few", "iterative", "train") == pools
    for text in ("1-3", "3-2", "3", "a-b"):
        with pytest.raises(UserError, match=r"--pool-sizes: found .*; LOW-HIGH is wanted, from 2, such as 2-4"):
            prepare(PrepareOptions(str(raw), str(tmp_path / "no"), pool_sizes=text))


def test_training_requests_can_have_several_pools(raw: Path, tmp_path: Path) -> None:
    def rows(pools: int, config: str, split: str) -> list[RankingExample]:
        if not (tmp_path / str(pools)).exists():
            chosen = {
                "tasks": ["Rec-Game"],
                "users": 0,
                "positions": 4,
                "history": ["8"],
                "candidates": 5,
                "test_rows": 2,
            }
            prepare(PrepareOptions(str(raw), str(tmp_path / str(pools)), pools=pools, **chosen))  # type: ignore[arg-type]
        return [one for _, one in read_ranking_bench(str(tmp_path / str(pools) / "bench"), config, split)]  # type: ignore[arg-type]

    for config in ("direct", "iterative"):
        assert rows(3, config, "test") == rows(1, config, "test")
        assert len(rows(3, config, "train")) == 3 * len(rows(1, config, "train")) > 0
    one, three = rows(1, "direct", "train"), rows(3, "direct", "train")
    assert three[::3] == one
    for first, *more in zip(three[::3], three[1::3], three[2::3], strict=True):
        for other in more:
            assert (other.history, other.positive) == (first.history, first.positive)
            assert not set(other.candidates) & set(other.history)
            assert len(set(other.candidates)) == 5
    pools = [(row.history, row.positive, tuple(sorted(row.candidates))) for row in three]
    assert len(set(pools)) > 0.9 * len(pools)
    with pytest.raises(UserError, match="--pools: found 0; at least 1 is wanted"):
        prepare(PrepareOptions(str(raw), str(tmp_path / "no"), pools=0))


def test_another_recbole_data_set_can_stand_in_for_the_published_one(raw: Path, tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for kind in ("inter", "item"):
        text = (raw / "rec" / f"{RECBOLE_DATA_SETS['Rec-Movie']}.{kind}").read_text()
        (films / f"ml-small.{kind}").write_text(text)
    with pytest.raises(UserError, match=r"no ml-1m\.inter; .* --recbole Rec-Movie=NAME for one of ml-small\)$"):
        prepare(PrepareOptions(str(films), str(out), tasks=["Rec-Movie"]))
    for recbole, expected in (
        ("Rec-Movie=ml-2", r"no ml-2\.inter"), ("ml-small", "TASK=NAME"), ("Rec-Movie=../x", "TASK=NAME"),
        ("Router-Cost=ml-small", "has no history"), ("Rec-Game=ml-small", "not among the tasks"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            prepare(PrepareOptions(str(films), str(out), tasks=["Rec-Movie"], recbole=[recbole]))
    prepare(PrepareOptions(str(films), str(out), tasks=["Rec-Movie"], recbole=["Rec-Movie=ml-small"], users=0))
    prepare(PrepareOptions(str(raw), str(tmp_path / "usual"), tasks=["Rec-Movie"], users=10**6))
    for split in ("train", "test"):
        assert pq.read_table(out / "bench" / "direct" / f"{split}.parquet").equals(
            pq.read_table(tmp_path / "usual" / "bench" / "direct" / f"{split}.parquet")
        )
    assert "Rec-Movie: ml-small.inter, ml-small.item. Under its own terms" in (out / "bench" / "README.md").read_text()


def test_equal_merits_go_to_the_cheaper_llm_then_by_name() -> None:
    def best(effects: list[float], costs: list[float], a: float = 1.0, b: float = 0.0) -> tuple[str, bool]:
        return best_llm(RoutingQuery("q", ("c", "b", "a"), tuple(effects), tuple(costs)), a, b)

    assert best([1, 1, 0], [0.5, 0.2, 0.0]) == ("b", True)
    assert best([1, 1, 1], [0.2, 0.2, 0.3]) == ("b", True)
    assert best([0.3, 0.1 + 0.2, 0.0], [0.2, 0.1, 0.0]) == ("b", True)  # equal but for rounding
    assert best([1, 0.9, 0.0], [1.0, 0.0, 0.0], 0.5, 0.5) == ("b", False)
    assert best([1, 0.0, 0.0], [1.0, 0.2, 0.1], 0.2, 0.8) == ("a", False)


def test_routing_labels_are_those_of_pandas(raw: Path) -> None:
    path = raw / "router" / "router_data.csv.gz"
    tally = Tally()
    descriptions = str(raw / "router" / "llm_descriptions.json")
    examples = [example for _, example in read_routing(str(path), descriptions, 42, tally)]
    frame = pd.read_csv(path)
    frame = frame[frame["task_id"] != "multi_news"]
    frame["block"] = range(len(frame))
    frame["block"] //= 10
    frame = frame[frame["block"].isin(frame.drop_duplicates("query")["block"])]
    for task, (a, b) in {"Router-Performance": (1, 0), "Router-Balance": (0.5, 0.5), "Router-Cost": (0.2, 0.8)}.items():
        merit = (a * frame["effect"] - b * frame["cost"]).round(9)
        ordered = frame.assign(merit=merit).sort_values(["merit", "cost", "llm"], ascending=[False, True, True])
        expected = ordered.groupby("query")["llm"].first().to_dict()
        assert {example.query: example.positive for example in examples if example.task == task} == expected
        best = merit.groupby(frame["query"]).transform("max")
        tied = (frame[merit == best].groupby("query").size() > 1).sum()
        assert tally.for_task(task).noted["queries whose best LLM was a tie"] >= tied > 0
        assert tally.for_task(task).left_out["queries of multi_news"] == 5
        assert tally.for_task(task).left_out["queries that stand there twice"] > 0
    assert len({example.candidates for example in examples}) > 5  # an order of its own for each query
    assert examples[0].texts[0].startswith("provider ")


def test_without_a_column_llm_ten_rows_are_one_query_in_the_published_order(tmp_path: Path) -> None:
    path = tmp_path / "router_data.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task_id", "query", "effect", "cost"])
        for query in range(3):
            writer.writerows([["quiz", f"q{query}", float(place == query + 4), 0.1] for place in range(10)])
    examples = [one for _, one in read_routing(str(path), None, 1, Tally()) if one.task == "Router-Performance"]
    assert [example.positive for example in examples] == [LLMS[4], LLMS[5], LLMS[6]]
    assert all(sorted(example.candidates) == sorted(LLMS) for example in examples)


def test_descriptions_are_texts_or_facts(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"a": "text", "b": {"feature": "the feature"}, "c": {"price_usd": 3, "who": "x"}}))
    assert read_descriptions(str(path)) == {"a": "text", "b": "the feature", "c": "price usd 3, who x"}


def test_passages_are_counted_and_left_out_for_one_reason_each(raw: Path) -> None:
    tally = Tally()
    rows = list(read_passages(passage_files(str(raw / "passage")), PassageSettings(), tally))
    for _, _, example in rows:
        place = example.candidates.index(example.positive)
        number = int(example.query.split()[1]) if example.query.startswith("question") else None
        if number is not None:
            number %= 400
            selected = number % len(example.candidates)
            assert example.texts[place].startswith(f"Text {selected} on")  # the text went with its label
    for task in ("Passage-5", "Passage-7", "Passage-9"):
        counts = tally.for_task(task)
        kept = sum(example.task == task for _, _, example in rows)
        assert kept + sum(counts.left_out.values()) == sum(counts.read.values())
    reasons = sum((tally.for_task(task).left_out for task in tally.tasks), Counter())
    assert reasons["rows over 2,600 characters of passages"] > 0
    assert reasons["rows with a passage twice"] > 0
    assert reasons["rows without exactly one selected passage"] > 0
    assert reasons["training rows whose query is in the test rows"] == 1
    few = list(read_passages(passage_files(str(raw / "passage")), PassageSettings(rows=16), Tally()))
    assert Counter((split, one.task) for _, split, one in few)["test", "Passage-5"] == 16 // 4


def test_each_script_builds_its_task_alone(raw: Path, tmp_path: Path) -> None:
    for task in ("Rec-Music", "Router-Cost", "Passage-7"):
        prepare(PrepareOptions(str(raw), str(tmp_path / task), tasks=[task]))
        found = {e.task for _, e in read_ranking_bench(str(tmp_path / task / "bench"), "direct", "train")}
        assert found == {task}


def test_prompts_are_measured_in_a_tokenizers_tokens(raw: Path, tiny_model: str, tmp_path: Path) -> None:
    options = PrepareOptions(
        str(raw), str(tmp_path), tasks=["Passage-5", "Router-Cost"], tokenizer=tiny_model, max_prompt_length=700
    )
    prepare(options)
    tokenizer = load_tokenizer(tiny_model)
    files = [str(tmp_path / "direct_ranking" / f"{split}.parquet") for split in ("train", "test")]
    lengths: dict[str, list[int]] = {}
    for row in read_training_rows(files):
        lengths.setdefault(row["extra_info"]["task_name"], []).append(len(encode_chat(tokenizer, row["prompt"])))
    card = (tmp_path / "direct_ranking" / "README.md").read_text()
    for task, found in lengths.items():
        over = np.mean([length > 700 for length in found])
        shown = f"| {np.median(found):,.0f} | {np.percentile(found, 99):,.0f} | {over:.1%} |"
        assert re.search(rf"^\| {task} \| direct \|.*{re.escape(shown)}", card, re.MULTILINE), shown
    assert "over 700" in card


def test_the_spread_of_positives_is_a_chi_square_test() -> None:
    even, first = TaskStatistics(), TaskStatistics()
    for number in range(100):
        even.add(5, number % 5)
        first.add(5, 0 if number % 2 else number % 5)
    assert even.position_p_value() == 1.0
    observed = [first.places[place] for place in range(5)]
    assert first.position_p_value() == pytest.approx(chisquare(observed).pvalue)
    assert first.position_p_value() < 1e-6
    mixed = TaskStatistics()  # as iterative rows: each place as likely as the pool allows
    for size in range(2, 11):
        for number in range(10 * size):
            mixed.add(size, number % size)
    assert mixed.position_p_value() == pytest.approx(1.0)
    assert TaskStatistics().position_p_value() == 1.0


def test_a_missing_source_is_named(raw: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    with gzip.open(only / "router_data.csv.gz", "wt") as file:
        file.write("task_id,query,llm,effect,cost\nquiz,q,a,1,0\nquiz,q,b,0,0\nquiz,r,a,1,0\nquiz,r,b,0,0\n")
    with pytest.raises(UserError, match=r"no ml-1m.inter; it is wanted for Rec-Movie"):
        prepare(PrepareOptions(str(only), str(tmp_path / "out")))
    prepare(PrepareOptions(str(only), str(tmp_path / "out"), tasks=["Router-Cost"]))
    assert not (tmp_path / "out" / "bench" / "tasks.yaml").exists()


def test_a_history_that_nobody_has_says_so(raw: Path, tmp_path: Path) -> None:
    options = PrepareOptions(str(raw), str(tmp_path / "out"), tasks=["Rec-Movie"], history=["Rec-Movie=40"])
    with pytest.raises(UserError, match="no user has more than 40 titles"):
        prepare(options)
    assert not (tmp_path / "out").exists()
