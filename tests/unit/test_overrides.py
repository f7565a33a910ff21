"""Overrides and values of a program: read in hydra's grammar or in none, and refused by the name of what sets them."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_config import PATHS

from r1ranker.errors import UserError
from r1ranker.trainer.config.load import load_config, to_dict, to_yaml

NAMES = [
    "/home/Jürgen's/数据 (dt=2026-01-01), [a] {b: c} #1 ~!$HOME \"q\" %s a\\", " a ", "a,b", "[a]", "1e3", "true", "null", "007", ".5", "1_000",
    "${oc.env:HOME}", "\\${x}\\", "glob(*)", "a\nb\x85",
]  # fmt: skip


def refuse(override: str) -> str:
    """The line that an override is refused with; it names the override and no file."""
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, override])
    message = str(caught.value)
    assert message.startswith(f"override {override!r}: ")
    assert "published.yaml" not in message
    return message


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_what_it_is_whatever_it_holds(name: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data.train_files": [name, f"{name}/b"],
        "data.val_files": f"{name}/test.parquet",
        "actor_rollout_ref.model.path": name,
        "critic.model.path": name,
        "trainer.experiment_name": name,
        "trainer.n_gpus_per_node": 2,
        "trainer.max_actor_ckpt_to_keep": None,
    }
    config = load_config("published", ["trainer.n_gpus_per_node=3"], values=values)
    assert config.data.train_files == [name, f"{name}/b"]
    assert config.data.val_files == f"{name}/test.parquet"
    assert (config.actor_rollout_ref.model.path, config.critic.model.path) == (name, name)
    assert config.output_dir == f"checkpoints/Ranking-FM/{name}"
    assert (config.trainer.n_gpus_per_node, config.trainer.max_actor_ckpt_to_keep) == (
        3,
        None,
    )  # an override comes after
    assert to_dict(config)["trainer"]["experiment_name"] == name
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config("config", config_path=str(tmp_path)) == config


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_that_a_config_looks_up_is_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1RANKER_TEST_NAME", name)
    given = ["trainer.experiment_name=${oc.env:R1RANKER_TEST_NAME}"]
    given += ["data.train_files=${oc.env:R1RANKER_TEST_NAME}/train.parquet"]
    config = load_config("published", [*PATHS, *given])
    assert (config.trainer.experiment_name, config.data.train_files) == (name, f"{name}/train.parquet")


@pytest.mark.parametrize("name", ["1e3", "true", "False", "0010", "1_000", "007", ".5", "-1", "nan", "0x10"])
def test_what_looks_like_a_number_is_text_where_text_is_set(name: str) -> None:
    config = load_config("published", [*PATHS, f"trainer.experiment_name={name}", f"data.train_files={name}"])
    assert (config.trainer.experiment_name, config.data.train_files) == (name, name)


@pytest.mark.parametrize(
    "name",
    ["/home/Jürgen/x", "dt=2026-01-01", "数据", "a,b", "(a)", "{a}", "it's", '"x', "a#b", "~a", "a!", "a}", "glob(*)"],
)
def test_an_override_that_hydra_does_not_take_is_named_with_its_cure(name: str) -> None:
    message = refuse(f"trainer.experiment_name={name}")
    (again,) = shlex.split(message.partition("in quotes, for a shell: ")[2])
    assert load_config("published", [*PATHS, again]).trainer.experiment_name == name


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.experiment_name=${oc.env:R1RANKER_TEST_NAME}", "trainer.experiment_name: found '???'"),
        ("data.train_files=['${oc.env:R1RANKER_TEST_NAME}',a]", "data.train_files: found '???'"),
        ("data.train_files=[a,???]", "data.train_files: found '???'"),
        ("data.task_weights={a: '${oc.env:R1RANKER_TEST_NAME}'}", "data.task_weights.a: found '???'"),
        ("data.train_batch_size=many", "data.train_batch_size: found 'many'; an integer is wanted"),
        ("trainer.experiment_name=[a]", "trainer.experiment_name: found ['a']; text is wanted"),
        ("trainer.experiment_name='${nope}'", "trainer.experiment_name: Interpolation key 'nope' not found"),
        (
            "trainer={experimnt_name: x}",
            "unknown key 'trainer.experimnt_name' (did you mean 'trainer.experiment_name'?)",
        ),
        ("trainer.experiment_name=???", "trainer.experiment_name: found '???'"),
        ("trainer.experiment_name='\udcfc'", "trainer.experiment_name: found '\\udcfc'; a name in UTF-8 is wanted"),
    ],
)
def test_a_value_that_cannot_be_used_is_of_the_override_that_sets_it(
    override: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1RANKER_TEST_NAME", "???")
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, override])
    assert str(caught.value).startswith(f"override {override!r}: {said}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trainer.experiment_name", "???", "found '???', which stands for what is missing; another name is wanted"),
        ("data.train_files", "???", "found '???', which stands for what is missing; another name is wanted"),
        ("data.val_files", ["a", "???"], "found '???', which stands for what is missing; another name is wanted"),
        ("trainer.experiment_name", "\udcfc", "found '\\udcfc'; a name in UTF-8 is wanted"),
        ("trainer.nnodes", "many", "found 'many'; an integer is wanted"),
    ],
)
def test_a_value_of_a_program_that_cannot_be_used_is_of_no_file(key: str, value: Any, said: str) -> None:
    paths = [one for one in PATHS if not one.startswith(key)]
    with pytest.raises(UserError) as caught:
        load_config("published", paths, values={key: value})
    assert str(caught.value) == f"{key}: {said}"


@pytest.mark.parametrize("name", ["a\nb", "it's\n数据\\", "a\u2028b\x85", "\r\n(a)"])
def test_an_override_with_a_line_break_is_answered_on_one_line(name: str) -> None:
    message = refuse(f"trainer.experiment_name=x{name}y")
    assert len(message.splitlines()) == 1
    word = message.partition("in quotes, for a shell: ")[2]
    shell = ["bash", "-c", f"printf %s {word}"]
    again = subprocess.run(shell, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout.decode()
    assert load_config("published", [*PATHS, again]).trainer.experiment_name == f"x{name}y"


@pytest.mark.parametrize("written", [" {}={}", "{} ={}", "{}= {} ", " ++{}={}", "\n\t{}={}"])
def test_blanks_around_an_override_and_its_key_change_nothing(written: str) -> None:
    assert load_config("published", [*PATHS, written.format("trainer.seed", 7)]).trainer.seed == 7
    with pytest.raises(UserError, match=r"unknown key 'trainer\.sed' \(did you mean 'trainer\.seed'\?\)"):
        load_config("published", [*PATHS, written.format("trainer.sed", 7)])


@pytest.mark.parametrize(
    ("written", "read"), [("1e3", 1000.0), ("true", True), ("007", 7), ("1_000", 1000), (".5", 0.5)]
)
def test_a_number_in_a_file_is_not_made_a_text(written: str, read: object, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"trainer: {{experiment_name: {written}}}\nalgorithm: {{adv_estimator: gae}}\n")
    with pytest.raises(UserError, match=rf"own\.yaml: trainer\.experiment_name: found {read!r}; text is wanted"):
        load_config("own", PATHS, str(tmp_path))
    (tmp_path / "own.yaml").write_text(
        f"trainer: {{experiment_name: '{written}'}}\nalgorithm: {{adv_estimator: gae}}\n"
    )
    assert load_config("own", PATHS, str(tmp_path)).trainer.experiment_name == written


def test_a_directory_of_configs_has_any_name(tmp_path: Path) -> None:
    for name in NAMES:
        here = tmp_path / name.strip("/")
        here.mkdir(parents=True, exist_ok=True)
        (here / "own.yaml").write_text("trainer: {seed: 7}\nalgorithm: {adv_estimator: gae}\n")
        assert load_config("own", PATHS, str(here)).trainer.seed == 7
