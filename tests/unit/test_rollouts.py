"""Rollouts to read: what a step sampled, what it was rewarded with and what it learned from, in a bounded number of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from r1ranker.data.loader import load_prompts
from r1ranker.errors import UserError
from r1ranker.rewards import compute_score
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.fit import fit
from r1ranker.trainer.monitoring import rollouts
from r1ranker.trainer.monitoring.rollouts import RolloutLog


def config_of(toy: Path, model: str, output: Path, *overrides: str) -> Config:
    rows = f"{toy}/iterative_ranking/train.parquet"
    return load_config(
        "quickstart",
        [
            f"data.train_files={rows}", f"actor_rollout_ref.model.path={model}", f"critic.model.path={model}",
            f"trainer.default_local_dir={output}", "data.val_files=null", "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.n=3", "trainer.total_training_steps=2",
            "trainer.val_before_train=false", *overrides,
        ],
    )  # fmt: skip


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("setting", "prompts"), [([], 2), (["trainer.rollout_data_prompts=-1"], 4)])
def test_a_run_writes_what_it_sampled_and_how_that_was_rewarded(
    setting: list[str], prompts: int, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    fit(config_of(toy, tiny_model, tmp_path / "run", *setting))
    directory = tmp_path / "run" / "rollouts"
    assert sorted(file.name for file in directory.iterdir()) == ["1.jsonl", "2.jsonl"]
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for step, figures in enumerate(metrics, start=1):
        rows = lines_of(directory / f"{step}.jsonl")
        assert len(rows) == prompts * 3
        for row in rows:
            assert row["step"] == step
            # the reward, from what is written down alone
            again = compute_score("iterative_ranking", row["output"], row["gts"], {"think": False})
            assert row["score"] == pytest.approx(again["score"])
            assert row["parts"] == pytest.approx({name: value for name, value in again.items() if name != "score"})
            assert all(name in row["input"] for name in row["gts"]["candidate_text"])
        for first in range(0, len(rows), 3):
            group = np.array([row["score"] for row in rows[first : first + 3]])
            assert len({row["input"] for row in rows[first : first + 3]}) == 1
            advantages = [row["advantage"] for row in rows[first : first + 3]]
            spread = group.std(ddof=1)
            wanted = (group - group.mean()) / (spread + 1e-6) if spread else np.zeros(3)
            np.testing.assert_allclose(advantages, wanted, rtol=1e-6)
        if prompts == 4:  # all of the batch: its mean is the step's
            assert np.mean([row["score"] for row in rows]) == pytest.approx(figures["critic/score/mean"])


def test_none_are_written_where_none_are_wanted_and_elsewhere_where_a_directory_is_named(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    fit(config_of(toy, tiny_model, tmp_path / "none", "trainer.rollout_data_prompts=0"))
    assert not (tmp_path / "none" / "rollouts").exists()
    fit(
        config_of(
            toy,
            tiny_model,
            tmp_path / "run",
            f"trainer.rollout_data_dir={tmp_path}/read",
            "trainer.total_training_steps=1",
        )
    )
    assert [file.name for file in (tmp_path / "read").iterdir()] == ["1.jsonl"]
    with pytest.raises(UserError, match="rollout_data_prompts: found -2; at least 0, or -1 for all"):
        config_of(toy, tiny_model, tmp_path / "run", "trainer.rollout_data_prompts=-2")


def test_the_oldest_steps_go_and_long_texts_are_cut(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(toy, tiny_model, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = load_prompts([f"{toy}/iterative_ranking/train.parquet"], tokenizer, 2000)[0][:1]
    one = Trajectory(prompts[0].token_ids, [5, 6], np.zeros(2), "length", 0, score=0.5)
    monkeypatch.setattr(rollouts, "MOST_CHARACTERS", 50)
    RolloutLog(config, tokenizer).write(1, prompts, [one], [{"score": 0.5, "task": 1.0}])
    directory = tmp_path / "run" / "rollouts"
    (row,) = lines_of(directory / "1.jsonl")
    assert row["input"].startswith(tokenizer.decode(prompts[0].token_ids)[:50] + " ... (")
    assert (row["advantage"], row["parts"], row["finish_reason"]) == (None, {"task": 1.0}, "length")
    monkeypatch.setattr(rollouts, "MOST_BYTES", 4 * (directory / "1.jsonl").stat().st_size)
    (directory / "notes.txt").write_text("a reader's own")
    log = RolloutLog(config, tokenizer)  # a run that goes on finds what is there
    for step in range(2, 9):
        log.write(step, prompts, [one], [{"score": 0.5}])
    kept = {file.name for file in directory.iterdir()}
    assert kept >= {"8.jsonl", "7.jsonl", "6.jsonl", "notes.txt"}
    assert not kept & {"1.jsonl", "2.jsonl", "3.jsonl"}
    assert sum(file.stat().st_size for file in directory.glob("*.jsonl")) <= rollouts.MOST_BYTES


def test_the_same_rows_of_each_validation_are_written_below(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    data = [f"data.val_files={toy}/iterative_ranking/test.parquet", "data.val_max_samples=9", "data.val_batch_size=2"]
    often = ["trainer.test_freq=1", "trainer.val_before_train=true", "trainer.log_val_generations=3"]
    fit(config_of(toy, tiny_model, tmp_path / "run", *data, *often))
    found = {
        int(file.stem): [(row["task"], row["row"]) for row in lines_of(file)]
        for file in (tmp_path / "run" / "rollouts" / "validation").iterdir()
    }
    assert sorted(found) == [0, 1, 2]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3
    assert len({task for task, _ in found[0]}) == 3  # rows are a task after the other: of all of them
    # a run that begins anew leaves nothing of an earlier one
    fit(
        config_of(
            toy,
            tiny_model,
            tmp_path / "run",
            *data,
            *often,
            "trainer.resume_mode=disable",
            "trainer.total_training_steps=1",
        )
    )
    for directory, left in (("rollouts", {"1"}), ("rollouts/validation", {"0", "1"})):
        assert {file.stem for file in (tmp_path / "run" / directory).glob("*.jsonl")} == left
    fit(config_of(toy, tiny_model, tmp_path / "none", *data, *often[:2], "trainer.log_val_generations=0"))
    assert not (tmp_path / "none" / "rollouts" / "validation").exists()
