"""The report's figures, against the same computed from the rows that they are drawn from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_inputs import interval, metrics, result, two_of_each, write_json, write_run

from r1ranker.report.figure import Figure
from r1ranker.report.load import RankedQuery, load_inputs
from r1ranker.report.page import Report, build
from r1ranker.report.paper import MODELS, TASKS, paper_mrr
from r1ranker.report.queries import best_and_worst, reciprocal_rank
from r1ranker.report.training_figures import running_mean


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    return two_of_each(tmp_path)


@pytest.fixture
def report(inputs: list[str]) -> Report:
    return build(*load_inputs(inputs))


def figure(report: Report, section: str, title: str) -> Figure:
    """The chart of that title."""
    (found,) = [figure for figure in report.sections[section].figures if figure.title == title]
    return found


def traces(figure: Figure, **wanted: str) -> list[dict[str, Any]]:
    """Traces whose meta has these values; `entry` is one of its entries."""
    entry = wanted.pop("entry", None)
    return [
        trace
        for trace in figure.traces
        if all(trace["meta"].get(name) == value for name, value in wanted.items())
        and (entry is None or entry in trace["meta"].get("entries", []))
    ]


def test_every_figure_is_one_that_plotly_takes(report: Report) -> None:
    import plotly.graph_objects as go

    figures = [figure for section in report.sections.values() for figure in section.figures]
    assert {figure.title for figure in figures} >= {"Reward", "Rec-Movie", "MRR by number of candidates"}
    for figure in figures:
        go.Figure(data=figure.traces, layout=figure.layout)  # raises for a key or a value that it does not know


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Reward", "reward/score/mean"),
        ("Reward: task", "reward/task/mean"),
        ("KL to the reference model", "actor/kl_loss"),
        ("Entropy", "actor/entropy"),
        ("Response length, tokens", "response_length/mean"),
        ("Clip fraction of the policy", "actor/pg_clipfrac"),
    ],
)
def test_curves_are_the_lines_of_the_run(report: Report, title: str, metric: str) -> None:
    for entry, steps, seed in (("r0", 60, 0), ("r1", 20, 1)):
        expected = [line[metric] for line in metrics(steps, seed) if metric in line]
        raw, *smooth = traces(figure(report, "training", title), entry=entry)
        assert raw["x"] == list(range(1, steps + 1))
        assert raw["y"] == pytest.approx(expected, rel=1e-4)
        assert len(smooth) == (steps >= 40)
        for trace in smooth:  # windows of three: one before, one after
            means = [np.mean(expected[max(place - 1, 0) : place + 2]) for place in range(steps)]
            assert trace["y"] == pytest.approx(means, rel=1e-4)


def test_a_running_mean_leaves_out_what_is_no_number() -> None:
    found = running_mean([1.0, math.nan, 3.0, math.inf, math.nan, math.nan], 3)
    assert found[:4] == [1.0, 2.0, 3.0, 3.0]
    assert all(map(math.isnan, found[4:]))


def test_curves_that_no_run_has_are_named(report: Report) -> None:
    (sentence,) = report.sections["training"].missing
    assert "Clip fraction of the critic (critic/vf_clipfrac)" in sentence
    assert "Entropy" not in sentence


def test_validation_and_times_are_those_of_the_lines(report: Report) -> None:
    validation = figure(report, "validation", "Rec-Movie")
    assert validation.task == "t0"
    assert [(trace["x"], trace["y"]) for trace in validation.traces] == [
        ([0, 60], [0.25, 0.75]),
        ([0, 20], [0.25, 0.75]),
    ]
    lines = metrics(60)
    names = ["timing_s/testing", "timing_s/gen", "timing_s/update_actor"]
    seconds = [sum(line.get(name, 0.0) for line in lines) for name in names]
    bars = traces(figure(report, "time", "Share of each phase"), entry="r0")
    assert [bar["name"] for bar in bars] == ["testing", "gen", "update_actor"]
    assert [bar["x"][0] for bar in bars] == pytest.approx([100 * own / sum(seconds) for own in seconds], rel=1e-4)
    assert sum(bar["x"][0] for bar in bars) == pytest.approx(100, abs=0.01)
    steps = figure(report, "time", "Step by step: first")
    assert steps.entries == ("r0",)
    assert steps.traces[1]["y"] == pytest.approx([line.get("timing_s/gen", 0.0) for line in lines], rel=1e-4)


def test_bars_are_the_files_figures_with_their_intervals(report: Report) -> None:
    chart = figure(report, "results", "Rec-Movie")
    assert chart.task == "t0"
    model, strict = traces(chart, entry="m0", metric="mrr")[:2]
    assert (model["type"], model["x"]) == ("bar", [50.0])
    assert model["error_x"]["array"] == pytest.approx([10.0])
    assert model["error_x"]["arrayminus"] == pytest.approx([5.0])
    assert (strict["type"], strict["x"], strict["y"]) == ("scatter", [45.0], model["y"])
    baselines = [trace for trace in traces(chart, metric="mrr") if trace["name"] == "random"]
    assert [(trace["x"], trace["meta"]["entries"]) for trace in baselines] == [([30.0], ["m0", "m1"])]
    rows = [trace["y"][0] for trace in chart.traces if trace["type"] == "bar" and trace["meta"]["metric"] == "mrr"]
    assert rows == [
        "second<br>iterative", "base<br>direct", "random", "DRanker-3B<br>the paper", "IRanker-3B<br>the paper",
    ]  # fmt: skip
    assert {trace["meta"]["metric"] for trace in chart.traces} == {"mrr", "ndcg@5"}
    assert "the paper" not in str(figure(report, "results", "my own").traces)
    assert figure(report, "results", "All tasks").task == "all"


def test_baselines_that_differ_say_on_which_data(inputs: list[str], tmp_path: Path) -> None:
    other = result("runs/base", "direct", {"Rec-Movie": 6}) | {"data": "other/bench"}
    other["tasks"]["Rec-Movie"]["baselines"]["random"]["mrr"] = interval(0.2)
    report = build(*load_inputs([inputs[2], write_json(tmp_path / "other.json", other)]))
    (comparison,) = [found for found in report.comparisons if found.title == "Rec-Movie"]
    found = [(system.note, system.entries) for system in comparison.systems if system.kind == "baseline"]
    assert found == [("data/bench", ("m0",)), ("other/bench", ("m1",))]


def test_mrr_by_pool_size_is_that_of_the_rankings(report: Report, inputs: list[str]) -> None:
    chart = figure(report, "pool_size", "MRR by number of candidates")
    raw = json.loads(Path(inputs[2]).read_text())["tasks"]
    values: dict[int, list[float]] = {}
    for task in raw.values():
        for row in task["rankings"]:
            values.setdefault(len(row["ranking"]), []).append(1 / (row["ranking"].index(row["positive"]) + 1))
    every = traces(chart, entry="m0", task="all")[0]
    assert every["x"] == [5, 6]
    assert every["y"] == pytest.approx([100 * np.mean(values[size]) for size in (5, 6)], rel=1e-4)
    assert every["text"] == ["12 queries", "24 queries"]
    drawn = np.random.default_rng(1).choice(values[6], size=(20000, 24)).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert every["error_y"]["array"][1] == pytest.approx(100 * (high - np.mean(values[6])), abs=1)
    assert every["error_y"]["arrayminus"][1] == pytest.approx(100 * (np.mean(values[6]) - low), abs=1)
    (one, chance) = traces(chart, entry="m0", task="t1")
    assert one["x"] == [5]
    assert (chance["name"], chance["y"]) == ("random order", [pytest.approx(45.667)])


def test_positions_ranks_and_rounds_are_counted(report: Report, inputs: list[str]) -> None:
    raw = json.loads(Path(inputs[2]).read_text())["tasks"]
    rows = raw["Rec-Movie"]["rankings"]
    chart = figure(report, "position", "second · iterative")
    assert chart.entries == ("m0",)
    heat, line = traces(chart, task="t0")
    counts = np.zeros((6, 6))
    for row in rows:
        counts[row["ranking"].index(row["positive"]), row["candidates"].index(row["positive"])] += 1
    shown = np.zeros((6, 6))
    found = np.array(heat["z"])
    shown[: len(found), : len(found)] = found
    assert shown.tolist() == counts.tolist()
    ranks = [row["ranking"].index(row["positive"]) + 1 for row in rows]
    places = [row["candidates"].index(row["positive"]) + 1 for row in rows]
    assert line["x"] == sorted(set(places))
    for place, mean in zip(line["x"], line["y"], strict=True):
        own = [rank for rank, other in zip(ranks, places, strict=True) if other == place]
        assert mean == pytest.approx(np.mean(own), rel=1e-4)
    assert np.sum(traces(chart, task="all")[0]["z"]) == 36

    (bars,) = traces(figure(report, "rounds", "second · iterative"), task="t0")
    assert bars["x"][-1] == "kept"
    for name, share in zip(bars["x"], bars["y"], strict=True):
        rank = 1 if name == "kept" else 7 - int(name)
        assert share == pytest.approx(100 * ranks.count(rank) / 12, rel=1e-4)
    assert sum(bars["y"]) == pytest.approx(100, abs=0.01)
    assert report.sections["rounds"].missing == ["Left out, since nothing was eliminated in rounds: base · direct."]


def test_candidates_that_were_not_told_apart_share_their_ranks(tmp_path: Path) -> None:
    ranked = RankedQuery(("a", "b", "c", "d"), "b", unordered=2, candidates=("d", "c", "b", "a"))
    assert reciprocal_rank(ranked) == pytest.approx((1 + 1 / 2) / 2)
    assert reciprocal_rank(RankedQuery(("a", "b", "c"), "c", grades={"b": 1.0, "c": 2.0})) == 1 / 2
    row = {"ranking": ["a", "b", "c", "d"], "positive": "b", "unordered": 2, "candidates": ["d", "c", "b", "a"]}
    content = {"model": "m", "tasks": {"T": {"rankings": [row]}}}
    report = build(*load_inputs([write_json(tmp_path / "r.json", content)]))
    heat, line = traces(figure(report, "position", "m"), task="t0")
    assert [rank[2] for rank in heat["z"]] == [0.5, 0.5, 0.0]
    assert (line["x"], line["y"]) == ([3], [1.5])


def test_the_best_and_the_worst_are_chosen_and_none_twice() -> None:
    rankings = [RankedQuery(tuple("abcdef"), positive) for positive in "cafbeda"]
    best, worst = best_and_worst(rankings, 3)
    assert best == [1, 6, 3]
    assert worst == [2, 4, 5]
    assert best_and_worst(rankings[:4], 3) == ([1, 3, 0], [2])


def test_the_papers_table_has_a_figure_for_each_task() -> None:
    assert len(TASKS) == 9
    for task in TASKS:
        assert set(paper_mrr(task)) == set(MODELS)
    assert paper_mrr("Rec-Movie")["IRanker-3B"] == 34.69
    assert paper_mrr("Router-Cost")["IRanker-3B"] == 30.39
    assert paper_mrr("Router-Balance")["DRanker-3B"] == 13.38
    assert paper_mrr("my own") == {}


def test_what_is_no_number_becomes_a_gap(tmp_path: Path) -> None:
    lines = [{"step": step, "actor/entropy": value} for step, value in enumerate([1.0, math.nan, math.inf, 2.0])]
    report = build(*load_inputs([write_run(tmp_path / "run", lines)]))
    assert figure(report, "training", "Entropy").traces[0]["y"] == [1.0, None, None, 2.0]
