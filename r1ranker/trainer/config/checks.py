"""Values of a Config that contradict each other or lie outside their range, each refused with a sentence."""

from __future__ import annotations

from typing import Any

from r1ranker.choices import ENGINES
from r1ranker.errors import UserError
from r1ranker.tasks.labels import ANSWER_STYLES
from r1ranker.trainer.config.batch_checks import check_batch_sizes, fit_mini_batches
from r1ranker.trainer.config.choice import one_of
from r1ranker.trainer.config.correction import parse_bounds, parse_rejections
from r1ranker.trainer.config.model_checks import check_models
from r1ranker.trainer.config.schema import (
    BY_GROUP,
    CORRECTION_LEVELS,
    ESTIMATORS,
    KL_TYPES,
    LOSS_AGG_MODES,
    LOSS_MODES,
    Config,
)

_KL_ALIASES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}


def check_config(config: Config) -> None:
    """Raise UserError at the first value that cannot work.

    What veRL means by a value is put in its place: its other names for KL estimators, and mini-batches larger than the batch. So is
    how the losses of dr_grpo are summed.
    """
    _check_choices(config)
    _check_ranges(config)
    check_models(config)
    fit_mini_batches(config)
    check_batch_sizes(config)
    _check_rollout(config)
    _check_conversation(config)
    _check_async(config)
    _check_filter(config)
    _check_reward(config)
    _check_required(config)


def _check_choices(config: Config) -> None:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    actor.kl_loss_type = _KL_ALIASES.get(actor.kl_loss_type, actor.kl_loss_type)
    config.algorithm.kl_penalty = _KL_ALIASES.get(config.algorithm.kl_penalty, config.algorithm.kl_penalty)
    actor.recompute_old_log_probs = str(actor.recompute_old_log_probs).lower()
    one_of("algorithm.adv_estimator", config.algorithm.adv_estimator, ESTIMATORS)
    one_of("algorithm.kl_penalty", config.algorithm.kl_penalty, KL_TYPES)
    one_of("algorithm.kl_ctrl.type", config.algorithm.kl_ctrl.type, ("fixed", "adaptive"))
    one_of("actor_rollout_ref.actor.loss_agg_mode", actor.loss_agg_mode, LOSS_AGG_MODES)
    one_of("actor_rollout_ref.actor.policy_loss.loss_mode", actor.policy_loss.loss_mode, LOSS_MODES)
    if actor.policy_loss.loss_mode == "dr_grpo":
        actor.loss_agg_mode = "seq-mean-token-sum-norm"
    one_of("actor_rollout_ref.actor.kl_loss_type", actor.kl_loss_type, KL_TYPES)
    one_of("actor_rollout_ref.actor.recompute_old_log_probs", actor.recompute_old_log_probs, ("auto", "true", "false"))
    one_of("actor_rollout_ref.rollout.name", rollout.name, ENGINES)
    one_of("actor_rollout_ref.rollout.placement", rollout.placement, ("colocated", "separate"))
    if config.algorithm.rollout_correction.rollout_is is not None:
        one_of(
            "algorithm.rollout_correction.rollout_is", config.algorithm.rollout_correction.rollout_is, CORRECTION_LEVELS
        )
    one_of("actor_rollout_ref.rollout.constrain", rollout.constrain, ("none", "candidates"))
    one_of("critic.loss_agg_mode", config.critic.loss_agg_mode, LOSS_AGG_MODES)
    one_of("trainer.on_bad_step", config.trainer.on_bad_step, ("skip", "stop"))
    one_of("trainer.executor", config.trainer.executor, ("ray", "local"))
    for logger in config.trainer.logger:
        one_of("trainer.logger", logger, ("console", "jsonl", "wandb", "tensorboard"))
    project = config.trainer.project_name
    if "wandb" in config.trainer.logger and (len(project) > 128 or set(project) & set(r"/\#?%:")):
        raise UserError(
            f"trainer.project_name: found {project!r}; wandb takes at most 128 characters, and none of / \\ # ? % :"
        )
    if config.data.curriculum is not None:
        one_of("data.curriculum", config.data.curriculum, ("pool_size",))
    one_of("algorithm.credit", config.algorithm.credit, ("response", "rank"))
    if config.algorithm.credit == "rank" and config.actor_rollout_ref.rollout.every_answer:
        raise UserError(
            "algorithm.credit: rank is of sampled rankings; actor_rollout_ref.rollout.every_answer=false is wanted"
        )
    one_of("data.rounds", config.data.rounds, ("separate", "conversation"))
    if config.data.answer_style is not None:
        one_of("data.answer_style", config.data.answer_style, ANSWER_STYLES)


