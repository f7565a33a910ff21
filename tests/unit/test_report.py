"""The report: what it reads, what it refuses, and that text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_inputs import interval, result, two_of_each, write_json, write_run

from r1ranker.errors import UserError
from r1ranker.evaluation.identity import short_names
from r1ranker.report import write_report
from r1ranker.report.entries import assign_task_ids, make_entries
from r1ranker.report.figure import distinct, label
from r1ranker.report.load import Result, Run, load_inputs
from r1ranker.report.page import build, escape_json

HOSTILE = "</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    return two_of_each(tmp_path)


def test_a_directory_is_searched_and_each_file_is_taken_once(inputs: list[str], tmp_path: Path) -> None:
    write_json(tmp_path / "runs" / "first" / "actor" / "config.json", {"model_type": "qwen2"})
    write_json(tmp_path / "a.timing.json", {"queries": 3, "seconds": 1.5})
    runs, results = load_inputs([str(tmp_path), *inputs, str(tmp_path / "runs" / "first" / "metrics.jsonl")])
    assert [run.file.parent.name for run in runs] == ["first", "second"]
    assert [found.file.name for found in results] == ["a.json", "b.json"]
    assert [row["step"] for row in runs[1].rows] == list(range(21))
    first = results[0].tasks["Rec-Movie"]
    raw = json.loads((tmp_path / "a.json").read_text())["tasks"]["Rec-Movie"]
    assert (first.queries, first.metrics["mrr"].mean, first.strict["mrr"].low) == (12, 0.5, pytest.approx(0.4))
    assert first.costs == {"valid_answer_rate": 0.875, "calls_per_query": 4.0}
    assert [list(ranked.ranking) for ranked in first.rankings] == [row["ranking"] for row in raw["rankings"]]
    assert first.rankings[0].out_in_round == raw["rankings"][0]["out_in_round"]


def test_a_result_with_nothing_but_metrics_is_read(tmp_path: Path) -> None:
    old = {"model": "m", "tasks": {"Rec-Movie": {"metrics": {"mrr": {"mean": 0.5}}}}}
    runs, (found,) = load_inputs([write_json(tmp_path / "old.json", old)])
    assert not runs
    assert found.pooled is None
    assert found.tasks["Rec-Movie"].metrics["mrr"].low is None
    assert found.tasks["Rec-Movie"].rankings == ()


BAD = {
    "nothing": ([], "nothing to report on"),
    "no path": (["nowhere"], "nowhere: no such file or directory"),
    "no file": (["nowhere.json"], "nowhere.json: no such file or directory"),
    "a directory with neither": (["empty"], "empty: holds neither metrics.jsonl nor an evaluation result"),
    "another kind of file": (["notes.txt"], "notes.txt: found a file of another kind"),
    "another kind of JSON": (["other.json"], "other.json: not an evaluation result"),
    "a list": (["list.json"], "list.json: not an evaluation result"),
    "broken JSON": (["a/broken.json"], "broken.json, line 2: broken JSON"),
    "broken JSON in a directory": (["."], "a/broken.json, line 2: broken JSON"),
    "not text": (["binary.json"], "binary.json: not UTF-8 text (byte 0)"),
    "brackets without end": (["deep.json"], "deep.json: JSON that cannot be read"),
    "a broken line": (["cut.jsonl"], "cut.jsonl, line 3: broken JSON"),
    "a line that is no object": (["row.jsonl"], "row.jsonl, line 1: found [1]; an object is wanted"),
    "a line with text": (["text.jsonl"], 'text.jsonl, line 1.loss: found "high"; a number is wanted'),
    "a line without step": (["stepless.jsonl"], "stepless.jsonl, line 2: found step None"),
    "half a step": (["half.jsonl"], "half.jsonl, line 1: found step 0.5"),
    "no mean": (["mean.json"], "mean.json: tasks.T.metrics.mrr.mean: found null; a number is wanted"),
    "rankings of another kind": (["rank.json"], "rank.json: tasks.T.rankings[0].ranking[1]: found 7; text is wanted"),
    "an empty ranking": (["blank.json"], "blank.json: tasks.T.rankings[0].ranking: found none"),
    "half a round": (["round.json"], "round.json: tasks.T.rankings[0].out_in_round.a: found 1.5"),
    "a grade below 0": (["grade.json"], "grade.json: tasks.T.rankings[0].grades.a: found -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def ranked(**fields: Any) -> dict[str, Any]:
        return {"model": "m", "tasks": {"T": {"rankings": [{"ranking": ["a", "b"], **fields}]}}}

    (tmp_path / "empty").mkdir()
    (tmp_path / "a").mkdir()
    for name, content in {
        "notes.txt": "notes",
        "other.json": '{"tasks": {}}',
        "list.json": "[]",
        "a/broken.json": '{"model": "m",\n"tasks": {',
        "deep.json": "[" * 100_000,
        "cut.jsonl": '{"step": 1}\n\n{"step": 2, "loss',
        "row.jsonl": "[1]\n",
        "text.jsonl": '{"step": 1, "loss": "high"}\n',
        "stepless.jsonl": '{"step": 1}\n{"loss": 1}\n',
        "half.jsonl": '{"step": 0.5}\n',
        "mean.json": json.dumps({"model": "m", "tasks": {"T": {"metrics": {"mrr": {"low": 1}}}}}),
        "rank.json": json.dumps(ranked(ranking=["a", 7])),
        "blank.json": json.dumps(ranked(ranking=[])),
        "round.json": json.dumps(ranked(out_in_round={"a": 1.5})),
        "grade.json": json.dumps(ranked(grades={"a": -1, "b": 1})),
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.rglob("*"))
    given, message = BAD[case]
    with pytest.raises(UserError) as caught:
        write_report(given, str(tmp_path / "out" / "report.html"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_is_an_input_or_a_directory_is_refused(inputs: list[str], tmp_path: Path) -> None:
    kept = Path(inputs[2]).read_bytes()
    with pytest.raises(UserError, match="is one of the inputs"):
        write_report(inputs, str(tmp_path / "runs" / ".." / "a.json"))
    with pytest.raises(UserError, match="is a directory"):
        write_report(inputs, str(tmp_path / "runs"))
    assert Path(inputs[2]).read_bytes() == kept


def test_the_same_input_gives_the_same_bytes(inputs: list[str], tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report(inputs, str(tmp_path / "out" / name))
    assert (tmp_path / "out" / "one.html").read_bytes() == (tmp_path / "out" / "two.html").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.html", "two.html"]


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names([["/x/mini/direct", "/x/mini/ppo"], ["x/mini/direct/actor", "mini/base"]]) == [
        ["direct", "ppo"],
        ["direct", "base"],
    ]
    assert short_names([["/x/mini/direct", "/x/full/direct"], ["/x/mini/ppo/actor"]]) == [
        ["mini/direct", "full/direct"],
        ["mini/ppo"],
    ]
    assert short_names([["same", "same"], []]) == [["same", "same"], []]
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a\u200b", "a\u200b\u200b"]


def test_results_of_one_model_are_told_apart_and_a_run_has_its_models_colour() -> None:
    def of(model: str, file: str, **settings: Any) -> Result:
        return Result(Path(file), model, "", {"strategy": "iterative", **settings}, {}, None)

    runs = [Run(Path("/r/one/metrics.jsonl"), ()), Run(Path("/r/two/metrics.jsonl"), ())]
    voting = of("r/two/actor", "b.json", elimination={"votes": 5, "eliminate": 1, "top_k": 0})
    named_runs, named = make_entries(runs, [of("r/two/actor", "a.json"), voting, of("m", "c.json"), of("m", "d.json")])
    assert [entry.label for entry in named] == [
        "two · iterative", "two · iterative, votes 5", "m · iterative, c.json", "m · iterative, d.json",
    ]  # fmt: skip
    assert [entry.name for entry in named_runs] == ["one", "two"]
    assert named_runs[1].colour == named[0].colour
    assert len({named_runs[0].colour, *(entry.colour for entry in named)}) == 5


def test_tasks_come_in_the_catalogues_order_then_ones_own(inputs: list[str]) -> None:
    assert assign_task_ids(*load_inputs(inputs)) == {"Rec-Movie": "t0", "Passage-5": "t1", "my own": "t2"}
    run = Run(Path("m"), ({"step": 0, "val-core/a/b/reward/mean": 1.0, "val-aux/c/task/mean": 1.0},))
    assert list(assign_task_ids([run], [])) == ["a/b"]


class Page(HTMLParser):
    """The elements of a page, the text outside of scripts, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        self.text += " "
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(inputs: list[str], directory: Path) -> Page:
    output = directory / "out" / "report.html"
    write_report(inputs, str(output))
    return Page(output.read_text(encoding="utf-8"))


