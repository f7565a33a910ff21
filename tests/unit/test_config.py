"""The configuration: veRL's overrides work, and what cannot work is refused in one line before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1ranker.errors import UserError
from r1ranker.trainer.config.load import BUILT_IN, load_config
from r1ranker.trainer.config.schema import Config

PATHS = [
    "data.train_files=t.parquet",
    "data.val_files=v.parquet",
    "actor_rollout_ref.model.path=m",
    "critic.model.path=m",
]


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
def test_every_config_loads(name: str) -> None:
    assert isinstance(load_config(name, PATHS), Config)


def test_the_published_config_holds_the_published_values() -> None:
    config = load_config("published", PATHS)
    actor = config.actor_rollout_ref.actor
    assert config.algorithm.adv_estimator == "gae"
    assert (actor.optim.lr, config.critic.optim.lr) == (1e-6, 2e-6)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, actor.ppo_micro_batch_size) == (64, 32, 8)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (1400, 1024)
    assert (actor.use_kl_loss, actor.kl_loss_coef, config.algorithm.use_kl_in_reward) == (True, 0.001, False)
    assert (config.algorithm.gamma, config.algorithm.lam) == (1.0, 1.0)
    assert (config.trainer.total_training_steps, config.trainer.total_epochs) == (1501, 3)
    assert config.output_dir == "checkpoints/Ranking-FM/iterative_ranking"


def test_overrides_in_verls_words_work_as_they_stand() -> None:
    config = load_config(
        "published",
        [
            *PATHS,
            "data.val_batch_size=640",
            "actor_rollout_ref.model.use_remove_padding=True",
            "actor_rollout_ref.actor.use_dynamic_bsz=True",
            "actor_rollout_ref.actor.optim.lr=1e-6",
            "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size=8",
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
            "actor_rollout_ref.ref.log_prob_micro_batch_size=8",
            "critic.model.fsdp_config.param_offload=True",
            "algorithm.kl_ctrl.kl_coef=0.001",
            "+trainer.val_before_train=True",
            "trainer.default_hdfs_dir=null",
            "trainer.logger=[wandb]",
            "data.train_files=[a.parquet,b.parquet]",
        ],
    )
    assert config.actor_rollout_ref.actor.kl_loss_type == "k3"
    assert list(config.data.train_files) == ["a.parquet", "b.parquet"]
    assert config.trainer.logger == ["wandb"]


REFUSED = {
    "actor_rollout_ref.rollout.temprature=1": "actor_rollout_ref.rollout.temperature",
    "algorithm.adv_estimater=grpo": "algorithm.adv_estimator",
    "data.train_batch_size=many": "an integer is wanted",
    "trainer.val_before_train=perhaps": "true or false is wanted",
    "actor_rollout_ref.actor.optim.lr=fast": "a number is wanted",
    "data.train_batch_size": "key=value is wanted",
    "algorithm.adv_estimator=gea": "did you mean 'gae'",
    "actor_rollout_ref.actor.ppo_mini_batch_size=30": "30 does not divide data.train_batch_size 64",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1000": "cannot hold one sequence",
    "critic.model.path=null": "needs a critic model",
    "actor_rollout_ref.model.path=null": "actor_rollout_ref.model.path: found nothing",
    "data.val_files=null": "data.val_files: found nothing",
    "algorithm.adv_estimator=grpo": "at least 2 are wanted",
    "actor_rollout_ref.rollout.top_p=0.9": "top_p must be 1",
    "actor_rollout_ref.rollout.temperature=0": "over 0",
    "trainer.executor=local": "executor=ray is wanted",
    "algorithm.use_kl_in_reward=true": "in one place",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=3": "3 does not divide trainer.n_gpus_per_node 4",
    "actor_rollout_ref.rollout.name=vlm": "one of hf, vllm is wanted",
    "actor_rollout_ref.rollout.placement=apart": "colocated, separate",
    "algorithm.rollout_correction.rollout_is=tokens": "did you mean 'token'",
    "algorithm.rollout_correction.rollout_is_threshold=0": "over 0",
    "actor_rollout_ref.model.use_remove_padding=false": "always packed",
    "actor_rollout_ref.actor.loss_agg_mode=mean": "token-mean",
    "trainer.n_gpus_per_node=0": "at least 1",
    "reward.timeout=5": "at least one is wanted",
    "reward.timeout=0": "seconds over 0, or null, are wanted",
    "reward.max_failure_rate=1": "from 0 to under 1",
    "actor_rollout_ref.actor.use_dynamic_bsz=false trainer.n_gpus_per_node=3": "not a multiple of the 3 processes",
    "actor_rollout_ref.rollout.constrain=pool": "none, candidates",
    "actor_rollout_ref.rollout.eliminate_to=1": "at least 2 candidates are wanted",
    "actor_rollout_ref.rollout.every_answer=true": "every_answer wants candidates",
    "trainer.default_hdfs_dir=hdfs://x": "only null",
    "trainer.logger=[tensorbord]": "did you mean 'tensorboard'",
    "actor_rollout_ref.actor.optim.lr=-1": "over 0",
    "actor_rollout_ref.actor.optim.lr=nan": "over 0",
    "actor_rollout_ref.actor.optim.weight_decay=-0.1": "at least 0",
    "critic.optim.min_lr_ratio=-1": "from 0 to 1",
    "critic.grad_clip=-1": "critic.grad_clip: found -1",
    "critic.ppo_epochs=0": "at least 1",
    "critic.cliprange_value=0": "over 0",
    "actor_rollout_ref.actor.clip_ratio_high=-0.5": "over 0",
    "actor_rollout_ref.rollout.val_kwargs.temperature=-1": "val_kwargs",
    "actor_rollout_ref.rollout.val_kwargs.top_p=0": "val_kwargs",
    "data.val_max_samples=0": "at least 1",
    "data.val_batch_size=-5": "at least 1",
    "trainer.seed=-1": "at least 0",
    "trainer.experiment_name='${nope}'": "nope",
    "trainer.logger=[wandb] trainer.project_name=a:b": "none of / \\ # ? % :",
    f"trainer.logger=[wandb] trainer.project_name={'x' * 129}": "at most 128 characters",
}


@pytest.mark.parametrize("override", sorted(REFUSED))
def test_what_cannot_work_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("published", [*PATHS, *override.split()])
    message = str(caught.value)
    assert REFUSED[override] in message
    assert "\n" not in message


def test_an_adaptive_kl_that_could_change_its_sign_is_refused() -> None:
    for value in ("horizon=10", "target_kl=0"):
        with pytest.raises(UserError, match="horizon"):
            load_config("published", [*PATHS, "algorithm.kl_ctrl.type=adaptive", f"algorithm.kl_ctrl.{value}"])


def test_a_config_file_with_an_unknown_key_or_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: {experimnt_name: x}\n")
    with pytest.raises(UserError, match=r"trainer.experimnt_name.*did you mean 'trainer.experiment_name'"):
        load_config("own", PATHS, str(tmp_path))
    (tmp_path / "odd.yaml").write_text("trainer: {a: [1\n")
    with pytest.raises(UserError, match=r"odd\.yaml"):
        load_config("odd", PATHS, str(tmp_path))
    with pytest.raises(UserError, match="published"):
        load_config("publishd", PATHS)


def test_a_section_given_a_plain_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: 3\n")
    with pytest.raises(UserError, match="trainer"):
        load_config("own", PATHS, str(tmp_path))
