"""Run: the whole algorithm, a step of it a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from r1ranker.data.files.manifest import checksum
from r1ranker.data.loader import PromptLoader, load_prompts, spread_over_tasks
from r1ranker.data.prompts import Prompt
from r1ranker.errors import UserError, nearest
from r1ranker.pretrained import SETTINGS_FILE, load_tokenizer
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.trainer.algorithm.correction import correct
from r1ranker.trainer.algorithm.estimation import put_advantages, put_shares, with_gradient
from r1ranker.trainer.algorithm.kl import KLController
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.checkpoint.random_state import random_states, restore_random_states
from r1ranker.trainer.checkpoint.record import versions
from r1ranker.trainer.checkpoint.state import State
from r1ranker.trainer.config.checks import file_list
from r1ranker.trainer.config.load import as_dict
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.collect import Sampling, requests_of, restored
from r1ranker.trainer.experience.elimination import reduced
from r1ranker.trainer.experience.every_answer import every_answer
from r1ranker.trainer.monitoring.bad_steps import BadSteps, NotFinite, refuse_not_finite
from r1ranker.trainer.monitoring.metrics import batch_metrics, mean_over_updates, timed, validation_metrics
from r1ranker.trainer.scoring.outcome import Outcome, told
from r1ranker.trainer.scoring.pool import RewardPool
from r1ranker.trainer.workers import dispatch
from r1ranker.trainer.workers.cluster import Cluster, call_all


class Run:
    """What outlives a step: the data, the reward, the KL controller, and how far the run is."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rewards = RewardPool(config.custom_reward_function, config.reward.num_workers, config.reward.timeout)
        self.say: Callable[[str], None] = print
        """takes a line for the reader"""
        self.tokenizer = load_tokenizer(str(config.actor_rollout_ref.model.path))
        self.bad_steps = BadSteps(config, self.tokenizer)
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
        self._before_ahead: dict[str, Any] = {}
        """where the loader stood before that batch was dealt"""
        self.best: float | None = None
        """the highest trainer.best_metric so far"""
        self.saved = 0
        self.actor_dir = str(Path(config.output_dir) / "actor")
        self.data_checksums = {path: checksum(Path(path)) for path in file_list(data.train_files, "data.train_files")}

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
        sampling = self.ahead or self.sample(cluster, step, timing)
        sampling.receive(timing)
        is_ahead = self.config.trainer.async_steps and step < self.total_steps
        self.ahead = self.sample(cluster, step + 1, timing) if is_ahead else None
        trajectories, metrics = sampling.trajectories(timing)
        self._tell(f"step {step}", sampling, len(trajectories) + len(sampling.failures))
        metrics["training/policy_lag"] = float(np.mean([self.updates - one.policy_version for one in trajectories]))
        try:
            metrics |= self.learn(cluster, trajectories, step, timing)
            self.bad_steps.passed()
            metrics["training/bad_step"] = 0.0
        except NotFinite as found:
            self.say(f"step {step}: {self.bad_steps.met(found, step)}")
            metrics["training/bad_step"] = 1.0
        if self.ahead is not None:
            self.ahead.receive(timing)  # all of it is sampled with the weights from before this update
        with timed(timing, "sync_weights"):
            cluster.sync_weights()
        rates = call_all(cluster, "end_step", step > self.config.trainer.critic_warmup)
        metrics |= rates[0] | {
            "perf/max_memory_allocated_gb": max(rate["perf/max_memory_allocated_gb"] for rate in rates)
        }
        metrics |= batch_metrics(trajectories, self.config.data.max_prompt_length, self.config.data.max_response_length)
        metrics["perf/total_num_tokens"] += sampling.tokens_before
        if metrics["training/bad_step"]:
            metrics = {name: value for name, value in metrics.items() if np.isfinite(value)}
        timing["step"] = time.perf_counter() - started_at
        metrics["perf/throughput"] = metrics["perf/total_num_tokens"] / timing["step"] / cluster.size
        metrics |= {"training/global_step": step, "training/epoch": (step - 1) // self.loader.steps_per_epoch}
        return metrics | {f"timing_s/{name}": seconds for name, seconds in timing.items()}

    def learn(
        self, cluster: Cluster, trajectories: list[Trajectory], step: int, timing: dict[str, float]
    ) -> dict[str, float]:
        """Estimate and update. Raises NotFinite, before the update in question, where a number is not."""
        self.prepare(cluster, trajectories, timing)
        refuse_not_finite(trajectories, ("old_logprobs", "ref_logprobs", "values"))
        with timed(timing, "adv"):
            every = self.config.actor_rollout_ref.rollout.every_answer
            metrics = put_advantages(trajectories, self.config.algorithm, self.kl_control, every)
            metrics |= self.correct(trajectories)
        refuse_not_finite(trajectories, ("advantages", "returns"))
        return metrics | self.update(cluster, trajectories, step, timing)

    def sample(self, cluster: Cluster, step: int, timing: dict[str, float]) -> Sampling:
        """The next batch, n responses a prompt, under way."""
        rollout = self.config.actor_rollout_ref.rollout
        params = SamplingParams(
            n=rollout.n, temperature=rollout.temperature, max_tokens=self.config.data.max_response_length
        )
        self._before_ahead = self.loader.state()
        prompts, spent = self.loader.next(), 0
        if rollout.eliminate_to is not None:
            with timed(timing, "eliminate"):
                prompts, spent = reduced(cluster, self.config, self.tokenizer, prompts, params, step)
        if rollout.every_answer:
            with timed(timing, "gen"):
                answers = every_answer(cluster, self.config, self.tokenizer, prompts)
            sampling = self._sampling(prompts, enumerate(answers))
        else:
            requests = requests_of(self.config, self.tokenizer, prompts, step)
            sampling = self._begin(cluster, prompts, requests, params)
        sampling.tokens_before = spent
        return sampling

    def _begin(
        self, cluster: Cluster, prompts: Sequence[Prompt], requests: Sequence[Request], params: SamplingParams
    ) -> Sampling:
        size = self.config.actor_rollout_ref.rollout.tensor_model_parallel_size
        return self._sampling(prompts, dispatch.stream(cluster, requests, params, size))

    def _sampling(self, prompts: Sequence[Prompt], arriving: Iterator[tuple[int, list[Completion]]]) -> Sampling:
        most, every = self.config.reward.max_failure_rate, self.config.actor_rollout_ref.rollout.every_answer
        return Sampling(prompts, arriving, self.tokenizer, self.rewards, self.updates, most, every)

    def _tell(self, where: str, sampling: Sampling, responses: int) -> None:
        """Say which rewards of a batch failed."""
        for line in told(sampling.failures, responses):
            self.say(f"{where}: {line}")

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
        if correction or (not stale and (wanted == "true" or (wanted == "auto" and self._rounds(cluster)))):
            with timed(timing, "old_log_prob"):
                dispatch.fill(
                    cluster, trajectories, "old_logprobs", Budget.of_role(config, rollout), "logprobs", "policy"
                )
        else:
            for trajectory in trajectories:
                trajectory.old_logprobs = trajectory.rollout_logprobs

    def _rounds(self, cluster: Cluster) -> bool:
        """Whether engine and trainer compute in a type whose rounding makes their log-probabilities differ."""
        dtype = self.config.actor_rollout_ref.model.dtype
        return cluster.on_gpu if dtype == "auto" else dtype != "float32"

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
                    cluster, trajectories, step, size, epochs, critic.loss_agg_mode, self._critic_budget(), "update_critic"
                )  # fmt: skip
        actor = config.actor_rollout_ref.actor
        if step > config.trainer.critic_warmup:
            with timed(timing, "update_actor"):
                metrics |= self._epochs(
                    cluster, trajectories, step, actor.ppo_mini_batch_size, actor.ppo_epochs, actor.loss_agg_mode,
                    self._actor_budget(), "update_policy",
                )  # fmt: skip
        return metrics

    def _epochs(
        self, cluster: Cluster, trajectories: list[Trajectory], step: int, mini_batch: int, epochs: int, loss_agg_mode: str,
        budget: Budget, method: str,
    ) -> dict[str, float]:  # fmt: skip
        groups = sorted({trajectory.group_id for trajectory in trajectories})
        order = np.random.default_rng([self.config.trainer.seed, step])
        parts: list[dict[str, float]] = []
        model = "actor" if method == "update_policy" else "critic"
        for _ in range(epochs):
            dealt = order.permutation(groups) if self.config.actor_rollout_ref.actor.shuffle else np.array(groups)
            for start in range(0, len(dealt), mini_batch):
                chosen = set(dealt[start : start + mini_batch].tolist())
                batch = [trajectory for trajectory in trajectories if trajectory.group_id in chosen]
                put_shares(batch, loss_agg_mode)
                if method == "update_policy":
                    batch = with_gradient(batch, self.config.actor_rollout_ref.actor)
                part = dispatch.update(cluster, batch, budget, method)
                if not np.isfinite(part[f"{model}/grad_norm"]):
                    dispatch.fill(cluster, batch, "loss", budget, "losses", "critic" if model == "critic" else "policy")
                    offending = [one for one in batch if one.loss is not None and not np.isfinite(one.loss)]
                    raise NotFinite(f"the {model}'s loss or gradient is not finite", batch, offending)
                parts.append(part)
                self.updates += method == "update_policy"
        metrics = mean_over_updates(parts)
        if method == "update_policy":
            # only the first update is by the policy that sampled: later ones differ for a good reason
            metrics["rollout/logprob_diff_mean"] = parts[0]["rollout/logprob_diff"]
            metrics["rollout/logprob_diff_max"] = parts[0]["rollout/logprob_diff_max"]
            metrics["rollout/kl"] = parts[0]["rollout/kl"]
            del metrics["rollout/logprob_diff"]
        return metrics

    def validate(self, cluster: Cluster, step: int) -> dict[str, float]:
        """Mean reward and parts of each task on the validation rows, decoded as rollout.val_kwargs says.

        The actor is kept under best/ where trainer.best_metric is higher than ever.
        """
        timing: dict[str, float] = {}
        rollout = self.config.actor_rollout_ref.rollout
        val = rollout.val_kwargs
        params = SamplingParams(
            temperature=val.temperature,
            top_p=val.top_p,
            top_k=val.top_k,
            max_tokens=self.config.data.max_response_length,
        )
        breakdowns: list[Outcome] = []
        size = self.config.data.val_batch_size or len(self.validation)
        requests = requests_of(self.config, self.tokenizer, self.validation, 0)
        with timed(timing, "testing"):
            for start in range(0, len(self.validation), size):
                chosen = slice(start, start + size)
                sampling = self._begin(cluster, self.validation[chosen], requests[chosen], params)
                sampling.receive({})
                breakdowns += sampling.breakdowns({})
                self._tell("validation", sampling, len(requests[chosen]))
        metrics = validation_metrics([prompt.task for prompt in self.validation], breakdowns)
        wanted = self.config.trainer.best_metric
        if wanted is not None:
            if wanted not in metrics:
                raise UserError(f"trainer.best_metric: no {wanted!r}{nearest(wanted, metrics)} in a validation")
            if self.best is None or metrics[wanted] > self.best:
                self.best = metrics[wanted]
                self._export(cluster, step, str(Path(self.config.output_dir) / "best"))
        return metrics | {"timing_s/testing": timing["testing"]}

    def save(self, cluster: Cluster, step: int) -> dict[str, float]:
        """Write the actor as a Hugging Face directory with what is needed to rank with it."""
        timing: dict[str, float] = {}
        with timed(timing, "save_checkpoint"):
            self._export(cluster, step, self.actor_dir)
        self.saved = step
        return {"timing_s/save_checkpoint": timing["save_checkpoint"]}

    def _export(self, cluster: Cluster, step: int, directory: str) -> None:
        call_all(cluster, "save_policy", directory, self._about(step))

    def _about(self, step: int) -> dict[str, Any]:
        """What is needed to rank with the actor of `step`."""
        first = self.loader.prompts[0]
        return {
            "strategy": first.mode,
            "answer_style": first.answer_format.answer_style,
            "think": first.answer_format.think,
            "constrain": self.config.actor_rollout_ref.rollout.constrain,
            "max_response_length": self.config.data.max_response_length,
            "step": step,
        }

    def state(self, step: int) -> dict[str, Any]:
        """The driver's part of a training state after `step`."""
        return {
            "step": step,
            "updates": self.updates,
            "bad_steps": self.bad_steps.in_a_row,
            "kl_coef": self.kl_control.value,
            "loader": self._before_ahead if self.ahead is not None else self.loader.state(),
            "ahead": None if self.ahead is None else self.ahead.state(),
            "best": self.best,
            "actor": self._about(step),
            "random": random_states(),
            "data": self.data_checksums,
            "config": as_dict(self.config),
            "versions": versions(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; raises UserError where other rows would be dealt."""
        self.updates, self.kl_control.value, self.best = state["updates"], state["kl_coef"], state["best"]
        self.bad_steps.in_a_row = state["bad_steps"]
        self.loader.restore(state["loader"])
        if state["ahead"] is not None:
            arriving, version = restored(state["ahead"]), state["ahead"]["policy_version"]
            self._before_ahead = state["loader"]
            most = self.config.reward.max_failure_rate
            self.ahead = Sampling(self.loader.next(), arriving, self.tokenizer, self.rewards, version, most)
        with suppress(OSError, ValueError, KeyError):
            self.saved = int(json.loads((Path(self.actor_dir) / SETTINGS_FILE).read_text(encoding="utf-8"))["step"])
        changed = [f"{name} {before} -> {versions().get(name)}" for name, before in state["versions"].items() if versions().get(name) != before]  # fmt: skip
        if changed:
            self.notes.append(f"other versions than where the run was left: {', '.join(changed)}")

    def load(self, cluster: Cluster, state: State) -> None:
        """Bring every process to where `state` was taken."""
        call_all(cluster, "load_state", str(state.directory))
        cluster.sync_weights()
        call_all(cluster, "restore_random", str(state.directory))
        restore_random_states(state.driver["random"])

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