def test_text_of_the_inputs_never_becomes_markup(tmp_path: Path) -> None:
    content = result(f"models/{IMAGE}", HOSTILE, {f"my {HOSTILE}": 4, f"your {IMAGE}": 3})
    content["data"] = f"data {IMAGE}"
    content["settings"][IMAGE] = HOSTILE
    for task in content["tasks"].values():
        task["metrics"] |= {IMAGE: interval(0.5)}
        task["baselines"] |= {f"{HOSTILE}{IMAGE}": {"mrr": interval(0.1)}}
        for row in task["rankings"]:
            renamed = {name: f"{name} {HOSTILE} {IMAGE}" for name in row["ranking"]}
            row["ranking"] = [renamed[name] for name in row["ranking"]]
            row["candidates"] = [renamed[name] for name in row["candidates"]]
            row["positive"] = renamed[row["positive"]]
            row["query"], row["history"], row["thoughts"] = f"query {IMAGE}", [HOSTILE], [f"thought {HOSTILE}\ud800"]
    line = {"step": 1, f"reward/{IMAGE}/mean": 1.0, f"timing_s/{HOSTILE}": 1.0, f"val-core/{IMAGE}/reward/mean": 1.0}
    run = write_run(tmp_path / "<img src=x onerror=alert(3)>", [line, line | {"step": 2}])
    page = page_of([write_json(tmp_path / "r.json", content), run], tmp_path)
    assert not page.all("img")
    assert len(page.all("script")) == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for text in (f"thought {HOSTILE}?", f"query {IMAGE}", f"data {IMAGE}", f"my {HOSTILE}"):
        assert text in page.text
    assert re.search(r"item \d+ " + re.escape(f"{HOSTILE} {IMAGE}"), page.text)
    figures, _, own = page.scripts
    assert "alert(" not in own
    assert "<" not in figures
    drawn = [trace for chart in json.loads(figures).values() for trace in chart["traces"]]
    shown = [text for trace in drawn for text in (trace.get("name", ""), trace.get("hovertemplate", ""))]
    shown += [text for trace in drawn for axis in "xy" for text in trace.get(axis, []) if isinstance(text, str)]
    assert any("&lt;img" in text for text in shown)
    assert not [text for text in shown if re.search(r"<(?!br>|extra></extra>|/extra>)", text)]


