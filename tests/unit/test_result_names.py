"""Names of results: none is written over another, the same evaluation has the same name again, and short ones stay short."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.errors import UserError
from r1ranker.evaluation.identity import about_of, is_same, run_tag, short_names
from r1ranker.evaluation.journal import Journal
from r1ranker.evaluation.names import Unnamed, choose_names
from r1ranker.evaluation.options import EvaluationOptions, name_parts
from r1ranker.evaluation.results import read_result, result_files
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.evaluation.table import print_comparison, print_results
from r1ranker.experiments.spec import load_experiment
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import RankerSettings
from r1ranker.report import write_report


@pytest.fixture(scope="module")
def models(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/run/actor, b/run/actor, x/best and y/best."""
    directory = tmp_path_factory.mktemp("runs")
    for name in ("a/run/actor", "b/run/actor", "x/best", "y/best"):
        shutil.copytree(tiny_model, directory / name)
    return directory


def options(toy: Path, output: Path, **changes: Any) -> EvaluationOptions:
    asked = EvaluationOptions(str(toy / "bench"), 1, output_dir=str(output), strategy="direct", max_tokens=32)
    return replace(asked, constrain="candidates", think=False, **changes)


def held(output: Path) -> dict[str, tuple[str, str]]:
    """Name of each result file -> what it says that it is of."""
    found = {file.name: read_result(str(file)) for file in result_files(output)}
    return {name: (one["model"], one["data"]) for name, one in found.items()}


@pytest.mark.parametrize("names", [("a/run/actor", "b/run/actor"), ("x/best", "y/best")])
@pytest.mark.parametrize("together", [True, False])
def test_models_of_one_last_name_have_results_of_their_own(
    names: tuple[str, str], together: bool, models: Path, toy: Path, tmp_path: Path
) -> None:
    paths = [str(models / name) for name in names]
    asked, trec = options(toy, tmp_path / "out"), str(tmp_path / "trec")
    for _ in range(2):  # the second time each finds its own
        for some in [paths] if together else [[path] for path in paths]:
            found = run_evaluation("Rec-Movie", some, asked, show=together, trec_dir=trec)
            assert [one["model"] for one in found] == some
    bench = str(toy / "bench")
    assert sorted(held(tmp_path / "out").values()) == [(path, bench) for path in paths]
    runs = sorted((tmp_path / "trec").glob("*/*.run"))
    assert [next(one.query_id for one in ir_measures.read_trec_run(str(run))) for run in runs] == ["q1", "q1"]
    tags = {run.read_text().split()[5] for run in runs}
    assert len(tags) == 2
    assert sorted(run.parent.name for run in runs) == [Path(name).stem for name in sorted(held(tmp_path / "out"))]


