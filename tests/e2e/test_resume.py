"""Runs that are killed, stopped, damaged or moved go on as if nothing had been, and say so where they cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from runs import PPO, SMALL, assert_same_run, figures, overrides_of, train, weights
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.errors import RunError, UserError
from r1ranker.trainer.checkpoint import shards
from r1ranker.trainer.checkpoint import state as states_on_disk
from r1ranker.trainer.checkpoint.export import export_actor
from r1ranker.trainer.learners.optimisation import Optimisation
from r1ranker.trainer.loop import Run

ONE_TASK = (
    "{Rec-Movie: 0.2, Rec-Music: 0, Rec-Game: 0, Router-Performance: 0, Router-Balance: 0, Router-Cost: 0, "
    "Passage-5: 0, Passage-7: 0, Passage-9: 0}"
)


def driver(directory: Path, step: int) -> dict[str, Any]:
    """What the driver kept of a step, without what may differ between directories."""
    found = json.loads((directory / "state" / f"step_{step}" / "driver.json").read_text())
    return {key: found[key] for key in ("step", "updates", "kl_coef", "loader", "best", "random")}


def tensors_of(state: Path) -> dict[str, np.ndarray]:
    """All tensors that one process wrote."""
    return {name: value for file in sorted(state.glob("rank_00000_*")) for name, value in load_file(file).items()}


def states(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "state").iterdir())


@pytest.fixture(scope="module")
def undisturbed(toy: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    directory = tmp_path_factory.mktemp("undisturbed")
    train(toy, tiny_model, directory, *SMALL)
    return directory


@pytest.fixture
def left_at_four(toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the same run, ended by SIGTERM in its fourth step."""
    stop_in(monkeypatch, 4)
    with pytest.raises(SystemExit):
        train(toy, tiny_model, tmp_path / "run", *SMALL)
    monkeypatch.undo()
    return tmp_path / "run"


def stop_in(monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGTERM) -> None:
    """Have the process sent a signal as it begins step `at`."""
    step = Run.step

    def stopping(self: Run, cluster: Any, now: int) -> dict[str, float]:
        if now == at:
            os.kill(os.getpid(), number)
        return step(self, cluster, now)

    monkeypatch.setattr(Run, "step", stopping)


def run_killed(*specs: dict[str, Any]) -> list[dict[str, Any]]:
    """What killed_run.py says of each run."""
    called = [sys.executable, str(Path(__file__).parent / "killed_run.py"), *map(json.dumps, specs)]
    done = subprocess.run(
        called, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(specs) :]]


