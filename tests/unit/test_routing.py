"""What routing rankings are worth: figures worked out by hand, what the table has to hold, and the real RouterBench rows."""

from __future__ import annotations

import copy
import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.routing import RoutingQuery, merit_grades
from r1ranker.data.sources.toy_raw import write_toy_raw
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.orders import MostFrequentLabel, fit_baselines
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.routing import FixedLLM, RouterTable, routing_baselines, routing_figures, top_candidates
from r1ranker.evaluation.runner import examples_by_task, run_evaluation
from r1ranker.experiments.summary import ArmResult, routing_of
from r1ranker.tasks.example import RankingExample

LLMS = ("small", "large", "coder")
TABLE = {  # query -> (effect, cost, cost_usd) of each LLM
    "train one": ((1, 0.0, 0.001), (1, 1.0, 0.010), (0, 0.5, 0.004)),
    "train two": ((0, 0.0, 0.001), (1, 0.8, 0.010), (0, 0.4, 0.004)),
    "test\n one": ((0, 0.1, 0.001), (1, 0.9, 0.020), (1, 0.3, 0.003)),
    "test two": ((1, 0.0, 0.002), (0, 1.0, 0.030), (0.5, 0.5, 0.005)),
}
COLUMNS = ("task_id", "query", "llm", "effect", "cost", "cost_usd")


def write_table(path: Path, columns: tuple[str, ...] = COLUMNS, without: str = "") -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for query, rows in TABLE.items():
            for llm, row in zip(LLMS, rows, strict=True) if query != without else ():
                writer.writerow(dict(zip(COLUMNS, ("quiz", query, llm, *row), strict=True)))
    return str(path)


def rows(task: str) -> tuple[list[RankingExample], list[RankingExample]]:
    """Training and test rows; a query as prompts show it, and candidates in another order than the table's."""
    best = {"train one": "small", "train two": "large", "test one": "coder", "test two": "small"}
    if task != "Router-Performance":
        best["train two"] = "large" if task == "Router-Balance" else "small"
    every = [RankingExample(task, ("coder", "small", "large"), gold, query=query) for query, gold in best.items()]
    return every[:2], every[2:]


RECORDS: list[dict[str, Any]] = [
    {"ranking": ["small", "large", "coder"], "unordered": 0},
    {"ranking": ["large", "coder", "small"], "unordered": 2},
]


def measured(path: str, task: str) -> dict[str, Any]:
    train, test = rows(task)
    table = RouterTable(path)
    table.check({task: test}, train)
    fitted = routing_baselines(train, task, table)
    first = {
        "model": [top_candidates(record) for record in RECORDS],
        "random": [example.candidates for example in test],
        **{order.name: [order.rank_with_ties(example)[0] for example in test] for order in fitted},
    }
    return routing_figures(test, first, [order for order in fitted if isinstance(order, FixedLLM)], table, 0)


def means(figures: dict[str, Any], system: str) -> dict[str, float]:
    return {name: metric["mean"] for name, metric in figures["systems"][system].items()}


def test_the_worth_of_first_choices_is_what_is_worked_out_by_hand(tmp_path: Path) -> None:
    found = measured(write_table(tmp_path / "r.csv"), "Router-Performance")
    assert found["llms"] == {"best single LLM": "large", "cheapest LLM": "small"}
    expected = {  # quality, cost, merit, dollars, gain
        "model": (0.125, 0.425, 0.125, 9.25, -0.375),  # the second row's first two are not told apart
        "random": (7 / 12, 1.4 / 3, 7 / 12, 61 / 6, 1 / 12),
        "best single LLM": (0.5, 0.95, 0.5, 25.0, 0.0),
        "cheapest LLM": (0.5, 0.05, 0.5, 1.5, 0.0),
        "oracle": (1.0, 0.15, 1.0, 2.5, 0.5),  # of the two that are right, the cheaper
    }
    names = ("quality", "cost", "merit", "usd_per_1000_queries", "gain")
    for system, values in expected.items():
        assert means(found, system) == pytest.approx(dict(zip(names, values, strict=True)))
    quality = found["systems"]["oracle"]["quality"]
    assert (quality["low"], quality["high"]) == (1, 1)
    assert found["systems"]["cheapest LLM"]["quality"]["low"] == 0  # intervals are over queries
    for system, merits in found["merits"].items():
        assert np.mean(merits) == pytest.approx(means(found, system)["merit"])


