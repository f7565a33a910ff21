"""Batches, mini-batches and micro-batches of a Config that do not fit each other, each refused with a sentence."""

from __future__ import annotations

from r1ranker.errors import UserError, note
from r1ranker.trainer.config.schema import Config


def check_batch_sizes(config: Config) -> None:
    """Raise UserError where batches, mini-batches, micro-batches and token budgets do not fit each other."""
    actor, data = config.actor_rollout_ref.actor, config.data
    batch, mini = data.train_batch_size, actor.ppo_mini_batch_size
    if batch % mini:
        raise UserError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size: {mini} does not divide data.train_batch_size {batch}"
        )
    critic_mini = config.critic.ppo_mini_batch_size
    if config.needs_critic and critic_mini is not None and (critic_mini < 1 or batch % critic_mini):
        raise UserError(f"critic.ppo_mini_batch_size: {critic_mini} does not divide data.train_batch_size {batch}")
    longest = data.max_prompt_length + data.max_response_length
    budgets = {
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": actor.ppo_max_token_len_per_gpu,
        "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": config.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu,
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": (
            config.actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu
        ),
        "critic.ppo_max_token_len_per_gpu": config.critic.ppo_max_token_len_per_gpu,
    }
    for key, budget in budgets.items():
        if budget is not None and budget < longest:
            raise UserError(
                f"{key}: {budget} tokens cannot hold one sequence of data.max_prompt_length + data.max_response_length = {longest}"
            )
    _check_micro_batches(config)


def fit_mini_batches(config: Config) -> None:
    """A mini-batch larger than the batch is the whole batch, as in veRL."""
    batch, actor, critic = config.data.train_batch_size, config.actor_rollout_ref.actor, config.critic
    larger = []
    if actor.ppo_mini_batch_size > batch:
        larger.append(f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}")
        actor.ppo_mini_batch_size = batch
    if critic.ppo_mini_batch_size is not None and critic.ppo_mini_batch_size > batch:
        if config.needs_critic:
            larger.append(f"critic.ppo_mini_batch_size={critic.ppo_mini_batch_size}")
        critic.ppo_mini_batch_size = batch
    if larger:
        note(f"{', '.join(larger)}: more than data.train_batch_size={batch}, so the whole batch is one mini-batch")


def _check_micro_batches(config: Config) -> None:
    """Responses of a micro-batch, over all processes or a process; where tokens bound it, neither is looked at."""
    part = config.actor_rollout_ref
    actor_by_tokens = part.actor.use_dynamic_bsz
    if not (actor_by_tokens or part.actor.ppo_micro_batch_size or part.actor.ppo_micro_batch_size_per_gpu):
        raise UserError(
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu: found null; a number is wanted where use_dynamic_bsz is off"
        )
    roles: list[tuple[str, object]] = [
        ("actor_rollout_ref.actor.ppo_micro_batch_size", part.actor),
    ]
    if config.needs_reference:
        roles.append(("actor_rollout_ref.ref.log_prob_micro_batch_size", part.ref))
    roles.append(("actor_rollout_ref.rollout.log_prob_micro_batch_size", part.rollout))
    if config.needs_critic:
        roles.append(("critic.ppo_micro_batch_size", config.critic))
    for key, role in roles:
        name = key.rpartition(".")[2]
        together, each = getattr(role, name), getattr(role, f"{name}_per_gpu")
        by_tokens = getattr(role, "use_dynamic_bsz", None)
        if actor_by_tokens if by_tokens is None else by_tokens:
            continue
        if each is not None and each < 1:
            raise UserError(f"{key}_per_gpu: found {each}; at least 1 is wanted")
        if together is not None and together < 1:
            raise UserError(f"{key}: found {together}; at least 1 is wanted")
        if each is None and together is not None and together % config.world_size:
            raise UserError(
                f"{key}: {together} is not a multiple of the {config.world_size} processes; {key}_per_gpu is of one process"
            )