@pytest.mark.parametrize(("kills", "steps", "epoch"), [(8, 16, 1), pytest.param(24, 40, 3, marks=pytest.mark.long)])
def test_a_run_killed_at_any_moment_ends_as_one_that_was_left_alone(
    kills: int, steps: int, epoch: int, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    more = (
        *PPO, f"trainer.total_training_steps={steps}", "trainer.test_freq=7", "trainer.val_before_train=true",
        "trainer.best_metric=val-core/Rec-Movie/reward/mean", f"data.task_weights={ONE_TASK}",
    )  # fmt: skip
    specs = [
        {
            "overrides": overrides_of(toy, tiny_model, tmp_path / name, *more), "output": str(tmp_path / name),
            "log": str(tmp_path / f"{name}.log"), "kills": number, "seed": 5,
        }
        for name, number in (("alone", 0), ("killed", kills))
    ]  # fmt: skip
    alone, killed = run_killed(*specs)
    log = (tmp_path / "killed.log").read_text()
    assert alone["code"] == killed["code"] == 0, log
    assert killed["kills"] == kills, log  # each came before the end
    assert killed["in a save"] >= kills // 6
    assert [line["step"] for line in figures(tmp_path / "killed")] == list(range(steps + 1))
    assert_same_run(tmp_path / "killed", tmp_path / "alone")
    assert driver(tmp_path / "killed", steps) == driver(tmp_path / "alone", steps)
    assert driver(tmp_path / "alone", steps)["loader"]["epoch"] == epoch
    assert driver(tmp_path / "alone", steps)["kl_coef"] != 0.001
    last = Path("state") / f"step_{steps}"
    for name, value in tensors_of(tmp_path / "alone" / last).items():
        np.testing.assert_array_equal(tensors_of(tmp_path / "killed" / last)[name], value)
    for name, value in weights(tmp_path / "alone" / "best").items():
        np.testing.assert_array_equal(weights(tmp_path / "killed" / "best")[name], value)
    assert states(tmp_path / "killed") == [f"step_{steps - 1}", f"step_{steps}"]
    assert not [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
    for kept in ("actor", "best"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "killed" / kept)
        AutoTokenizer.from_pretrained(tmp_path / "killed" / kept)
    # nothing in a state needs unpickling
    assert {path.suffix for path in (tmp_path / "killed" / last).iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_its_state_saved(
    number: int, undisturbed: Path, toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    stop_in(monkeypatch, 3, number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        train(toy, tiny_model, tmp_path, *SMALL, "trainer.save_freq=-1")
    assert getattr(ended.value, "code", 143) == 143
    assert signal.getsignal(number) is before
    assert states(tmp_path) == ["step_3"]
    monkeypatch.undo()
    train(toy, tiny_model, tmp_path, *SMALL)
    assert_same_run(tmp_path, undisturbed)


def test_a_run_that_draws_until_its_batch_is_full_goes_on_where_it_was_left(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*SMALL, "algorithm.filter_groups.enable=true", "data.answer_style=label", "data.think=false")
    train(toy, tiny_model, tmp_path / "whole", *more)
    assert max(line.get("filter_groups/num_gen_batches", 0) for line in figures(tmp_path / "whole")) > 1
    stop_in(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train(toy, tiny_model, tmp_path / "parts", *more)
    monkeypatch.undo()
    train(toy, tiny_model, tmp_path / "parts", *more)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_updates_wait_for_a_state_that_is_being_written(
    undisturbed: Path, toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_door, wait, save_file = Event(), Optimisation.wait_until_written, shards.save_file

    def waiting(self: Optimisation) -> None:
        if not self.written.is_set():
            at_the_door.set()
        wait(self)

    def slow(tensors: dict[str, torch.Tensor], file: Path) -> None:
        at_the_door.wait(
            1
        )  # for an update, which has passed forward and back by then; there is none after the last state
        time.sleep(0.1)
        save_file(tensors, file)
        at_the_door.clear()

    monkeypatch.setattr(Optimisation, "wait_until_written", waiting)
    monkeypatch.setattr(shards, "save_file", slow)
    train(toy, tiny_model, tmp_path, *SMALL)
    assert_same_run(tmp_path, undisturbed)
    waited = [json.loads(line)["perf/wait_for_state_s"] for line in (tmp_path / "metrics.jsonl").open()]
    assert waited[0] == 0
    assert min(waited[1:]) > 0.05
    monkeypatch.undo()
    train(toy, tiny_model, tmp_path / "other", *SMALL, f"trainer.resume_mode={tmp_path}/state/step_5")
    for name, value in weights(undisturbed / "actor").items():
        np.testing.assert_array_equal(weights(tmp_path / "other" / "actor")[name], value)


def test_a_run_that_is_done_is_done_and_can_be_made_longer(
    undisturbed: Path, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    train(toy, tiny_model, run, *SMALL)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    shutil.rmtree(run / "actor")
    train(toy, tiny_model, run, *SMALL)
    assert_same_run(run, undisturbed)
    train(toy, tiny_model, run, *SMALL, "trainer.total_training_steps=8")
    assert [line["step"] for line in figures(run)] == list(range(1, 9))
    assert json.loads((run / "run.json").read_text())["resumed_from"].endswith("state/step_6")


def test_a_run_begun_anew_keeps_the_old_states_until_it_has_one(
    undisturbed: Path, left_at_four: Path, toy: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = (*SMALL, "trainer.resume_mode=disable", "trainer.save_freq=3")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(toy, tiny_model, left_at_four, *anew)
    aside = left_at_four / "state_before"
    assert sorted(path.name for path in aside.iterdir()) == ["step_3", "step_4"]
    train(toy, tiny_model, left_at_four, *anew)
    assert states(left_at_four) == ["step_3", "step_6"]
    assert not aside.exists()
    assert_same_run(left_at_four, undisturbed)


def test_a_run_goes_on_from_a_state_that_is_named(
    undisturbed: Path, left_at_four: Path, toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    train(toy, tiny_model, other, *SMALL, f"trainer.resume_mode={left_at_four}/state/step_3")
    for name, value in weights(undisturbed / "actor").items():
        np.testing.assert_array_equal(weights(other / "actor")[name], value)
    assert figures(other) == figures(undisturbed)[3:]
    monkeypatch.chdir(left_at_four)
    train(toy, tiny_model, left_at_four, *SMALL, "trainer.resume_mode=state/step_3")  # one of its own
    assert_same_run(left_at_four, undisturbed)


def test_what_a_state_has_no_moments_of_is_named(
    left_at_four: Path, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    """Also where the state is another run's, whose settings may differ otherwise."""
    for override in ("actor_rollout_ref.actor.optim.name=muon", "actor_rollout_ref.model.lora_rank=2"):
        key = override.split("=")[0]
        with pytest.raises(UserError, match=rf"{re.escape(key)}: found .* but .*step_3 has"):
            train(toy, tiny_model, tmp_path, *SMALL, f"trainer.resume_mode={left_at_four}/state/step_3", override)


def test_a_state_from_before_a_setting_was_there_goes_on(
    undisturbed: Path, left_at_four: Path, toy: Path, tiny_model: str
) -> None:
    for number in (3, 4):
        directory = left_at_four / "state" / f"step_{number}"
        driver = json.loads((directory / "driver.json").read_text())
        for section, key in (
            ("algorithm", "filter_groups"),
            ("algorithm", "credit"),
            ("data", "rounds"),
            ("reward", "overlong_buffer"),
        ):
            del driver["config"][section][key]
        for key in ("lora_rank", "lora_alpha", "target_modules"):
            del driver["config"]["actor_rollout_ref"]["model"][key], driver["config"]["critic"]["model"][key]
        del driver["config"]["critic"]["optim"]["name"]
        driver["config"]["algorithm"]["rollout_correction"]["rollout_is_threshold"] = 2.0
        (directory / "driver.json").write_text(json.dumps(driver))
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["files"]["driver.json"] = states_on_disk.describe_file(directory / "driver.json")
        (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"algorithm\.credit: found 'rank'"):
        train(toy, tiny_model, left_at_four, *SMALL, "algorithm.credit=rank", mode="direct")
    train(toy, tiny_model, left_at_four, *SMALL, "trainer.profile_steps=[6]")
    assert_same_run(left_at_four, undisturbed)


def test_the_actor_of_a_state_is_the_one_that_the_run_wrote(undisturbed: Path, tmp_path: Path) -> None:
    assert export_actor(str(undisturbed / "state" / "step_6"), str(tmp_path / "actor")) == 6
    for name, value in weights(undisturbed / "actor").items():
        np.testing.assert_array_equal(weights(tmp_path / "actor")[name], value)
    about = [json.loads((one / "actor" / "r1ranker.json").read_text()) for one in (undisturbed, tmp_path)]
    assert about[0] == about[1]
    tokenizers = [AutoTokenizer.from_pretrained(one / "actor").get_vocab() for one in (undisturbed, tmp_path)]
    assert tokenizers[0] == tokenizers[1]
    with pytest.raises(UserError, match="a state such as"):
        export_actor(str(undisturbed / "actor"), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_damaged_state_is_passed_over(
    undisturbed: Path, left_at_four: Path, toy: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = left_at_four / "state" / "step_4" / "rank_00000_actor_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 16
    shard.write_bytes(content)
    train(toy, tiny_model, left_at_four, *SMALL)
    said = " ".join(capsys.readouterr().out.split())
    assert "its checksum is not the one that was written: damaged; going on from step_3" in said
    assert_same_run(left_at_four, undisturbed)
    assert states(left_at_four) == ["step_5", "step_6"]


def test_a_torn_line_of_metrics_is_dropped(undisturbed: Path, left_at_four: Path, toy: Path, tiny_model: str) -> None:
    with (left_at_four / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "critic/score/mean": 0.25}\n{"step": 6, "critic/sc')
    train(toy, tiny_model, left_at_four, *SMALL)
    assert_same_run(left_at_four, undisturbed)


def test_tensorboard_shows_each_step_once(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = (*SMALL, "trainer.logger=[tensorboard]", "trainer.save_freq=3")
    with monkeypatch.context() as patched:
        step = Run.step
        patched.setattr(Run, "step", lambda self, cluster, now: step(self, cluster, now) if now < 6 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(toy, tiny_model, tmp_path, *logged)
    train(toy, tiny_model, tmp_path, *logged)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("critic/score/mean")
    assert [point.step for point in shown] == [1, 2, 3, 4, 5, 6]


def test_two_runs_do_not_share_a_directory(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "step", lambda *arguments: train(toy, tiny_model, tmp_path, *SMALL))
    with pytest.raises(UserError, match="another process is writing there"):
        train(toy, tiny_model, tmp_path, *SMALL)


def test_a_best_metric_that_there_is_not_is_named(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    wanted = (
        r"trainer.best_metric: no 'val-core/Rec-Movie/reward/men' \(did you mean 'val-core/Rec-Movie/reward/mean'\?\)"
    )
    with pytest.raises(UserError, match=wanted):
        train(
            toy,
            tiny_model,
            tmp_path,
            *SMALL,
            "trainer.test_freq=1",
            "trainer.best_metric=val-core/Rec-Movie/reward/men",
        )
    with pytest.raises(UserError, match=r"trainer.test_freq: found -1; trainer.best_metric is looked at"):
        train(toy, tiny_model, tmp_path, *SMALL, "trainer.best_metric=val-core/Rec-Movie/reward/mean")


@contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """A file system of a size of its own."""
    disk.mkdir(parents=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here: that takes root's rights")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds two states of the tiny model, and not three."""
    with mounted(tmp_path / "run" / "state", "5500k") as disk:
        yield disk


def test_a_disk_too_full_for_the_actor_is_named(undisturbed: Path, toy: Path, tiny_model: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "run", "400k") as run:
        with pytest.raises(UserError, match=r"run/actor: cannot be written \(.*No space left on device") as told:
            train(toy, tiny_model, run, *SMALL)
        assert "\n" not in str(told.value)
        subprocess.run(["mount", "-o", "remount,size=50m", str(run)], check=True)
        train(toy, tiny_model, run, *SMALL)
        assert_same_run(run, undisturbed)


def test_a_full_disk_is_named_and_older_states_stay(
    small_disk: Path, undisturbed: Path, toy: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk.parent
    wanted = r"step 6: the state of step 6 could not be saved \(.*state: .*No space left on device.*\); step_2 is the last whole one"
    with pytest.raises(RunError, match=wanted) as told:
        train(toy, tiny_model, run, *SMALL)
    assert "\n" not in str(told.value)
    said = " ".join(capsys.readouterr().out.split())
    for step in (3, 4, 5):  # the run went on
        assert f"the state of step {step} could not be saved" in said
    assert states(run) == ["step_1", "step_2"]
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    train(toy, tiny_model, run, *SMALL)
    assert "going on after step 2" in " ".join(capsys.readouterr().out.split())
    assert_same_run(run, undisturbed)


def test_directories_that_may_not_be_written_or_read_are_named(toy: Path, tiny_model: str) -> None:
    if os.geteuid():
        pytest.skip("takes root's rights to become another user")
    nobody = 65534
    place = Path(tempfile.mkdtemp(prefix="r1ranker-test-"))
    try:
        for name, source in (("toy", toy), ("model", Path(tiny_model))):
            shutil.copytree(source, place / name)
        train(place / "toy", str(place / "model"), place / "done", *SMALL)
        (place / "run" / "state").mkdir(parents=True)
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(place / "run", nobody, nobody)
        log = place / "log"
        more = (f"data.cache_dir={place}/run/cache",)
        spec = {
            "overrides": overrides_of(place / "toy", str(place / "model"), place / "run", *more),
            "output": str(place / "run"), "log": str(log), "uid": nobody,
            "before": [f"trainer.default_local_dir={place}/before", f"data.cache_dir={place}/cache", "trainer.total_training_steps=1"],
        }  # fmt: skip
        assert run_killed(spec)[0]["code"] == 1
        text = " ".join(log.read_text().split())
        assert (
            f"RunError: step 6: the state of step 6 could not be saved ({place}/run/state: Permission denied)" in text
        )
        assert (place / "run" / "actor" / "model.safetensors").is_file()
        # a state that can be read alone serves; the newest one, which cannot be read, is passed over
        (place / "run" / "state").rmdir()
        shutil.copytree(place / "done" / "state", place / "run" / "state")
        os.chown(place / "run" / "state", nobody, nobody)
        (place / "run" / "state" / "step_6" / "rank_00000_actor_00000.safetensors").chmod(0)
        log.unlink()
        shutil.rmtree(place / "before")
        assert run_killed(spec)[0]["code"] == 1
        text = " ".join(log.read_text().split())
        assert (
            f"UserError: {place}/run/state/step_6: cannot be moved to {place}/run/state_before (Permission denied)"
            in text
        )
        os.chown(place / "run" / "state" / "step_6", nobody, nobody)
        log.unlink()
        shutil.rmtree(place / "before")
        assert run_killed(spec)[0]["code"] == 0, log.read_text()
        text = " ".join(log.read_text().split())
        assert (
            "step_6/rank_00000_actor_00000.safetensors: cannot be read (Permission denied); going on from step_5"
            in text
        )
        for name, value in weights(place / "done" / "actor").items():
            np.testing.assert_array_equal(weights(place / "run" / "actor")[name], value)
    finally:
        shutil.rmtree(place)