def test_an_experiment_takes_the_mean_merit_of_seeds_query_by_query_and_tests_it(tmp_path: Path) -> None:
    found = measured(write_table(tmp_path / "r.csv"), "Router-Performance")
    other = copy.deepcopy(found)  # a seed that always chooses as the oracle does
    for part in ("systems", "merits"):
        other[part]["model"] = other[part]["oracle"]
    reports = [{"tasks": {"Router-Performance": {"routing": one}}} for one in (found, other)]
    systems = routing_of([ArmResult("one", "after", reports)])["Router-Performance"]
    model = systems["one, after"]
    assert model["merit"]["mean"] == pytest.approx((0.125 + 1.0) / 2)
    assert model["gain by seed"] == pytest.approx([-0.375, 0.5])
    assert systems["best single LLM"] == found["systems"]["best single LLM"]
    for name, against in (
        ("best single LLM", 0.5),
        ("nearest queries' merits", means(found, "nearest queries' merits")["merit"]),
    ):
        pairs = zip(found["merits"]["model"], found["merits"]["oracle"], found["merits"][name], strict=True)
        gaps = np.array([(mine + oracle) / 2 - opponent for mine, oracle, opponent in pairs])
        flips = [np.mean(gaps * signs) for signs in itertools.product((1, -1), repeat=len(gaps))]
        p = np.mean([abs(flip) >= abs(np.mean(gaps)) - 1e-12 for flip in flips])
        assert model["tests"][name] == pytest.approx({"difference": (0.125 + 1.0) / 2 - against, "p": p})


@pytest.mark.parametrize(
    ("task", "single", "merits"),
    [
        ("Router-Balance", 0.225, {"model": -0.15, "oracle": (0.35 + 0.5) / 2, "random": (0.7 / 3 / 2 + 0.0) / 2}),
        ("Router-Cost", (-0.08 + 0.2) / 2, {"model": (-0.08 + 0.05 - 0.6) / 2, "oracle": (-0.04 + 0.2) / 2}),
    ],
)
def test_the_best_single_llm_is_that_of_the_objective(
    tmp_path: Path, task: str, single: float, merits: dict[str, float]
) -> None:
    found = measured(write_table(tmp_path / "r.csv"), task)
    assert found["llms"]["best single LLM"] == "small"
    assert means(found, "best single LLM")["merit"] == pytest.approx(single)
    for system, merit in merits.items():
        assert means(found, system)["merit"] == pytest.approx(merit)
        assert means(found, system)["gain"] == pytest.approx(merit - single)


def test_neighbours_give_their_mean_merit_and_dollars_may_be_unknown(tmp_path: Path) -> None:
    path = write_table(tmp_path / "r.csv", COLUMNS[:-1])
    train, test = rows("Router-Balance")
    nearest = routing_baselines(train, "Router-Balance", RouterTable(path))[0]
    assert nearest.scores(test[0]) == pytest.approx([(-0.25 - 0.2) / 2, (0.5 + 0) / 2, (0.0 + 0.1) / 2])
    assert "usd_per_1000_queries" not in measured(path, "Router-Balance")["systems"]["model"]


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_query_that_the_table_lacks_is_named(tmp_path: Path, side: str) -> None:
    path = write_table(tmp_path / "r.csv", without=f"{side} two")
    train, test = rows("Router-Cost")
    which = "training" if side == "train" else "test"
    with pytest.raises(UserError, match=rf"r\.csv: no rows of 1 of 2 {which} queries, .* '{side} two'; the file that"):
        RouterTable(path).check({"Router-Cost": test}, train)


