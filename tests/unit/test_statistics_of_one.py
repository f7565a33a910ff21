"""One row, the rows of one user, one seed: a dash or p = 1, no NaN, and no table lost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_results import record, result

from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.records import metrics_of, summarise_systems
from r1ranker.evaluation.results import compare_results, randomisation_test, read_result, result_files
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.evaluation.table import compare_table, format_interval
from r1ranker.experiments.summary import ArmResult, summarise_experiment
from r1ranker.experiments.tables import as_markdown, write_summary
from r1ranker.ranking.metrics import bootstrap_interval, mean_with_interval
from r1ranker.report import write_report
from r1ranker.report.load import load_inputs
from r1ranker.tasks.example import RankingExample

CUTOFFS = (1, 3)


@pytest.mark.parametrize(
    ("first", "second", "subjects"),
    [([1.0], [0.25], None), ([0.5], [0.5], None), ([1.0, 0.5, 1.0], [0.1, 0.2, 0.0], ["u", "u", "u"])],
)
def test_of_one_subject_p_is_1(first: list[float], second: list[float], subjects: list[str] | None) -> None:
    """Both ways to swap differ by as much: Fisher's exact test has p = 2 / 2."""
    assert randomisation_test(first, second, subjects=subjects) == 1.0
    assert bootstrap_interval(first, subjects=subjects) is None
    assert mean_with_interval(first, subjects=subjects) == {"mean": sum(first) / len(first), "low": None, "high": None}


def test_of_two_there_is_what_there_was() -> None:
    assert randomisation_test([1.0, 0.5], [0.5, 0.2]) == 0.5  # ++ and -- of four
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert format_interval({"mean": 0.5, "low": 0.0, "high": 1.0}) == "50.0 [0.0, 100.0]"
    assert format_interval({"mean": 0.5, "low": None, "high": None}) == "50.0 [-]"


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, float):
        yield value


def no_nan(text: str) -> None:
    assert "NaN" not in text
    assert "Infinity" not in text
    assert all(map(math.isfinite, numbers(json.loads(text))))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Data of one's own, whose cut-offs lack 10."""
    rows = [
        {"query": f"request {number}", "candidates": ["a", "b", "c", "d"], "positive": "abcd"[number % 4]}
        for number in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text("name: letters\ngoal: fit\nrequest: '{{ query }}'\ncutoffs: [1, 2]\n")
    options = PrepareOptions(
        str(tmp_path / "rows.jsonl"), str(tmp_path / "data"), template=str(tmp_path / "task.yaml"), think=False, test_share=0.5,
    )  # fmt: skip
    prepare(options)
    return tmp_path / "data" / "bench"


@pytest.mark.parametrize("limit", [1, None])
def test_two_models_on_one_row_and_on_ones_own_data_have_their_table(
    limit: int | None, own: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(tmp_path / name / "run") for name in "xy"]
    for model in models:
        shutil.copytree(tiny_model, model)
    options = EvaluationOptions(
        str(own), limit, output_dir=str(tmp_path / "out"), strategy="direct", constrain="candidates", think=False
    )
    run_evaluation("letters", models, options, trec_dir=str(tmp_path / "trec"))
    printed = capsys.readouterr().out
    assert "ndcg@2" in printed
    assert "p = 1.0000" in printed
    files = result_files(tmp_path / "out")
    assert len(files) == 2
    for file in files:
        no_nan(file.read_text())
    if limit:
        assert "[-]" in printed
        assert read_result(str(files[0]))["pooled"]["metrics"]["mrr"]["low"] is None
    write_report([str(file) for file in files], str(tmp_path / "report.html"))
    assert load_inputs([str(files[0])])[1][0].pooled is not None
    (again, _) = map(read_result, map(str, files))
    assert compare_results(again, again, "ndcg@2")["letters"]["p"] == 1.0


def test_a_table_has_the_cut_off_that_all_tasks_share() -> None:
    for cutoffs, shown in (((3, 10, 20), "ndcg@10"), ((1, 3), "ndcg@3"), ((), None)):
        measured = [metrics_of(record(seed), cutoffs) for seed in range(3)]
        pooled = summarise_systems({"model": measured, "strict": measured, "random": measured}, [record(0)] * 3, 0)
        heads = [str(column.header) for column in compare_table([("m", {"pooled": pooled})]).columns]
        assert heads == ["", "mrr", *([shown] if shown else []), "valid answers"]


def test_an_experiment_on_one_row_and_one_seed_has_its_tables(tmp_path: Path) -> None:
    one = result(range(1))
    measured = [metrics_of(own, CUTOFFS) for own in one["tasks"]["Rec-Movie"]["rankings"]]
    figures = summarise_systems({"model": measured, "strict": measured}, one["tasks"]["Rec-Movie"]["rankings"], 0)
    report = one | {"pooled": figures}
    rows = {"Rec-Movie": [RankingExample("Rec-Movie", ("n0", "n1"), "n0", history=("h",))]}
    baselines = {"order as given": {"mrr": {"Rec-Movie": [1.0]}}}
    arms = [ArmResult(name, "after", [report]) for name in ("one", "other")]
    summary = summarise_experiment("", arms, baselines, rows)
    assert {test["p"] for test in summary["tests"]} == {1.0}
    write_summary(summary, tmp_path)
    no_nan((tmp_path / "summary.json").read_text())
    assert "[-]" in as_markdown(summary)