def test_only_the_pages_own_scripts_may_run_and_nothing_is_fetched(inputs: list[str], tmp_path: Path) -> None:
    page = page_of(inputs, tmp_path)
    policy = next(
        found["content"] for found in page.all("meta") if found.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert page.all("script")[0]["type"] == "application/json"
    assert page.scripts[1].count("plotly.js v") >= 1
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes)


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_json_in_a_page_is_the_same_value_without_markup(value: Any) -> None:
    written = escape_json(value)
    assert json.loads(written) == value
    assert not set("<>&\u2028\u2029") & set(written)


@given(st.text())
def test_labels_hold_no_markup_and_are_cut_in_front(text: str) -> None:
    assert not set("<>") & set(label(text))
    assert len(label("x" * 50 + "end", 10)) == 10
    assert label("x" * 50 + "end", 10).endswith("end")


def test_tables_and_examples_have_the_files_figures(inputs: list[str], tmp_path: Path) -> None:
    page = page_of(inputs, tmp_path)
    text = " ".join(page.text.split())
    assert "second iterative 50.00 [45.0, 60.0] 40.00 [35.0, 50.0] 87.5% 4 12" in text
    assert "second iterative, strict 45.00 [40.0, 55.0]" in text
    assert "random 30.00 [25.0, 40.0] 20.00 [15.0, 30.0]" in text
    assert "IRanker-3B the paper, other data and a 3B model 34.69 60.98" in text
    assert "Qwen2.5-7B-Instruct direct the paper, other data and a 7B model 16.59 44.57" in text
    examples = [attributes for attributes in page.all("details") if attributes.get("class") == "example"]
    assert len(examples) == 3 * 2 * 6  # tasks, results, three best and three worst
    row = json.loads(Path(inputs[2]).read_text())["tasks"]["Rec-Movie"]["rankings"]
    best = max(row, key=lambda ranked: -ranked["ranking"].index(ranked["positive"]))
    first = f"best, query {row.index(best) + 1} · second · iterative · positive at rank"
    assert first in text
    assert f"out in round candidate thought 1 {best['ranking'][-1]} thought 1 2 {best['ranking'][-2]} thought 2" in text