def _check_ranges(config: Config) -> None:
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    at_least_one = {
        "data.train_batch_size": config.data.train_batch_size,
        "data.max_prompt_length": config.data.max_prompt_length,
        "data.max_response_length": config.data.max_response_length,
        "actor_rollout_ref.actor.ppo_mini_batch_size": actor.ppo_mini_batch_size,
        "actor_rollout_ref.actor.ppo_epochs": actor.ppo_epochs,
        "actor_rollout_ref.rollout.n": rollout.n,
        "actor_rollout_ref.rollout.max_num_seqs": rollout.max_num_seqs,
        "actor_rollout_ref.rollout.n_workers": rollout.n_workers,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": rollout.tensor_model_parallel_size,
        "trainer.n_gpus_per_node": trainer.n_gpus_per_node,
        "trainer.nnodes": trainer.nnodes,
        "trainer.total_epochs": trainer.total_epochs,
    }
    for key, value in at_least_one.items():
        if value < 1:
            raise UserError(f"{key}: found {value}; at least 1 is wanted")
    if trainer.total_training_steps is not None and trainer.total_training_steps < 1:
        raise UserError(
            f"trainer.total_training_steps: found {trainer.total_training_steps}; at least 1 or null is wanted"
        )
    at_least_zero = {
        "trainer.seed": trainer.seed,
        "trainer.max_restarts": trainer.max_restarts,
        "trainer.log_val_generations": trainer.log_val_generations,
        "data.seed": config.data.seed,
        "reward.num_workers": config.reward.num_workers,
    }
    for key, value in at_least_zero.items():
        if value < 0:
            raise UserError(f"{key}: found {value}; at least 0 is wanted")
    if trainer.rollout_data_prompts < -1:
        raise UserError(
            f"trainer.rollout_data_prompts: found {trainer.rollout_data_prompts}; at least 0, or -1 for all, is wanted"
        )
    for step in trainer.profile_steps:
        if step < 1:
            raise UserError(f"trainer.profile_steps: found {step}; steps are counted from 1")
    optional = {
        "data.val_batch_size": config.data.val_batch_size,
        "critic.ppo_epochs": config.critic.ppo_epochs,
        "trainer.max_actor_ckpt_to_keep": trainer.max_actor_ckpt_to_keep,
        "data.val_max_samples": None if config.data.val_max_samples == -1 else config.data.val_max_samples,
    }
    for key, some in optional.items():
        if some is not None and some < 1:
            raise UserError(f"{key}: found {some}; at least 1 is wanted")
    val = rollout.val_kwargs
    if not val.temperature >= 0 or not 0 < val.top_p <= 1:
        raise UserError(
            f"actor_rollout_ref.rollout.val_kwargs: found temperature {val.temperature} and top_p {val.top_p}; at least 0, and "
            "over 0 to 1, are wanted"
        )
    control = config.algorithm.kl_ctrl
    if control.type == "adaptive" and not (control.target_kl > 0 and control.horizon >= samples_per_step(config)):
        raise UserError(
            f"algorithm.kl_ctrl: found target_kl {control.target_kl} and horizon {control.horizon}; a target over 0 and a horizon "
            f"of at least the {samples_per_step(config)} samples of a step are wanted"
        )
    for key, number in (
        ("algorithm.gamma", config.algorithm.gamma),
        ("algorithm.lam", config.algorithm.lam),
        ("algorithm.turn_gamma", config.algorithm.turn_gamma),
    ):
        if not 0 <= number <= 1:
            raise UserError(f"{key}: found {number}; a number from 0 to 1 is wanted")
    if not rollout.temperature > 0:
        raise UserError(
            f"actor_rollout_ref.rollout.temperature: found {rollout.temperature}; training samples, so a number over 0 is wanted"
        )
    positive = {
        "trainer.timeout": trainer.timeout,
        "actor_rollout_ref.actor.grad_clip": actor.grad_clip,
        "actor_rollout_ref.actor.clip_ratio": actor.clip_ratio,
        "actor_rollout_ref.actor.clip_ratio_low": actor.clip_ratio_low,
        "actor_rollout_ref.actor.clip_ratio_high": actor.clip_ratio_high,
        "critic.grad_clip": config.critic.grad_clip,
        "critic.cliprange_value": config.critic.cliprange_value,
    }
    for key, found in positive.items():
        if found is not None and not found > 0:
            raise UserError(f"{key}: found {found}; a number over 0 is wanted")
    if not actor.clip_ratio_c > 1:
        raise UserError(f"actor_rollout_ref.actor.clip_ratio_c: found {actor.clip_ratio_c}; a number over 1 is wanted")


