"""Whole runs in which single numbers are wrong: they are told, they cost their samples, and the run goes on or ends as it is asked to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import run_command, train
from safetensors.numpy import load_file

from r1ranker.errors import RunError
from r1ranker.trainer import loop
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.monitoring.metrics import is_known_metric
from r1ranker.trainer.sft import SFTSettings, fine_tune

FLAKY = """
import os, zlib
from r1ranker.rewards import compute_score

def flaky(data_source, solution_str, ground_truth, extra_info=None):
    if extra_info["split"] == "train" and zlib.crc32(solution_str.encode()) % 5 == 0:
        BREAK
    return compute_score(data_source, solution_str, ground_truth, extra_info)
"""


@pytest.mark.parametrize("how", ["raise ValueError('odd')", "os._exit(1)"])
def test_a_run_goes_on_without_the_samples_whose_reward_failed(
    how: str, toy: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(FLAKY.replace("BREAK", how))
    _, lines = train(
        toy, tiny_model, tmp_path / "run", f"custom_reward_function.path={file}", "custom_reward_function.name=flaky",
        "reward.max_failure_rate=0.9", f"reward.num_workers={2 if 'exit' in how else 0}", "trainer.total_training_steps=3",
    )  # fmt: skip
    rates = [line["reward/failure_rate"] for line in lines[1:]]
    assert 0 < max(rates) < 0.9
    assert all(np.isfinite(value) for line in lines for value in line.values())
    said = capsys.readouterr().out
    assert "step 1: " in said
    assert f"own.py:{7 if 'raise' in how else 5}: the reward failed on iterative_ranking row" in said
    assert any(line["actor/grad_norm"] > 0 for line in lines[1:])


def poisoned(monkeypatch: pytest.MonkeyPatch, column: str, steps: tuple[int, ...]) -> None:
    """Have one sample of the batch wrong in `column` in these of a run's steps, by more than float32 holds."""
    calls = iter(range(1, 100))
    put = loop.assign_advantages

    def wrong(trajectories: list[Trajectory], *others: Any) -> dict[str, float]:
        metrics = put(trajectories, *others)
        if next(calls) in steps:
            setattr(trajectories[5], column, np.full(len(trajectories[5].response_ids), 1e200))
        return metrics

    monkeypatch.setattr(loop, "assign_advantages", wrong)


def test_a_bad_step_is_told_written_down_and_skipped(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(monkeypatch, "advantages", (2,))
    _, lines = train(toy, tiny_model, tmp_path, "trainer.total_training_steps=3")
    assert [line["training/bad_step"] for line in lines[1:]] == [0, 1, 0]
    assert all(is_known_metric(name) or name == "step" for line in lines for name in line)
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert lines[3]["training/policy_lag"] == 0
    file = tmp_path / "bad_steps" / "step_2.jsonl"
    said = (
        r"step 2: the actor's loss or gradient is not finite \(1 of \d+ samples, of group 1\); no update was made of it, "
        f"the samples are in {file}"
    )
    assert re.search(said, capsys.readouterr().out)
    printed, _ = run_command("replay", str(file), "--model", str(tmp_path / "actor"))
    assert "group 1" in printed
    assert "not finite" in printed
    assert printed.rstrip().endswith("1 of 1 samples have numbers that are not finite")


def test_bad_steps_leave_the_weights_as_they_were_and_stop_where_it_is_asked(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, "advantages", (1, 2))
    actor, lines = train(toy, tiny_model, tmp_path / "skip")
    assert [line["training/bad_step"] for line in lines[1:]] == [1, 1]
    before, after = load_file(f"{tiny_model}/model.safetensors"), load_file(f"{actor}/model.safetensors")
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    poisoned(monkeypatch, "advantages", (2,))
    with pytest.raises(
        RunError, match=r"step 2: the actor's loss.*step_2.jsonl; trainer.on_bad_step is stop; no actor"
    ):
        train(toy, tiny_model, tmp_path / "stop", "trainer.on_bad_step=stop", "trainer.total_training_steps=3")


def test_a_critic_that_cannot_learn_from_a_batch_keeps_the_actor_from_it_too(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, "returns", (1,))
    actor, lines = train(
        toy, tiny_model, tmp_path, "algorithm.adv_estimator=gae", "critic.ppo_mini_batch_size=8",
        "trainer.total_training_steps=1", "trainer.val_before_train=false",
    )  # fmt: skip
    assert lines[0]["training/bad_step"] == 1
    assert "actor/pg_loss" not in lines[0]
    before, after = load_file(f"{tiny_model}/model.safetensors"), load_file(f"{actor}/model.safetensors")
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    (sample,) = (tmp_path / "bad_steps" / "step_1.jsonl").read_text().splitlines()
    assert json.loads(sample)["what"] == "the critic's loss or gradient is not finite"


@pytest.mark.usefixtures("one_ray")
def test_processes_skip_a_bad_step_together(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, "advantages", (1,))
    _, lines = train(
        toy, tiny_model, tmp_path, "trainer.executor=ray", "trainer.n_gpus_per_node=2", "trainer.val_before_train=false",
    )  # fmt: skip
    assert [line["training/bad_step"] for line in lines] == [1, 0]
    assert lines[1]["training/policy_lag"] == 0
    assert lines[1]["actor/grad_norm"] > 0
    assert len((tmp_path / "bad_steps" / "step_1.jsonl").read_text().splitlines()) == 1


def test_a_cold_start_that_breaks_down_ends_and_writes_nothing(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    files = [str(toy / "iterative_ranking" / "sft.parquet")]
    with pytest.raises(RunError, match="the loss of 10 steps in a row was not finite"):
        fine_tune(
            tiny_model, files, str(tmp_path / "sft"), SFTSettings(steps=40, batch_size=2, lr=1e35, warmup_steps=0)
        )
    assert not (tmp_path / "sft").exists()