def test_tables_and_tasks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train, test = rows("Router-Cost")
    with pytest.raises(UserError, match=r"r\.csv: line 1: no column 'effect'"):
        RouterTable(write_table(tmp_path / "r.csv", ("task_id", "query", "llm", "cost")))
    table = RouterTable(write_table(tmp_path / "r.csv"))
    with pytest.raises(UserError, match="--router_data: found Rec-Movie; one of Router-Performance"):
        table.check({"Rec-Movie": test}, train)
    other = [RankingExample("Router-Cost", ("smal", "large"), "large", query="test two")]
    with pytest.raises(UserError, match="no row of the LLM 'smal' \\(did you mean 'small'"):
        table.check({"Router-Cost": other}, train)
    with pytest.raises(UserError, match="Router-Cost: no training rows"):
        routing_baselines([], "Router-Cost", table)


def test_positives_that_are_not_the_tables_best_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path / "r.csv")
    train, test = rows("Router-Performance")
    equal = RankingExample(
        "Router-Performance", LLMS, "large", query="test one"
    )  # as right as coder, at a higher price
    RouterTable(path).check({"Router-Performance": [*test, equal]}, train)
    assert capsys.readouterr().err == ""
    wrong = RankingExample("Router-Performance", LLMS, "large", query="test two")
    RouterTable(path).check({"Router-Performance": [*test, wrong]}, train)
    assert "1 of 3 test rows have a positive that is not its best LLM" in capsys.readouterr().err


def test_an_evaluation_keeps_what_its_figures_are_computed_from(tmp_path: Path, tiny_model: str) -> None:
    write_toy_raw(str(tmp_path / "raw"))
    prepare(PrepareOptions(str(tmp_path / "raw"), str(tmp_path / "data"), tasks=["Router-Balance"], think=False))
    options = EvaluationOptions(
        str(tmp_path / "data" / "bench"), 6, output_dir=str(tmp_path / "out"), strategy="direct", think=False,
        constrain="candidates", router_data=str(tmp_path / "raw" / "router" / "router_data.csv.gz"),
    )  # fmt: skip
    (result,) = run_evaluation("Router-Balance", tiny_model, options)
    (file,) = (path for path in (tmp_path / "out").iterdir() if "timing" not in path.name)
    task = json.loads(file.read_text())["tasks"]["Router-Balance"]
    assert task == result["tasks"]["Router-Balance"]
    assert {"nearest queries' merits", "best single LLM", "cheapest LLM"} <= task["baselines"].keys()
    worth = []
    for record in task["rankings"]:
        assert record["outcomes"].keys() == set(record["candidates"])
        worth.append(record["outcomes"][record["ranking"][0]])
    model = task["routing"]["systems"]["model"]
    assert model["quality"]["mean"] == pytest.approx(np.mean([one["effect"] for one in worth]))
    assert model["merit"]["mean"] == pytest.approx(np.mean([one["effect"] - one["cost"] for one in worth]) / 2)
    gains = [systems["gain"]["mean"] for systems in task["routing"]["systems"].values()]
    assert max(gains) == task["routing"]["systems"]["oracle"]["gain"]["mean"] >= 0