@pytest.mark.parametrize(
    ("sources", "beside"), [((None, None), True), (("", ""), True), (("toy", ""), True), (("toy", "toy"), False)]
)
def test_the_paper_does_not_stand_beside_the_built_in_world(
    sources: tuple[str | None, ...], beside: bool, tmp_path: Path
) -> None:
    files = []
    for place, source in enumerate(sources):  # files of earlier versions name no source
        content = result(f"m{place}", "direct", {"Rec-Movie": 4}, place) | (
            {} if source is None else {"source": source}
        )
        files.append(write_json(tmp_path / f"{place}.json", content))
    page = page_of(files, tmp_path)
    assert ("the paper" in page.text) is ("arXiv" in page.text) is ("the paper" in page.scripts[0]) is beside
    assert [row for row in page.all("tr") if row.get("class") == "paper"] == [{"class": "paper"}] * 8 * beside


def test_thoughts_that_are_not_one_a_round_stand_by_themselves_and_long_ones_are_cut(tmp_path: Path) -> None:
    content = result("m", "iterative", {"T": 4})
    for row in content["tasks"]["T"]["rankings"]:
        row["thoughts"] = ["first vote", "second vote", "y" * 2000, ""]
    text = page_of([write_json(tmp_path / "r.json", content)], tmp_path).text
    assert text.count("first vote") == 6
    assert "y" * 1500 + " ... (500 more characters in the result file)" in text
    assert "y" * 1501 not in text


def test_empty_inputs_give_a_page_that_says_so(tmp_path: Path) -> None:
    old = {"model": "m", "tasks": {"Rec-Movie": {"metrics": {"mrr": {"mean": 0.5}}}}}
    page = page_of([write_run(tmp_path / "empty", []), write_json(tmp_path / "old.json", old)], tmp_path)
    assert "empty: metrics.jsonl is empty, no step was logged." in page.text
    assert page.text.count("Left out, since the file holds no rankings: m.") == 4
    assert "Left out: no run logged a validation" in page.text
    assert "Left out: no run logged times" in page.text
    assert [attributes["id"] for attributes in page.all("figure")] == ["results-0"]
    page = page_of([str(tmp_path / "empty")], tmp_path)
    assert page.text.count("Left out: no evaluation result was given.") == 4
    page = page_of([str(tmp_path / "old.json")], tmp_path)
    assert "Left out: no training run (metrics.jsonl) was given." in page.text


def test_metrics_that_are_no_numbers_do_not_break_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"step": step, "actor/entropy": math.nan} for step in range(3)])
    page = page_of([run], tmp_path)
    assert "NaN" not in page.scripts[0]
    assert "Entropy (actor/entropy)" in page.text