def _check_rollout(config: Config) -> None:
    rollout, estimator = config.actor_rollout_ref.rollout, config.algorithm.adv_estimator
    if estimator in BY_GROUP and rollout.n < 2:
        raise UserError(
            f"actor_rollout_ref.rollout.n: found {rollout.n}; algorithm.adv_estimator={estimator} compares samples of one "
            "prompt, so at least 2 are wanted"
        )
    if rollout.eliminate_to is not None and rollout.eliminate_to < 2:
        raise UserError(
            f"actor_rollout_ref.rollout.eliminate_to: found {rollout.eliminate_to}; at least 2 candidates are wanted, or null"
        )
    if rollout.eliminate_to is not None and config.trainer.async_steps:
        raise UserError(
            "actor_rollout_ref.rollout.eliminate_to: the pools of a batch hang on the policy of its step, so "
            "trainer.async_steps=0 is wanted"
        )
    if rollout.every_answer:
        for key, found, wanted in (
            ("actor_rollout_ref.rollout.constrain", rollout.constrain, ("candidates",)),
            ("algorithm.adv_estimator", estimator, ("grpo", "maxrl")),
            ("trainer.async_steps", config.trainer.async_steps, (0,)),
        ):
            if found not in wanted:
                kinds = " or ".join(map(str, wanted))
                raise UserError(f"{key}: found {found}; actor_rollout_ref.rollout.every_answer wants {kinds}")
    if rollout.top_p != 1 or rollout.top_k != -1:
        raise UserError(
            "actor_rollout_ref.rollout: top_p must be 1 and top_k -1 in training; what is left out by them cannot be trained on"
        )
    if rollout.name == "hf" and rollout.tensor_model_parallel_size != 1:
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size: found {rollout.tensor_model_parallel_size}; "
            "rollout.name=hf holds a whole model in each process, so 1 is wanted"
        )
    separate = rollout.placement == "separate"
    spanned = "actor_rollout_ref.rollout.n_workers" if separate else "trainer.n_gpus_per_node"
    workers = rollout.n_workers if separate else config.trainer.n_gpus_per_node
    if workers % rollout.tensor_model_parallel_size:
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size: {rollout.tensor_model_parallel_size} does not divide "
            f"{spanned} {workers}; an engine spans that many processes"
        )
    if separate and config.trainer.executor == "local":
        raise UserError(
            "actor_rollout_ref.rollout.placement: separate needs processes of its own; trainer.executor=ray is wanted"
        )
    if config.trainer.default_hdfs_dir is not None:
        raise UserError(
            f"trainer.default_hdfs_dir: found {config.trainer.default_hdfs_dir!r}; only null is taken, checkpoints go to "
            "trainer.default_local_dir"
        )
    if config.trainer.executor == "local" and config.world_size != 1:
        raise UserError(
            f"trainer.executor: local runs one process, but trainer.nnodes * trainer.n_gpus_per_node is {config.world_size}; "
            "executor=ray is wanted"
        )
    if config.algorithm.use_kl_in_reward and config.actor_rollout_ref.actor.use_kl_loss:
        raise UserError(
            "algorithm.use_kl_in_reward and actor_rollout_ref.actor.use_kl_loss are both true; the KL is wanted in one place"
        )
    if config.algorithm.use_kl_in_reward and estimator in BY_GROUP:
        raise UserError(
            f"algorithm.use_kl_in_reward: {estimator} compares whole responses and takes no token rewards; "
            "actor_rollout_ref.actor.use_kl_loss=true is wanted"
        )


def _check_conversation(config: Config) -> None:
    rollout, algorithm = config.actor_rollout_ref.rollout, config.algorithm
    if rollout.max_turns is not None and rollout.max_turns < 1:
        raise UserError(
            f"actor_rollout_ref.rollout.max_turns: found {rollout.max_turns}; at least 1 is wanted, or null"
        )
    if algorithm.turn_gamma and config.data.rounds != "conversation" and algorithm.credit != "rank":
        raise UserError(
            f"algorithm.turn_gamma: found {algorithm.turn_gamma} and single turns; data.rounds=conversation or algorithm.credit=rank is "
            "wanted"
        )
    if config.data.rounds != "conversation":
        return
    if rollout.eliminate_to is not None and rollout.constrain != "candidates":
        raise UserError(
            f"actor_rollout_ref.rollout.constrain: found {rollout.constrain}; rollout.eliminate_to in a conversation keeps the positive "
            "in, so candidates is wanted"
        )
    if rollout.every_answer and algorithm.turn_gamma:
        raise UserError(
            f"algorithm.turn_gamma: found {algorithm.turn_gamma}; with rollout.every_answer no answer's later turns are known, so 0 is wanted"
        )