def test_worth_on_routerbench_is_what_pandas_says(real_raw: Path, tmp_path: Path) -> None:
    """548 of 1,825 queries are held out. The labels favour the cheapest LLM that is right, and so does who goes by them."""
    path = real_raw / "router" / "router_data.csv.gz"
    task = "Router-Performance"
    prepare(PrepareOptions(str(real_raw / "router"), str(tmp_path), think=False, tasks=[task], test_share=0.3))
    train, test = (examples_by_task(str(tmp_path / "bench"), [task], split)[task] for split in ("train", "test"))
    assert (len(train), len(test)) == (1277, 548)
    table = RouterTable(str(path))
    table.check({task: test}, train)
    fixed = [order for order in routing_baselines(train, task, table) if isinstance(order, FixedLLM)]
    first = {
        order.name: [order.rank_with_ties(example)[0] for example in test]
        for order in [*fixed, MostFrequentLabel(train)]
    }
    found = routing_figures(test, first, fixed, table, 0)

    frame = pd.read_csv(path)
    frame["query"] = frame["query"].str.split().str.join(" ")
    held_out = frame[frame["query"].isin({example.query for example in test})]
    assert held_out["query"].nunique() == 548
    trained = frame[~frame["query"].isin({example.query for example in test})].groupby("llm")
    single, cheapest = trained["effect"].mean().idxmax(), trained["cost"].mean().idxmin()
    assert found["llms"] == {"best single LLM": single, "cheapest LLM": cheapest}
    for system, llm in found["llms"].items():
        own = held_out[held_out["llm"] == llm]
        assert means(found, system)["quality"] == pytest.approx(own["effect"].mean())
        assert means(found, system)["usd_per_1000_queries"] == pytest.approx(1000 * own["cost_usd"].mean())
    best = held_out.sort_values(["effect", "cost"], ascending=[False, True]).groupby("query").first()
    assert means(found, "oracle")["quality"] == pytest.approx(best["effect"].mean())
    assert means(found, "oracle")["usd_per_1000_queries"] == pytest.approx(1000 * best["cost_usd"].mean())
    assert means(found, "most frequent label") == means(found, "cheapest LLM")
    assert means(found, "most frequent label")["gain"] < -0.2


def test_with_merits_training_rows_are_graded_by_what_each_llm_is_worth_and_test_rows_are_not(tmp_path: Path) -> None:
    write_table(tmp_path / "router_data.csv")
    tasks = ["Router-Performance", "Router-Balance"]
    prepare(PrepareOptions(str(tmp_path), str(tmp_path / "out"), tasks=tasks, test_share=0.25, merits=True))
    bench = str(tmp_path / "out" / "bench")
    worth = {"Router-Performance": (1.0, 0.0), "Router-Balance": (0.5, 0.5)}
    seen = 0
    for task, rows in examples_by_task(bench, tasks, "train").items():
        a, b = worth[task]
        for row in rows:
            for llm, (effect, cost, _) in zip(LLMS, TABLE.get(row.query, TABLE["test\n one"]), strict=True):
                assert row.grade_of(llm) == pytest.approx((a * effect - b * cost + b) / (a + b))
                seen += 1
    assert seen == 2 * 3 * 3
    plain = str(tmp_path / "plain")
    prepare(PrepareOptions(str(tmp_path), plain, tasks=tasks, test_share=0.25))
    rows, test = (examples_by_task(bench, tasks, split)["Router-Balance"] for split in ("train", "test"))
    ungraded = examples_by_task(f"{plain}/bench", tasks, "train")["Router-Balance"]
    nearest, same = (
        next(one for one in fit_baselines(known, "Router-Balance") if one.name == "nearest queries")
        for known in (rows, ungraded)
    )
    assert nearest.scores(test[0]) == same.scores(test[0])  # it counts positives, graded or not
    for rows in examples_by_task(bench, tasks, "test").values():
        assert [sorted(row.grades) for row in rows] == [[0.0, 0.0, 1.0]]
        assert all(row.grade_of(row.positive) == 1.0 for row in rows)


def test_llms_that_are_worth_the_same_have_the_same_grade_where_none_is_right_too() -> None:
    def grades(*effects: float) -> tuple[float, ...]:
        return merit_grades(RoutingQuery("q", LLMS, effects, (0.1, 0.9, 0.5)), 1.0, 0.0, "file")

    assert grades(1, 1, 1) == (1, 1, 1)
    assert grades(0, 1, 0) == (0, 1, 0)
    assert grades(0, 0, 0) == (1, 1, 1)


def test_merits_want_numbers_from_0_to_1(tmp_path: Path) -> None:
    text = Path(write_table(tmp_path / "router_data.csv")).read_text().replace("large,1,1.0", "large,1,1.5")
    (tmp_path / "router_data.csv").write_text(text)
    options = PrepareOptions(str(tmp_path), str(tmp_path / "out"), tasks=["Router-Cost"], merits=True)
    with pytest.raises(
        UserError, match=r"router_data.csv: cost: found 1.5; numbers from 0 to 1 are wanted with --merits"
    ):
        prepare(options)
    assert not (tmp_path / "out").exists()
