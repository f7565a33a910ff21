"""The authors' later scripts give settings that are accepted as they stand, and mean what they mean in veRL."""

from __future__ import annotations

import pytest
from author_scripts import BATCHES, overrides_of

from r1ranker import errors
from r1ranker.errors import UserError
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test had noted is noted again."""
    monkeypatch.setattr(errors, "_NOTED", set())


def config_of(script: str, *more: str, gpus: int = 4) -> Config:
    return load_config("published", [*overrides_of(script, "data", "model", gpus), *more])


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("script", sorted(BATCHES))
def test_every_setting_of_both_scripts_is_accepted(script: str, gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    config, sizes = config_of(script, gpus=gpus), BATCHES[script]
    prompts = sizes["prompts"]
    assert config.world_size == gpus
    assert (config.data.train_batch_size, config.data.val_batch_size) == (prompts, prompts)
    assert config.actor_rollout_ref.actor.ppo_mini_batch_size == prompts
    assert config.critic.ppo_mini_batch_size == prompts
    assert config.on_policy
    assert config.actor_rollout_ref.rollout.gpu_memory_utilization == sizes["memory"]
    assert (config.trainer.total_training_steps, config.trainer.total_epochs) == (sizes["steps"], sizes["epochs"])
    assert config.trainer.val_before_train
    assert config.trainer.logger == ["wandb"]
    assert config.output_dir == f"checkpoints/Ranking-FM/{script}-run"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "actor_rollout_ref.actor.ppo_mini_batch_size=32, critic.ppo_mini_batch_size=32" in said[0]
    assert f"data.train_batch_size={prompts}" in said[0]
    assert "whole batch" in said[0]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [("+{}=False", "{}=True", True), ("{}=True", "+{}=False", False), ("{}=True", "++{}=False", False)],
)
def test_the_last_of_several_values_counts_with_and_without_a_plus(first: str, last: str, expected: bool) -> None:
    key = "trainer.val_before_train"
    assert config_of("IRanker", first.format(key), last.format(key)).trainer.val_before_train is expected


def test_a_mini_batch_that_fits_is_left_alone_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("IRanker", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "critic.ppo_mini_batch_size=8")
    assert (config.actor_rollout_ref.actor.ppo_mini_batch_size, config.critic.ppo_mini_batch_size) == (4, 8)
    assert not config.on_policy
    assert not capsys.readouterr().err


def test_the_critic_alone_may_have_the_larger_mini_batch(capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("IRanker", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
    assert (config.actor_rollout_ref.actor.ppo_mini_batch_size, config.critic.ppo_mini_batch_size) == (4, 8)
    said = capsys.readouterr().err
    assert said.startswith("note: critic.ppo_mini_batch_size=32: more than")


def test_of_a_critic_that_there_is_not_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config_of("IRanker", "algorithm.adv_estimator=reinforce_plus_plus")
    assert "critic" not in capsys.readouterr().err


MICRO = {
    "actor_rollout_ref.actor.ppo_micro_batch_size": (),
    "actor_rollout_ref.ref.log_prob_micro_batch_size": ("actor_rollout_ref.actor.ppo_micro_batch_size=8",),
    "actor_rollout_ref.rollout.log_prob_micro_batch_size": (
        "actor_rollout_ref.actor.ppo_micro_batch_size=8",
        "actor_rollout_ref.ref.log_prob_micro_batch_size=8",
    ),
}


@pytest.mark.parametrize("key", sorted(MICRO))
def test_micro_batches_counted_in_responses_fit_the_processes(key: str) -> None:
    off = ("actor_rollout_ref.actor.use_dynamic_bsz=False", *MICRO[key])
    config_of("DRanker", *off, gpus=4)
    with pytest.raises(UserError, match=f"{key}: 4 is not a multiple of the 8 processes; {key}_per_gpu is"):
        config_of("DRanker", *off, gpus=8)
    with pytest.raises(UserError, match=f"{key}_per_gpu: found 0; at least 1"):
        config_of("DRanker", *off, f"{key}_per_gpu=0", gpus=4)


def test_the_critics_micro_batches_are_its_own() -> None:
    with pytest.raises(UserError, match=r"critic\.ppo_micro_batch_size: 4 is not a multiple of the 8 processes"):
        config_of("DRanker", "critic.use_dynamic_bsz=False", gpus=8)
    config_of("DRanker", "critic.use_dynamic_bsz=False", "critic.ppo_micro_batch_size_per_gpu=1", gpus=8)
