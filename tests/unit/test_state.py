"""Training states on disk: whole or not at all, checked, and only as many as are wanted; what a run may go on with."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import r1ranker
from r1ranker.errors import RunError, UserError, WorkerLostError
from r1ranker.trainer.checkpoint import record
from r1ranker.trainer.checkpoint.random_state import get_random_states, set_random_states
from r1ranker.trainer.checkpoint.record import write_record
from r1ranker.trainer.checkpoint.resume import choose_state
from r1ranker.trainer.checkpoint.state import (
    ASIDE,
    STATES,
    State,
    begin_state,
    clear_unfinished,
    describe_file,
    find_newest,
    list_states,
    prune_states,
    publish_state,
    read_state,
    set_aside,
)
from r1ranker.trainer.config.load import find_run_config, load_config, to_dict
from r1ranker.trainer.monitoring.tracking import JsonLines
from r1ranker.trainer.workers.saving import StateSaver

BASE = ["data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=m"]


def save(states: Path, step: int, **driver: Any) -> Path:
    """A state with one file beside the driver's."""
    directory = begin_state(states, step, {"step": step, **driver})
    file = directory / "rank_00000.safetensors"
    file.write_bytes(bytes(range(200)))
    return publish_state(directory, {file.name: describe_file(file)})


def test_a_state_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    directory = begin_state(tmp_path, 3, {"step": 3})
    assert list_states(tmp_path) == []
    assert find_newest(tmp_path, print) is None
    published = publish_state(directory, {})
    assert published == tmp_path / "step_3"
    assert not directory.exists()
    state = find_newest(tmp_path, print)
    assert state is not None
    assert state.step == 3
    begin_state(tmp_path, 4, {})
    clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def truncate(directory: Path) -> str:
    file = directory / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return r"rank_00000.safetensors: 199 bytes, but 200 were written: damaged"


def flip(directory: Path) -> str:
    file = directory / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[77] ^= 1
    file.write_bytes(content)
    return r"rank_00000.safetensors: its checksum is not the one that was written: damaged"


def lose(directory: Path) -> str:
    (directory / "rank_00000.safetensors").unlink()
    return r"rank_00000.safetensors: cannot be read \(No such file"


def lose_manifest(directory: Path) -> str:
    (directory / "manifest.json").unlink()
    return r"manifest.json: cannot be read \(No such file"


def spoil_manifest(directory: Path) -> str:
    (directory / "manifest.json").write_text('{"format": 1, "files": {"driver.json": ')
    return r"manifest.json: not the manifest of a state \(JSONDecodeError\)"


def of_the_future(directory: Path) -> str:
    (directory / "manifest.json").write_text('{"format": 99, "files": {}}')
    return r"of format 99; 3 is known"


@pytest.mark.parametrize("damage", [truncate, flip, lose, lose_manifest, spoil_manifest, of_the_future])
def test_a_damaged_state_is_named_and_the_one_before_it_is_taken(damage: Any, tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step)
    wanted = damage(tmp_path / "step_10")
    said: list[str] = []
    state = find_newest(tmp_path, said.append)
    assert state is not None
    assert state.step == 9
    assert len(said) == 1
    assert re.search(wanted, said[0])
    assert said[0].endswith("; going on from step_9")
    for step in (8, 9):
        damage(tmp_path / f"step_{step}")
    with pytest.raises(UserError, match=r"step_10.*no whole state is left.*resume_mode=disable begins anew"):
        find_newest(tmp_path, said.append)
    assert save(tmp_path, 10) == tmp_path / "step_10"  # a damaged one is replaced
    assert isinstance(read_state(tmp_path / "step_10"), State)


@pytest.mark.parametrize(("keep", "left"), [(None, [12, 9, 3, 2]), (1, [12, 9]), (2, [12, 9, 3])])
def test_as_many_states_stay_as_are_wanted(keep: int | None, left: list[int], tmp_path: Path) -> None:
    states = tmp_path / STATES
    for step in (2, 3, 9, 12):
        save(states, step)
    prune_states(states, states / "step_9", keep)  # nothing is known of what is newer
    assert [step for step, _ in list_states(states)] == left


def test_states_of_another_run_wait_until_there_is_one_of_this(tmp_path: Path) -> None:
    states = tmp_path / STATES
    for step in (2, 4, 6):
        save(states, step)
    at = read_state(states / "step_4")
    assert isinstance(at, State)
    set_aside(states, at)
    assert [step for step, _ in list_states(states)] == [4, 2]
    assert [step for step, _ in list_states(tmp_path / ASIDE)] == [6]
    set_aside(states, None)
    assert list_states(states) == []
    assert [step for step, _ in list_states(tmp_path / ASIDE)] == [6, 4, 2]
    set_aside(states, None)  # a second beginning takes nothing away
    save(states, 4)
    set_aside(states, None)
    assert sorted(path.name for path in (tmp_path / ASIDE).iterdir()) == ["step_2", "step_4", "step_4_", "step_6"]
    prune_states(states, save(states, 1), 2)
    assert not (tmp_path / ASIDE).exists()


def test_metrics_that_cannot_be_written_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = JsonLines(load_config("quickstart", [*BASE, f"trainer.default_local_dir={tmp_path}"]))
    with pytest.raises(RunError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        log.log({"critic/score/mean": 0.5}, 1)
    log.close()


def test_random_states_go_through_json() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            float(np.random.random()),
            float(np.random.randn()),
            float(torch.rand(1)),
        ]

    draw()
    kept = json.dumps(get_random_states())
    first = draw()
    assert draw() != first
    set_random_states(json.loads(kept))
    assert draw() == first