def _check_async(config: Config) -> None:
    steps, actor = config.trainer.async_steps, config.actor_rollout_ref.actor
    if steps not in (0, 1):
        raise UserError(f"trainer.async_steps: found {steps}; 0 or 1 is wanted")
    if steps and not (config.actor_rollout_ref.rollout.placement == "separate" and config.trainer.executor == "ray"):
        raise UserError(
            "trainer.async_steps: engines sample while the trainer works; actor_rollout_ref.rollout.placement=separate and "
            "trainer.executor=ray are wanted"
        )
    parse_bounds("rollout_is_threshold", config.algorithm.rollout_correction.rollout_is_threshold)
    parse_rejections(config.algorithm.rollout_correction)
    if steps and actor.recompute_old_log_probs == "true" and not config.corrects:
        raise UserError(
            "actor_rollout_ref.actor.recompute_old_log_probs: true takes the trainer's log-probabilities for those of the policy "
            "that sampled, which trainer.async_steps=1 makes an older one; auto, or algorithm.rollout_correction.rollout_is, is wanted"
        )


def _check_filter(config: Config) -> None:
    groups = config.algorithm.filter_groups
    if not groups.enable:
        return
    if groups.max_num_gen_batches < 1:
        raise UserError(
            f"algorithm.filter_groups.max_num_gen_batches: found {groups.max_num_gen_batches}; at least 1 is wanted"
        )
    for key, found, wanted in (
        ("trainer.async_steps", config.trainer.async_steps, (0,)),
        ("algorithm.adv_estimator", config.algorithm.adv_estimator, BY_GROUP),
    ):
        if found not in wanted:
            kinds = " or ".join(map(str, wanted))
            raise UserError(f"{key}: found {found}; algorithm.filter_groups.enable wants {kinds}")


def _check_reward(config: Config) -> None:
    reward = config.reward
    if not 0 <= reward.max_failure_rate < 1:
        raise UserError(
            f"reward.max_failure_rate: found {reward.max_failure_rate}; a share from 0 to under 1 is wanted"
        )
    if reward.timeout is not None and not 0 < reward.timeout < float("inf"):
        raise UserError(f"reward.timeout: found {reward.timeout}; seconds over 0, or null, are wanted")
    buffer, most = reward.overlong_buffer, config.data.max_response_length
    if buffer.enable and not (0 < buffer.len <= most and buffer.penalty_factor > 0):
        raise UserError(
            f"reward.overlong_buffer: found len {buffer.len} and penalty_factor {buffer.penalty_factor:g}; 1 to "
            f"data.max_response_length = {most} tokens and a number over 0 are wanted"
        )
    if reward.timeout is not None and not reward.num_workers:
        raise UserError(
            f"reward.timeout: found {reward.timeout:g} and reward.num_workers 0; a call is ended with its process, so at "
            "least one is wanted"
        )


def _check_required(config: Config) -> None:
    required: dict[str, Any] = {
        "actor_rollout_ref.model.path": config.actor_rollout_ref.model.path,
        "data.train_files": config.data.train_files,
    }
    if config.needs_critic:
        required["critic.model.path"] = config.critic.model.path
    for key, value in required.items():
        if not value:
            because = "; adv_estimator=gae needs a critic model" if key.startswith("critic") else ""
            raise UserError(f"{key}: found nothing; a path is wanted{because}")
    if config.trainer.test_freq > 0 and not config.data.val_files:
        raise UserError("data.val_files: found nothing; a path is wanted where trainer.test_freq is over 0")
    if config.trainer.best_metric and not config.trainer.test_freq > 0:
        raise UserError(
            f"trainer.test_freq: found {config.trainer.test_freq}; trainer.best_metric is looked at after validations, so a "
            "number over 0 is wanted"
        )
    if config.trainer.best_metric and not config.trainer.best_metric.startswith("val-"):
        raise UserError(
            f"trainer.best_metric: found {config.trainer.best_metric!r}; a metric of validation such as "
            "val-core/Rec-Movie/reward/mean is wanted"
        )
    if config.trainer.val_before_train and not config.data.val_files:
        raise UserError("data.val_files: found nothing; a path is wanted where trainer.val_before_train is true")


def samples_per_step(config: Config) -> int:
    """Responses of a step."""
    return config.data.train_batch_size * config.actor_rollout_ref.rollout.n


def list_files(value: Any, key: str) -> list[str]:
    """Paths of a config value that is one path or a list of them."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and all(isinstance(path, str) for path in value):
        return list(value)
    raise UserError(f"{key}: found {value!r}; a path or a list of paths is wanted")