def test_results_on_other_data_are_kept_apart(models: Path, toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "bench"
    shutil.copytree(toy / "bench", other)
    model = str(models / "x/best")
    for _ in range(2):
        for data in (toy / "bench", other):
            run_evaluation("Rec-Movie", model, options(toy, tmp_path / "out", data=str(data)), show=False)
    found = held(tmp_path / "out")
    assert sorted(found.values()) == sorted([(model, str(toy / "bench")), (model, str(other))])
    assert any("data-other-bench" in name for name in found)


def test_a_model_named_twice_is_evaluated_once(
    models: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(models)
    found = run_evaluation("Rec-Movie", ["x/best", "./x/best/", str(models / "x/best")], options(toy, tmp_path))
    assert [one["model"] for one in found] == [str(models / "x/best")]
    assert "named twice" in capsys.readouterr().err
    assert len(held(tmp_path)) == 1


def test_what_is_named_from_elsewhere_is_not_taken_for_another(
    models: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` here and `run` there are two models; one by two names is one."""
    for place, name in (("a", "run/actor"), ("b", "run/actor"), (".", "b/run/actor"), ("a/run/actor", ".")):
        monkeypatch.chdir(models / place)
        run_evaluation("Rec-Movie", name, options(toy, tmp_path), show=False)
    found = {one[0] for one in held(tmp_path).values()}
    assert found == {str(models / "a/run/actor"), str(models / "b/run/actor")}
    assert len(held(tmp_path)) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "tasks": {}}'])
def test_what_is_no_result_is_not_written_over(text: str, models: Path, toy: Path, tmp_path: Path) -> None:
    run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path / "first"), show=False)
    (name,) = held(tmp_path / "first")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path / "out"), show=False)
    assert (tmp_path / "out" / name).read_text() == text
    assert len(list((tmp_path / "out").glob("*first-1*.json"))) == 3  # with the new one's seconds


@pytest.mark.parametrize("key", ["model", "data", "engine", "seed", "settings"])
def test_a_journal_of_anything_else_is_neither_continued_nor_lost(
    key: str, models: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []
    whole = Journal.__enter__

    def note(self: Journal) -> Journal:
        taken.append(self.path)
        assert not whole(self).done
        return self

    monkeypatch.setattr(Journal, "__enter__", note)
    asked, model = options(toy, tmp_path), str(models / "x/best")
    run_evaluation("Rec-Movie", model, asked, show=False)
    (file,) = result_files(tmp_path)
    about = about_of(read_result(str(file)))
    file.unlink()
    other = {"seed": 7, "settings": about["settings"] | {"temperature": 0.5}}.get(key, "/else/where")
    left = json.dumps(about | {key: other}) + "\n" + json.dumps({"task": "Rec-Movie", "row": 0, "record": {}}) + "\n"
    taken[0].write_text(left)
    run_evaluation("Rec-Movie", model, asked, show=False)
    assert taken[0].read_text() == left
    assert taken[1] != taken[0]


def test_a_journal_that_a_kill_left_empty_is_nobodys(models: Path, toy: Path, tmp_path: Path) -> None:
    run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path), show=False)
    (name,) = held(tmp_path)
    for left in ("", '{"model": "/els'):
        (tmp_path / f"{Path(name).stem}.part.jsonl").write_text(left)
        run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path), show=False)
        assert list(held(tmp_path)) == [name]


def test_grades_that_trec_does_not_take_are_refused_before_anything_is_ranked(
    models: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from r1ranker.evaluation import runner

    def graded(*given: Any) -> Any:
        rows = runner_examples(*given)
        grades = (0.5,) * len(rows["Rec-Movie"][0].candidates)
        return {task: [replace(row, grades=grades) for row in some] for task, some in rows.items()}

    runner_examples = runner.examples_by_task
    monkeypatch.setattr(runner, "examples_by_task", graded)
    monkeypatch.setattr(Ranker, "from_pretrained", None)
    with pytest.raises(UserError, match=r"Rec-Movie: query 1: grade 0.5; TREC's qrels take whole numbers"):
        run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path), trec_dir=str(tmp_path / "trec"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--trec_dir: .*file cannot be written"):
        run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path), trec_dir=str(tmp_path / "file"))


def unnamed(model: str, data: str = "/d", tail: str = "direct", **more: Any) -> Unnamed:
    return Unnamed(about_of({"model": model, "data": data, "tasks": ["T"], "settings": {}, **more}), "T", tail)


def write(directory: Path, one: Unnamed, name: str) -> None:
    (directory / f"{name}.json").write_text(json.dumps({"format": 1, **one.about, "tasks": {"T": {}}}))


def test_names_are_short_where_they_are_alone_and_say_what_differs_where_not(tmp_path: Path) -> None:
    for several, wanted in (
        ([unnamed("/w/a/run/actor")], ["T_run_direct"]),
        ([unnamed("org/model")], ["T_model_direct"]),
        ([unnamed("/w/a/run"), unnamed("/w/b/run"), unnamed("/w/c/other")], ["T_a-run_direct", "T_b-run_direct", "T_other_direct"]),
        ([unnamed("/w/a/run"), unnamed("/w/b/run", tail="iterative")], ["T_run_direct", "T_run_iterative"]),
        ([unnamed("/w/a"), unnamed("/v/a")], ["T_w-a_direct", "T_v-a_direct"]),
        ([unnamed("/w/run"), unnamed("/w/run/actor")], ["T_w-run_direct", "T_run-actor_direct"]),
        ([unnamed("/w/a", "/d/x"), unnamed("/w/a", "/e/x")], ["T_a_direct_data-d-x", "T_a_direct_data-e-x"]),
        ([unnamed("/w/a", engine="hf"), unnamed("/w/a", engine="vllm")], ["T_a_direct_engine-hf", "T_a_direct_engine-vllm"]),
    ):  # fmt: skip
        assert choose_names(several, tmp_path) == wanted
    one, other = unnamed("/w/a", seed=1), unnamed("/w/a", seed=2)
    (first, second) = choose_names([one, other], tmp_path)
    assert first != second
    assert first.startswith("T_a_direct_")
    long = choose_names([unnamed("/w/" + "ü" * 200)], tmp_path)[0]
    assert len(long.encode()) < 230


@settings(max_examples=60)
@given(st.data())
def test_no_two_results_ever_share_a_name_and_each_finds_its_own_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("names")
    part = st.sampled_from(["a", "b", "a-b", "actor", "run"])
    path = st.lists(part, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
    one = st.builds(unnamed, path, path, st.sampled_from(["direct", "iterative"]), seed=st.integers(0, 1))
    calls = data.draw(
        st.lists(st.lists(one, min_size=1, max_size=3, unique_by=lambda one: run_tag(one.about)), max_size=5)
    )
    written: dict[str, Unnamed] = {}
    for several in calls:
        names = choose_names(several, directory)
        assert names == choose_names(several, directory)
        assert len(set(names)) == len(names)
        for own, name in zip(several, names, strict=True):
            assert name not in written or written[name].about == own.about
            written[name] = own
            write(directory, own, name)
        assert choose_names(several, directory) == names


def test_an_earlier_version_said_less(tmp_path: Path) -> None:
    """Its results have neither tasks' list nor engine, and paths as they were given."""
    own = about_of({"model": str(tmp_path), "data": "org/data", "engine": "hf", "settings": {"seed": 0, "new": 1}})
    old = {"model": str(tmp_path), "data": "org/data", "seed": 0, "limit": None, "settings": {"seed": 0}, "tasks": {}}
    assert is_same(about_of(old), own)
    assert not is_same(about_of(old | {"settings": {"seed": 1}}), own)
    assert not is_same({}, own)


def test_the_tasks_stand_in_the_name(tiny_model: str) -> None:
    """Not only their number, where they are few."""
    heads = [
        name_parts(",".join(tasks), tasks, tiny_model, RankerSettings(), EvaluationOptions())[0]
        for tasks in (["Rec-Movie", "Passage-5"], ["Rec-Music", "Passage-7"], ["a" * 30, "b" * 30])
    ]
    assert heads == ["Rec-Movie+Passage-5", "Rec-Music+Passage-7", "2-tasks"]
    plain, beside = (
        name_parts("all", ["T"], tiny_model, RankerSettings(), EvaluationOptions(baselines=some))[1]
        for some in (False, True)
    )
    assert plain != beside


@pytest.mark.parametrize("label", ["base", "eval", "states", "untrained", "a/b", ".."])
def test_an_arm_has_a_directory_of_its_own(label: str, tmp_path: Path) -> None:
    """Not that of the cold start's model, of the results or of the saved states."""
    file = tmp_path / "own.yaml"
    for name in (label, "another"):
        file.write_text(json.dumps({"title": "t", "data": {"source": "toy"}, "arms": {name: {"mode": "direct"}}}))
        if name == label:
            with pytest.raises(UserError, match=r"own.yaml: arms\..*: an arm's directory has its name"):
                load_experiment(str(file))
        else:
            assert list(load_experiment(str(file)).arms) == [name]


def test_systems_of_one_name_are_told_apart_in_tables(
    models: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(models / "a/run/actor")
    for strategy in ("direct", "iterative"):
        run_evaluation("Rec-Movie", model, replace(options(toy, tmp_path), strategy=strategy), show=False)
    files = [str(file) for file in result_files(tmp_path)]
    capsys.readouterr()
    print_comparison(files)
    assert "run direct  run iterative" in capsys.readouterr().out
    for directory in ("one", "two"):  # the same name in two places
        (tmp_path / directory).mkdir()
        shutil.copy(files[0], tmp_path / directory / "same.json")
    print_comparison([str(tmp_path / directory / "same.json") for directory in ("one", "two")])
    assert "run (1)  run (2)" in capsys.readouterr().out
    assert short_names([["/w/run", "/w/run/actor"]]) == [["w/run", "run/actor"]]
    write_report(files, str(tmp_path / "report.html"))


def test_where_results_are_is_said_whatever_becomes_of_the_tables(
    models: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = run_evaluation("Rec-Movie", str(models / "x/best"), options(toy, tmp_path), show=False)
    monkeypatch.setattr("r1ranker.evaluation.table._costs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        print_results([found], ["there.json"])
    assert "every ranking is in there.json" in capsys.readouterr().out


def test_trec_files_of_an_earlier_version_are_its_results_own(toy: Path, models: Path, tmp_path: Path) -> None:
    asked, trec, model = options(toy, tmp_path / "out"), tmp_path / "trec", str(models / "x/best")
    run_evaluation("Rec-Movie", model, asked, show=False, trec_dir=str(trec))
    (run,) = trec.glob("*/*.run")
    new = run.read_text(encoding="utf-8")
    tag = new.split()[5]
    run.write_text(new.replace(tag, "r1ranker"), encoding="utf-8")  # a tag of before
    run_evaluation("Rec-Movie", model, asked, show=False, trec_dir=str(trec))
    assert [file.read_text(encoding="utf-8") for file in trec.glob("*/*.run")] == [new]
    assert len([file for file in (tmp_path / "out").glob("*.json") if not file.name.endswith(".timing.json")]) == 1


def test_what_a_model_is_computed_in_makes_another_result(models: Path, toy: Path, tmp_path: Path) -> None:
    path, loaded = str(models / "x" / "best"), []
    for dtype in ("auto", "bfloat16"):
        (found,) = run_evaluation("Rec-Movie", path, options(toy, tmp_path, dtype=dtype), show=False)
        loaded.append(found["engine"])
        ranker = Ranker.from_pretrained(path, dtype=dtype, constrain="candidates")
        loaded.append(str(next(ranker.engine.model.parameters()).dtype))  # type: ignore[attr-defined]
    assert loaded == ["hf", "torch.float32", "hf-bfloat16", "torch.bfloat16"]
    assert len(result_files(tmp_path)) == 2