def test_what_the_first_llms_are_worth_has_a_table_of_its_own(tmp_path: Path) -> None:
    contents = [result(f"runs/{name}", "direct", {"Router-Cost": 3}) for name in ("a", "b")]
    for place, content in enumerate(contents):
        content["tasks"]["Router-Cost"]["routing"] = {
            "objective": {"effect": 0.2, "cost": 0.8},
            "llms": {"best single LLM": f"m {IMAGE}"},
            "systems": {
                "model": {"quality": interval(0.5 + place / 10), "usd_per_1000_queries": interval(1.25)},
                "oracle": {"quality": interval(0.9), "usd_per_1000_queries": interval(0.75)},
                IMAGE: {"quality": interval(0.1)},
            },
        }
    inputs = [write_json(tmp_path / f"{place}.json", content) for place, content in enumerate(contents)]
    page = page_of(inputs, tmp_path)
    assert not page.all("img")
    text = " ".join(page.text.split())
    assert f"merit is 0.2 x quality - 0.8 x cost; best single LLM: m {IMAGE}." in text
    head, *rows = ("a direct 50.00 [45.0, 60.0] 1.25 [1.20, 1.35]", "b direct 60.00 [55.0, 70.0] 1.25 [1.20, 1.35]",
                   "oracle 90.00 [85.0, 100.0] 0.75 [0.70, 0.85]", f"{IMAGE} 10.00 [5.0, 20.0]")  # fmt: skip
    assert " ".join([head, *rows]) in text
    assert "routing" not in {
        attributes.get("id")
        for attributes in page_of(inputs[:0] + two_of_each(tmp_path / "o"), tmp_path).all("section")
    }


def write_rollouts(directory: Path) -> None:
    """Of steps 1 to 8 a group of two answers, thoughts growing, and of three validations a row, as a run writes them."""
    for step in range(1, 9):
        group = [
            {
                "step": step, "row": "iterative_ranking row 3", "input": "which?", "task": "Rec-Movie", "best": "Silent Harbour", "think": True, "turn": 0,
                "output": f"{'x' * step}</think>\n<answer>{HOSTILE if sample else IMAGE}</answer>", "score": float(sample and step > 4),
                "parts": {"valid": float(sample)}, "advantage": [0.25, 0.75] if sample else -0.5, "tokens": 7,
            }
            for sample in range(2)
        ]  # fmt: skip
        write_lines(directory / "rollouts" / f"{step}.jsonl", group)
    for step in (0, 4, 8):
        write_lines(
            directory / "rollouts" / "validation" / f"{step}.jsonl",
            [group[1] | {"step": step, "row": "row 9", "output": f"at {step}"}],
        )


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_answers_in_training_are_shown_over_steps_and_by_group(inputs: list[str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    write_rollouts(run)
    runs, results = load_inputs(inputs)
    report = build(runs, results)
    (over, *groups) = report.answers
    assert [(one.step, one.text) for one in over.rows] == [(0, "at 0"), (4, "at 4"), (8, "at 8")]
    assert [group.rows[0].step for group in groups] == [1, 4, 8]
    assert [[one.advantage for one in group.rows] for group in groups] == [[-0.5, 0.5]] * 3
    thought, unusable, silent = report.sections["rollouts"].figures
    assert thought.traces[0]["y"] == list(range(1, 9))
    assert unusable.traces[0]["y"] == [0.5] * 8
    assert silent.traces[0]["y"] == [1.0] * 4 + [0.0] * 4
    write_report(inputs, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert HOSTILE not in page
    assert IMAGE not in page
    assert page.count("&lt;img src=x onerror=alert(2)&gt;") == 3
    # a line of another kind is named
    (run / "rollouts" / "5.jsonl").write_text('{"step": 5, "score": "high"}\n')
    with pytest.raises(UserError, match=r"5\.jsonl, line 1\.score: found \"high\"; a number is wanted"):
        write_report(inputs, str(tmp_path / "other.html"))
    assert not (tmp_path / "other.html").exists()