def test_a_process_that_uses_no_gpu_opens_none_for_its_random_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_gpu(*arguments: Any) -> torch.Tensor:
        raise AssertionError("CUDA is opened")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", open_gpu)
    monkeypatch.setattr(torch.cuda, "set_rng_state", open_gpu)
    states = get_random_states()
    assert states["accelerator"] is None
    set_random_states(states | {"accelerator": "00ff"})  # of a run whose driver did

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([0, 255], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", kept.append)
    states = get_random_states()
    assert states["accelerator"] == "00ff"
    set_random_states(json.loads(json.dumps(states)))
    assert [one.tolist() for one in kept] == [[0, 255]]


def found(tmp_path: Path, *overrides: str, data: str = "abc", before: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """(step that is gone on from, what is said) with a state of step 5 in the run's directory."""
    here = f"trainer.default_local_dir={tmp_path}"
    save(tmp_path / STATES, 5, config=to_dict(load_config("quickstart", [*BASE, here, *before])), data={"x": "abc"})
    said: list[str] = []
    state = choose_state(load_config("quickstart", [*BASE, here, *overrides]), {"y": data}, False, said.append)
    return (0 if state is None else state.step), said


@pytest.mark.parametrize(
    "override",
    [
        "trainer.total_training_steps=7", "trainer.save_freq=3", "trainer.logger=[tensorboard]", "trainer.executor=ray",
        "data.val_max_samples=3", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=9999", "critic.optim.lr=1",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1", "actor_rollout_ref.model.share_prompts=false", "data.train_files=y",
    ],
)  # fmt: skip
def test_what_does_not_shape_the_training_may_differ(override: str, tmp_path: Path) -> None:
    assert found(tmp_path, override) == (5, [])


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.model.path=other", "data.train_batch_size=64", "actor_rollout_ref.actor.optim.lr=0.5", "trainer.seed=2",
        "algorithm.gamma=0.5", "data.task_weights={Rec-Movie:2}", "actor_rollout_ref.rollout.n=4", "data.max_prompt_length=99",
    ],
)  # fmt: skip
def test_another_run_in_the_directory_is_refused_in_a_line(override: str, tmp_path: Path) -> None:
    key = override.partition("=")[0]
    with pytest.raises(
        UserError, match=rf"^{key}.*: found .*step_5: the run in this directory has .*another trainer.def"
    ) as told:
        found(tmp_path, override)
    assert "\n" not in str(told.value)
    assert found(tmp_path, override, "trainer.resume_mode=disable") == (0, [])
    _, (line,) = found(tmp_path, override, f"trainer.resume_mode={tmp_path}/state/step_5")
    assert f"changed since {tmp_path}/state/step_5: {key}" in line


def test_other_training_rows_are_refused_whatever_their_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.train_files: other rows than .*step_5"):
        found(tmp_path, data="abd")


def test_the_critic_matters_where_there_is_one(tmp_path: Path) -> None:
    critic = ("algorithm.adv_estimator=gae", "critic.model.path=m")
    with pytest.raises(UserError, match=r"critic.optim.lr: found 1.0"):
        found(tmp_path, *critic, "critic.optim.lr=1", before=critic)


def test_a_state_named_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"trainer.resume_mode: nowhere/manifest.json: cannot be read.*step_100 is wanted"
    ):
        found(tmp_path, "trainer.resume_mode=nowhere")


def test_a_runs_directory_says_how_to_repeat_it(tmp_path: Path) -> None:
    config = load_config(
        "quickstart",
        [*BASE, f"trainer.default_local_dir={tmp_path}", "data.task_weights={Rec-Movie: 2}", "trainer.seed=7"],
    )
    write_record(config, None)
    name = find_run_config(str(tmp_path))
    assert name is not None
    assert load_config(name, [], str(tmp_path)) == config
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["seed"] == 7
    assert about["versions"]["torch"] == torch.__version__
    assert Path(str(r1ranker.__file__)).parent == record.PROJECT  # the commit is that of the whole package
    assert find_run_config(str(tmp_path / "elsewhere")) is None


class Answers:
    """Processes that answer `state_result` in turn, and then no more."""

    size = 2

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def each(self, method: str, arguments: Any) -> list[Any]:
        if method == "save_state":
            return [None, None]
        assert (method, arguments) == ("state_result", [(False,), (False,)])
        answer = self.answers.pop(0) if self.answers else WorkerLostError("state_result: no answer from process 1")
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


UNDER_WAY: tuple[Any, Any] = (None, {})


@pytest.mark.parametrize(
    ("answers", "seconds", "said"),
    [
        ([UNDER_WAY, UNDER_WAY, ({}, {})], 60, None),
        ([UNDER_WAY], 60, "state_result: no answer from process 1"),
        ([UNDER_WAY] * 100, 0.2, "it was not written within trainer.timeout = 0.2 seconds"),
        ([UNDER_WAY, ("No space left on device", {})], 60, "No space left on device"),
    ],
)
def test_after_a_failure_a_state_is_waited_for_as_long_as_all_processes_answer(
    answers: list[Any], seconds: float, said: str | None, tmp_path: Path
) -> None:
    lines: list[str] = []
    saver, cluster = StateSaver(tmp_path, None, lines.append, 3), Answers(*answers)
    saver.begin(cluster, 4, {"step": 4})  # type: ignore[arg-type]
    saver.finish_after_failure(cluster, seconds)  # type: ignore[arg-type]
    assert isinstance(read_state(tmp_path / "step_4"), State) == (said is None)
    told = f"the state of step 4 could not be saved ({said}); step_3 is the last whole one"
    assert lines == ([] if said is None else [told])
    saver.finish_after_failure(cluster, seconds)  # type: ignore[arg-type]
    assert len(lines) == (said is not None)
