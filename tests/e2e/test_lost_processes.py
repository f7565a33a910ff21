"""Processes of a run that die or hang: they are started again and nothing is different, or the run ends in a line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import PPO, SMALL, assert_same_run, figures, hold, overrides_of, train
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor

from r1ranker.errors import RunError, UserError, WorkerLostError
from r1ranker.trainer import fit as fit_module
from r1ranker.trainer.checkpoint import shards
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.loop import Run
from r1ranker.trainer.workers.cluster import Cluster, call_all, start_cluster
from r1ranker.trainer.workers.process import RolloutProcess
from r1ranker.trainer.workers.worker import Worker

pytestmark = pytest.mark.usefixtures("one_ray")

RAY = ("trainer.executor=ray", "trainer.total_training_steps=3")


def test_a_process_that_is_killed_in_a_step_is_started_again_and_nothing_is_different(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying(Worker):
        """The second process is killed once, in the second update, while the first waits for it in a collective."""

        def update_policy(self, bins: Any) -> dict[str, float]:
            self.updates = getattr(self, "updates", 0) + 1
            once = Path(self.config.output_dir) / "died"
            if self.rank == 1 and self.updates == 2 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().update_policy(bins)

    two = (*SMALL, *RAY, "trainer.n_gpus_per_node=2")
    train(toy, tiny_model, tmp_path / "alone", *two)
    hold(monkeypatch, Dying)
    train(toy, tiny_model, tmp_path / "run", *two)
    assert (tmp_path / "run" / "died").exists()
    assert "step 2: " in (said := capsys.readouterr().err)
    assert "starting the processes again (1 of 3)" in said
    assert_same_run(tmp_path / "run", tmp_path / "alone")
    # one process reads what two have written
    config = ["trainer.total_training_steps=4"]
    monkeypatch.undo()
    train(toy, tiny_model, tmp_path / "run", *SMALL, *config)
    assert [line["step"] for line in figures(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_that_was_asked_to_end_ends_though_a_process_is_lost(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise WorkerLostError("step 1: a process of the run died")

    monkeypatch.setattr(fit_module, "_train", lost)
    with pytest.raises(SystemExit) as ended:
        train(toy, tiny_model, tmp_path, *SMALL)
    assert ended.value.code == 143
    assert "a process of the run died" in capsys.readouterr().err


def rows_of(state: Path) -> dict[str, np.ndarray]:
    """Each tensor of a state put together from all its files, whose names are in the order of their rows."""
    found: dict[str, list[np.ndarray]] = {}
    for file in sorted(state.glob("*.safetensors")):
        for name, value in load_file(file).items():
            found.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in found.items()}


def test_processes_write_while_they_train_and_any_other_number_of_them_reads(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Worker):
        def save_state(self, directory: str) -> None:
            shards.PIECE_BYTES = 50_000
            shards.save_file = write_slowly if Path(directory).name == "slow" else save_file
            super().save_state(directory)

    def write_slowly(tensors: dict[str, Tensor], file: Path) -> None:
        time.sleep(0.05)
        save_file(tensors, file)

    def config(*more: str) -> Config:
        return load_config(
            "quickstart", overrides_of(toy, tiny_model, tmp_path, *PPO, "trainer.critic_warmup=0", *more)
        )

    def save(cluster: Cluster, name: str) -> Path:
        (tmp_path / name).mkdir()
        call_all(cluster, "save_state", str(tmp_path / name))
        return tmp_path / name

    def load(cluster: Cluster) -> Path:
        call_all(cluster, "load_state", str(slow))
        saved = save(cluster, f"read by {cluster.size}")
        assert all(isinstance(part, dict) for part in call_all(cluster, "state_result", True))
        return saved

    with monkeypatch.context() as patched:
        hold(patched, Slow)
        two = config("trainer.executor=ray", "trainer.n_gpus_per_node=2")
        with closing(run := Run(two)), start_cluster(two, 3) as cluster:
            assert run.step(cluster, 1)["perf/wait_for_state_s"] == 0
            quiet = save(cluster, "quiet")
            assert all(isinstance(part, dict) for part in call_all(cluster, "state_result", True))
            slow = save(cluster, "slow")
            assert run.step(cluster, 2)["perf/wait_for_state_s"] > 0.1
            files = [file for part in call_all(cluster, "state_result", True) for file in part]
            after = save(cluster, "after")
            assert all(isinstance(part, dict) for part in call_all(cluster, "state_result", True))
    assert len(files) > 40
    assert max(file.stat().st_size for file in slow.glob("*.safetensors")) < 55_000  # with its header
    wanted = rows_of(quiet)
    assert_same_rows(rows_of(slow), wanted)
    assert any((value != wanted[name]).any() for name, value in rows_of(after).items())
    with start_cluster(config(), 3) as cluster:
        assert_same_rows(rows_of(load(cluster)), wanted)
    with start_cluster(config("trainer.executor=ray", "trainer.n_gpus_per_node=3"), 3) as cluster:
        assert_same_rows(rows_of(load(cluster)), wanted)
    other = load_config("quickstart", overrides_of(toy, tiny_model, tmp_path))
    with (
        start_cluster(other, 2) as cluster,
        pytest.raises(UserError, match=r"holds no actor/.*the state of another model"),
    ):
        call_all(cluster, "load_state", str(tmp_path / "nothing"))


def assert_same_rows(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_process_that_hangs_is_named_with_its_method(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(Worker):
        def end_step(self, actor_updated: bool = True) -> dict[str, float]:
            signal.pause()
            return {}

    hold(monkeypatch, Hanging)
    wanted = r"step 1: end_step: no answer from process 0 within trainer.timeout = 20 seconds; no actor was saved"
    with pytest.raises(RunError, match=wanted):
        train(toy, tiny_model, tmp_path, *SMALL, *RAY, "trainer.timeout=20", "trainer.max_restarts=0")


def test_a_failure_in_one_process_does_not_wait_for_others_that_hang_in_a_collective(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Worker):
        """In the second step the first process fails, while the second one waits for it."""

        def update_policy(self, bins: Any) -> dict[str, float]:
            self.updates = getattr(self, "updates", 0) + 1
            if self.updates == 2 and self.rank == 0:
                raise RunError("no memory for the update of the actor")
            if self.updates == 2:
                from torch.distributed import barrier

                barrier()
                (Path(self.config.output_dir) / "left").touch()
            return super().update_policy(bins)

    hold(monkeypatch, Failing)
    two = (*SMALL, *RAY, "trainer.n_gpus_per_node=2", "trainer.timeout=90")
    with pytest.raises(RunError, match=r"step 2: no memory for the update of the actor; .* the actor of step 1"):
        train(toy, tiny_model, tmp_path, *two)
    said = " ".join(capsys.readouterr().out.split())
    why = "state_result: no answer from process 1 within 5 seconds"
    assert f"the state of step 1 could not be saved ({why}); there is none yet" in said
    assert not (tmp_path / "left").exists()  # the run did not wait until the collective was given up
    assert list((tmp_path / "state").iterdir()) == []


def test_a_batch_sampled_ahead_is_kept_and_an_engine_that_dies_is_started_again(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DyingEngine(RolloutProcess):
        def generate(self, *arguments: Any) -> Iterator[Any]:
            self.calls = getattr(self, "calls", 0) + 1
            once = Path(self.config.output_dir) / "died"
            if self.calls == 3 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().generate(*arguments)

    apart = (
        *SMALL,
        *RAY,
        "actor_rollout_ref.rollout.placement=separate",
        "trainer.async_steps=1",
        "trainer.total_training_steps=4",
    )
    train(toy, tiny_model, tmp_path / "alone", *apart)
    hold(monkeypatch, DyingEngine)
    train(toy, tiny_model, tmp_path / "run", *apart)
    assert (tmp_path / "run" / "died").exists()
    assert_same_run(tmp_path / "run", tmp_path / "alone")
