"""Settings of an experiment: texts are kept as they stand, and what cannot work is refused before anything is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_overrides import NAMES

from r1ranker.errors import UserError
from r1ranker.experiments import run
from r1ranker.experiments.run import run_experiment
from r1ranker.experiments.spec import keep_experiment, load_experiment
from r1ranker.experiments.training import training_config
from r1ranker.quickstart import quickstart
from r1ranker.trainer.sft import SFTSettings


@pytest.mark.parametrize(
    ("override", "key", "found"),
    [
        ("data.source=/d/[a] b", "source", "/d/[a] b"),
        ("data.source=/d/a #1", "source", "/d/a #1"),
        ("data.source=/home/Jürgen/dt=1", "source", "/home/Jürgen/dt=1"),
        ("data.source=1e3", "source", "1e3"),
        ("data.source='1e3'", "source", "1e3"),
        ("data.source={a", "source", "{a"),
        ("data.limit=3", "limit", 3),
        ("data.limit=null", "limit", None),
        ("data.tasks=[Rec-Movie]", "tasks", ["Rec-Movie"]),
    ],
)
def test_a_text_of_an_experiment_is_taken_as_it_stands(override: str, key: str, found: object) -> None:
    assert getattr(load_experiment("rec_movie", ["data.source=x", override]).data, key) == found


@pytest.mark.parametrize("override", ["data.limit=[", "steps=x", "stepps=3", "data.limit", "a.b=1"])
def test_a_mistake_in_an_experiments_override_names_it(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment("rec_movie", ["data.source=x", override])
    assert str(caught.value).startswith(f"override {override!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["key", "section", "file"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "1e3"),
        ("data.options.tokenizer", "1e3"),
        ("data.options.pool_sizes", "0x10"),
        ("model.path", "1_000"),
        ("arms.to_routing.model.path", "1e3"),
        ("arms.to_routing.answer_style", "2024-01-02"),
    ],
)
def test_a_text_that_looks_like_something_else_is_kept_wherever_it_stands(
    how: str, key: str, value: str, tmp_path: Path
) -> None:
    first, *rest = key.split(".")
    inner = value
    for name in reversed(rest):
        inner = f"{{{name}: {inner}}}"
    given = [f"{key}={value}"] if how == "key" else [f"{first}={inner}"] if how == "section" else []
    if how == "file":
        first_arm = "" if first == "arms" else "arms: {one: {}}\n"
        (tmp_path / "own.yaml").write_text(f"title: own\n{first_arm}{first}: {inner}\n")
    found: Any = load_experiment(str(tmp_path / "own.yaml") if how == "file" else "zero_shot", given)
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.options.recbole=2024", "data.options.recbole: found 2024; a list (a text each) is wanted"),
        ("data.options.recbole=Rec-Movie", "data.options.recbole: found 'Rec-Movie'; a list (a text each) is wanted"),
        ("data.options.seed=x", "data.options.seed: found 'x'; an integer is wanted"),
        ("data.options.users=true", "data.options.users: found True; an integer is wanted"),
        ("data.options={test_share: much}", "data.options.test_share: found 'much'; a number is wanted"),
        ("data.options.merits=1", "data.options.merits: found 1; true or false is wanted"),
        ("data.options.answer_style=index", "data.options: no 'answer_style'"),
        ("arms.to_routing.model.hidden_size=wide", "arms.to_routing.model: Value 'wide'"),
        ("arms.to_routing.model={layers: null}", "arms.to_routing.model: "),
        ("arms.to_routing.model.hiden_size=3", "arms.to_routing.model: Key 'hiden_size' not in 'ModelSpec'"),
    ],
)
def test_values_of_another_type_in_free_sections_are_named_on_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment("zero_shot", [override])
    assert str(caught.value).startswith(f"zero_shot.yaml: {message}")
    assert "\n" not in str(caught.value)


def test_an_arms_override_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    experiment = load_experiment("direct_iterative")
    arm = next(iter(experiment.arms.values()))
    for wrong in ("trainer.experiment_name=数据", "trainer.nope=1", "actor_rollout_ref.rollout.n=1"):
        arm.overrides = [wrong]
        with pytest.raises(UserError, match=r"trainer|rollout\.n"):
            run_experiment(experiment, tmp_path / "out")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=1e3", "1e3: no such model directory"),
        ("arms.to_routing.model={path: ./gone}", "./gone: no such model directory"),
        ("model.path=FILE", "found a file; a model directory is wanted"),
        ("router_data=gone.csv", "router_data: toy/gone.csv: no such file"),
    ],
)
def test_models_and_tables_of_an_experiment_are_looked_for_before_anything_is_made(
    override: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    experiment = load_experiment("zero_shot", [override.replace("FILE", str(tmp_path / "file"))])
    with pytest.raises(UserError, match=re.escape(message)):
        run_experiment(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x\udcff", "x\ny", "x\0"])
def test_an_output_that_data_cannot_be_under_is_refused_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda: run_experiment(load_experiment("zero_shot"), Path(name)), lambda: quickstart(output=name)):
        with pytest.raises(UserError, match=r"^--output: found .* a printable name in UTF-8 is wanted$"):
            call()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_arms_are_trained_under_any_path(tmp_path: Path) -> None:
    experiment = load_experiment("direct_iterative")
    label = next(iter(experiment.arms))
    for name in NAMES:
        config = training_config(experiment, label, 1, f"{name}/base", Path(name), Path(name) / label)
        assert config.data.train_files == f"{Path(name)}/{experiment.arms[label].mode}_ranking/train.parquet"
        assert (config.actor_rollout_ref.model.path, config.output_dir) == (f"{name}/base", f"{Path(name)}/{label}")


def test_the_cold_start_learns_as_the_experiment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[SFTSettings] = []
    monkeypatch.setattr("r1ranker.trainer.sft.fine_tune", lambda *given: asked.append(given[-1]))
    experiment = load_experiment("zero_shot", ["cold_start=7", "sft.lr=5e-5", "sft.dtype=bfloat16", "sft.batch_size=4"])
    run._base(experiment, "untrained", tmp_path, tmp_path, seed=3)
    assert asked == [SFTSettings(steps=7, batch_size=4, lr=5e-5, seed=3, dtype="bfloat16")]
    for wrong in ("sft.lr=fast", "sft.lr=-1", "sft.batch_size=0", "sft.dtype=fp16", "arms.to_routing.teacher=left"):
        with pytest.raises(UserError, match=wrong.split("=")[0].split(".")[-1]):
            load_experiment("zero_shot", [wrong])


def test_an_experiment_of_the_time_of_one_teacher_goes_on(tmp_path: Path) -> None:
    experiment, file = load_experiment("thinking"), tmp_path / "experiment.yaml"
    keep_experiment(experiment, file)
    kept = file.read_text()
    assert "teacher: frequent" in kept
    file.write_text(kept.replace("teacher: null", "teacher: false").replace("teacher: frequent", "teacher: true"))
    keep_experiment(experiment, file)
    assert file.read_text() == kept
