"""fit(): the whole algorithm, a step of it a line."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from r1ranker.data.loader import PromptLoader, load_prompts, spread_over_tasks
from r1ranker.data.prompts import Prompt
from r1ranker.device import has_gpu
from r1ranker.errors import RunError, UserError
from r1ranker.model.loading import load_tokenizer
from r1ranker.rollout.engine import Request, SamplingParams
from r1ranker.trainer import dispatch
from r1ranker.trainer.balance import Budget
from r1ranker.trainer.cluster import Cluster, call_all, started
from r1ranker.trainer.collect import Sampling, requests_of
from r1ranker.trainer.config import Config
from r1ranker.trainer.config_checks import file_list
from r1ranker.trainer.correction import correct
from r1ranker.trainer.estimation import put_advantages, with_gradient
from r1ranker.trainer.kl_control import KLController
from r1ranker.trainer.losses import token_shares
from r1ranker.trainer.metrics import batch_metrics, mean_over_updates, timed, validation_metrics
from r1ranker.trainer.reward_pool import RewardPool
from r1ranker.trainer.tracking import Tracking
from r1ranker.trainer.trajectory import Trajectory


def fit(config: Config) -> str:
    """Train as `config` says; returns the directory of the trained actor.

    Raises UserError for input that cannot be used, before any worker is started where that can be known, and RunError
    for a run that broke down, naming the step and the last actor saved.
    """
    if config.trainer.executor == "ray":
        _make_paths_absolute(config)
    run = Run(config)
    with (
        closing(run.rewards),
        started(config, run.total_steps) as cluster,
        Tracking(config, run.total_steps) as tracking,
    ):
        for note in run.notes:
            tracking.say(note)
        step = 0
        try:
            metrics = run.validate(cluster) if config.trainer.val_before_train else {}
            if metrics:
                tracking.log(metrics, 0)
            for step in range(1, run.total_steps + 1):
                metrics = run.step(cluster, step)
                if _due(step, config.trainer.test_freq, run.total_steps):
                    metrics |= run.validate(cluster)
                if _due(step, config.trainer.save_freq, run.total_steps) or step == run.total_steps:
                    metrics |= run.save(cluster, step)
                tracking.log(metrics, step)
        except RunError as error:
            kept = f"{run.actor_dir} holds the actor of step {run.saved}" if run.saved else "no actor was saved yet"
            raise RunError(f"step {step}: {error}; {kept}") from error
    return run.actor_dir


def _make_paths_absolute(config: Config) -> None:
    """Processes of an attached Ray cluster have another working directory."""
    config.trainer.default_local_dir = os.path.abspath(config.output_dir)
    for model in (config.actor_rollout_ref.model, config.critic.model):
        if model.path and os.path.isdir(model.path):
            model.path = os.path.abspath(model.path)


class Run:
    """What outlives a step: the data, the reward, the KL controller, and how far the run is."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rewards = RewardPool(config.custom_reward_function, config.reward.num_workers)
        self.tokenizer = load_tokenizer(str(config.actor_rollout_ref.model.path))
        if config.needs_critic:
            critic = load_tokenizer(str(config.critic.model.path))
            if critic.get_vocab() != self.tokenizer.get_vocab():
                raise UserError(
                    f"critic.model.path: {config.critic.model.path} has another vocabulary than the actor's "
                    f"{config.actor_rollout_ref.model.path}; the same tokenizer is wanted"
                )
        self.notes: list[str] = []
        data = config.data
        train = self._load(data.train_files, "data.train_files")
        validation: Sequence[Prompt] = self._load(data.val_files, "data.val_files") if data.val_files else []
        self.validation = spread_over_tasks(validation, data.val_max_samples)
        self.loader = PromptLoader(
            train, data.train_batch_size, data.seed, data.shuffle, data.task_weights, data.curriculum
        )
        steps = self.loader.steps_per_epoch * config.trainer.total_epochs
        wanted = config.trainer.total_training_steps
        self.total_steps = steps if wanted is None else min(steps, wanted)
        control = config.algorithm.kl_ctrl
        target = control.target_kl if control.type == "adaptive" else None
        self.kl_control = KLController(control.kl_coef, target, control.horizon)
        self.updates = 0
        self.ahead: Sampling | None = None
        """the next step's batch, where trainer.async_steps has it sampled while this one is trained on"""
        self.saved = 0
        self.actor_dir = str(Path(config.output_dir) / "actor")

    def _load(self, files: object, key: str) -> Sequence[Prompt]:
        data = self.config.data
        prompts, left_out = load_prompts(
            file_list(files, key),
            self.tokenizer,
            data.max_prompt_length,
            data.filter_overlong_prompts,
            data.answer_style,
            data.think,
            data.cache_dir,
        )
        if left_out:
            self.notes.append(
                f"{key}: {left_out} prompts over {data.max_prompt_length} tokens left out, {len(prompts)} kept"
            )
        return prompts

    def step(self, cluster: Cluster, step: int) -> dict[str, float]:
        """One batch: sample, score, estimate, update, sync."""
        timing: dict[str, float] = {}
        started_at = time.perf_counter()
        sampling = self.ahead or self.sample(cluster, step)
        sampling.receive(timing)
        is_ahead = self.config.trainer.async_steps and step < self.total_steps
        self.ahead = self.sample(cluster, step + 1) if is_ahead else None
        trajectories, metrics = sampling.trajectories(timing)
        metrics["training/policy_lag"] = float(np.mean([self.updates - one.policy_version for one in trajectories]))
        self.prepare(cluster, trajectories, timing)
        with timed(timing, "adv"):
            metrics |= put_advantages(trajectories, self.config.algorithm, self.kl_control)
            metrics |= self.correct(trajectories)
        metrics |= self.update(cluster, trajectories, step, timing)
        if self.ahead is not None:
            self.ahead.receive(timing)  # all of it is sampled with the weights from before this update
        with timed(timing, "sync_weights"):
            cluster.sync_weights()
        rates = call_all(cluster, "end_step", step > self.config.trainer.critic_warmup)
        metrics |= rates[0] | {
            "perf/max_memory_allocated_gb": max(rate["perf/max_memory_allocated_gb"] for rate in rates)
        }
        metrics |= batch_metrics(trajectories, self.config.data.max_prompt_length, self.config.data.max_response_length)
        timing["step"] = time.perf_counter() - started_at
        metrics["perf/throughput"] = metrics["perf/total_num_tokens"] / timing["step"] / cluster.size
        metrics |= {"training/global_step": step, "training/epoch": (step - 1) // self.loader.steps_per_epoch}
        return metrics | {f"timing_s/{name}": seconds for name, seconds in timing.items()}

    def sample(self, cluster: Cluster, step: int) -> Sampling:
        """The next batch, n responses a prompt, under way."""
        rollout = self.config.actor_rollout_ref.rollout
        params = SamplingParams(
            n=rollout.n, temperature=rollout.temperature, max_tokens=self.config.data.max_response_length
        )
        prompts = self.loader.next()
        return self._begin(cluster, prompts, requests_of(self.config, self.tokenizer, prompts, step), params)

    def _begin(
        self, cluster: Cluster, prompts: Sequence[Prompt], requests: Sequence[Request], params: SamplingParams
    ) -> Sampling:
        size = self.config.actor_rollout_ref.rollout.tensor_model_parallel_size
        arriving = dispatch.stream(cluster, requests, params, size)
        return Sampling(prompts, arriving, self.tokenizer, self.rewards, self.updates)

    def prepare(self, cluster: Cluster, trajectories: list[Trajectory], timing: dict[str, float]) -> None:
        """Reference log-probabilities, values and old log-probabilities, each only where it is needed."""
        config, rollout = self.config, self.config.actor_rollout_ref.rollout
        if config.needs_reference:
            with timed(timing, "ref"):
                dispatch.fill(
                    cluster, trajectories, "ref_logprobs", Budget.of_role(config, config.actor_rollout_ref.ref), "logprobs", "reference",
                )  # fmt: skip
        if config.needs_critic:
            with timed(timing, "values"):
                dispatch.fill(cluster, trajectories, "values", self._critic_budget(), "values")
        correction = config.algorithm.rollout_correction.rollout_is is not None
        wanted, stale = config.actor_rollout_ref.actor.recompute_old_log_probs, self._stale(trajectories)
        at_ratio_one = config.on_policy and not config.algorithm.use_kl_in_reward and not correction
        if at_ratio_one and wanted == "auto" and not stale:
            return  # the ratio is 1: the update's own log-probabilities, detached, are the old ones
        # of a stale batch the trainer cannot compute them any more: the engine's are the policy's that sampled, and a
        # correction, which has the engine's as well, takes the trainer's of now and carries the difference itself
        if correction or (not stale and (wanted == "true" or (wanted == "auto" and has_gpu()))):
            with timed(timing, "old_log_prob"):
                dispatch.fill(
                    cluster, trajectories, "old_logprobs", Budget.of_role(config, rollout), "logprobs", "policy"
                )
        else:
            for trajectory in trajectories:
                trajectory.old_logprobs = trajectory.rollout_logprobs

    def _stale(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether another policy than the trainer's of now sampled any of them."""
        return any(trajectory.policy_version != self.updates for trajectory in trajectories)

    def correct(self, trajectories: list[Trajectory]) -> dict[str, float]:
        """Importance weights against the engine's log-probabilities, where they are asked for."""
        config = self.config.algorithm
        if config.rollout_correction.rollout_is is None:
            return {}
        metrics = correct(trajectories, config.rollout_correction)
        if self.config.on_policy and not self._stale(trajectories):
            for trajectory in trajectories:
                trajectory.old_logprobs = None  # the ratio is 1, exactly
        return metrics

    def update(
        self, cluster: Cluster, trajectories: list[Trajectory], step: int, timing: dict[str, float]
    ) -> dict[str, float]:
        """Update critic and actor, mini-batch by mini-batch."""
        config = self.config
        metrics: dict[str, float] = {}
        if config.needs_critic:
            critic = config.critic
            size = critic.ppo_mini_batch_size or config.actor_rollout_ref.actor.ppo_mini_batch_size
            epochs = critic.ppo_epochs or config.actor_rollout_ref.actor.ppo_epochs
            with timed(timing, "update_critic"):
                metrics |= self._epochs(
                    cluster,
                    trajectories,
                    step,
                    size,
                    epochs,
                    critic.loss_agg_mode,
                    self._critic_budget(),
                    "update_critic",
                )
        actor = config.actor_rollout_ref.actor
        if step > config.trainer.critic_warmup:
            with timed(timing, "update_actor"):
                metrics |= self._epochs(
                    cluster,
                    trajectories,
                    step,
                    actor.ppo_mini_batch_size,
                    actor.ppo_epochs,
                    actor.loss_agg_mode,
                    self._actor_budget(),
                    "update_policy",
                )
        return metrics

    def _epochs(
        self,
        cluster: Cluster,
        trajectories: list[Trajectory],
        step: int,
        mini_batch: int,
        epochs: int,
        loss_agg_mode: str,
        budget: Budget,
        method: str,
    ) -> dict[str, float]:
        groups = sorted({trajectory.group_id for trajectory in trajectories})
        order = np.random.default_rng([self.config.trainer.seed, step])
        parts: list[dict[str, float]] = []
        for _ in range(epochs):
            dealt = order.permutation(groups) if self.config.actor_rollout_ref.actor.shuffle else np.array(groups)
            for start in range(0, len(dealt), mini_batch):
                chosen = set(dealt[start : start + mini_batch].tolist())
                batch = [trajectory for trajectory in trajectories if trajectory.group_id in chosen]
                for trajectory, share in zip(
                    batch, token_shares([one.valid for one in batch], loss_agg_mode), strict=True
                ):
                    trajectory.weights = share
                if method == "update_policy":
                    batch = with_gradient(batch, self.config.actor_rollout_ref.actor)
                parts.append(dispatch.update(cluster, batch, budget, method))
        metrics = mean_over_updates(parts)
        if method == "update_policy":
            self.updates += len(parts)
            # only the first update is by the policy that sampled: later ones differ for a good reason
            metrics["rollout/logprob_diff_mean"] = parts[0]["rollout/logprob_diff"]
            metrics["rollout/logprob_diff_max"] = parts[0]["rollout/logprob_diff_max"]
            metrics["rollout/kl"] = parts[0]["rollout/kl"]
            metrics["actor/skipped_updates"] = float(sum(not np.isfinite(part["actor/grad_norm"]) for part in parts))
            del metrics["rollout/logprob_diff"]
        return metrics

    def validate(self, cluster: Cluster) -> dict[str, float]:
        """Mean reward and parts of each task on the validation rows, decoded as rollout.val_kwargs says."""
        timing: dict[str, float] = {}
        rollout = self.config.actor_rollout_ref.rollout
        val = rollout.val_kwargs
        params = SamplingParams(
            temperature=val.temperature,
            top_p=val.top_p,
            top_k=val.top_k,
            max_tokens=self.config.data.max_response_length,
        )
        breakdowns: list[dict[str, float]] = []
        size = self.config.data.val_batch_size or len(self.validation)
        requests = requests_of(self.config, self.tokenizer, self.validation, step=0)
        with timed(timing, "testing"):
            for start in range(0, len(self.validation), size):
                chosen = slice(start, start + size)
                sampling = self._begin(cluster, self.validation[chosen], requests[chosen], params)
                sampling.receive({})
                breakdowns += sampling.breakdowns({})
        metrics = validation_metrics([prompt.task for prompt in self.validation], breakdowns)
        return metrics | {"timing_s/testing": timing["testing"]}

    def save(self, cluster: Cluster, step: int) -> dict[str, float]:
        """Write the actor as a Hugging Face directory with what is needed to rank with it."""
        timing: dict[str, float] = {}
        first = self.loader.prompts[0]
        about = {
            "strategy": first.mode,
            "answer_style": first.answer_format.answer_style,
            "think": first.answer_format.think,
            "constrain": self.config.actor_rollout_ref.rollout.constrain,
            "max_response_length": self.config.data.max_response_length,
            "step": step,
        }
        with timed(timing, "save_checkpoint"):
            call_all(cluster, "save_policy", self.actor_dir, about)
        self.saved = step
        return {"timing_s/save_checkpoint": timing["save_checkpoint"]}

    def _actor_budget(self) -> Budget:
        actor = self.config.actor_rollout_ref.actor
        return Budget.of(self.config, None, actor.ppo_micro_batch_size, actor.ppo_micro_batch_size_per_gpu, None)

    def _critic_budget(self) -> Budget:
        critic = self.config.critic
        return Budget.of(
            self.config,
            critic.ppo_max_token_len_per_gpu,
            critic.ppo_micro_batch_size,
            critic.ppo_micro_batch_size_per_gpu,
            critic.use_dynamic_bsz,
            critic.model.path,
        )


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)
