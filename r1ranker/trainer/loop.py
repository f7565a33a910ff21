"""Run: the whole algorithm, a step of it a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from r1ranker.data.files.manifest import checksum
from r1ranker.data.loader import PromptLoader, subsample_by_task
from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import UserError, suggest
from r1ranker.pretrained import full_path, read_setting
from r1ranker.rollout.agreement import check_architecture
from r1ranker.rollout.constraint import count_single_token_labels
from r1ranker.trainer.algorithm.correction import apply_importance_weights, reject_tokens
from r1ranker.trainer.algorithm.estimation import assign_advantages
from r1ranker.trainer.algorithm.kl import KLController
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.checkpoint.random_state import get_random_states, set_random_states
from r1ranker.trainer.checkpoint.record import installed_versions
from r1ranker.trainer.checkpoint.state import State
from r1ranker.trainer.config.checks import list_files
from r1ranker.trainer.config.load import to_dict
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.collect import SampledBatch
from r1ranker.trainer.experience.conversing import describe_turns
from r1ranker.trainer.experience.filtering import fill_with_signal
from r1ranker.trainer.experience.inputs import load_shared_tokenizer, load_split
from r1ranker.trainer.experience.sampler import Sampler
from r1ranker.trainer.experience.scored import ScoredBatch, score
from r1ranker.trainer.experience.validation import validate
from r1ranker.trainer.memory.adapters import load_adapters
from r1ranker.trainer.monitoring.metrics import policy_lag, step_metrics, timed
from r1ranker.trainer.monitoring.non_finite import NonFiniteSteps, refuse_non_finite
from r1ranker.trainer.monitoring.rollouts import RolloutLog
from r1ranker.trainer.prepare import is_stale, prepare
from r1ranker.trainer.scoring.pool import RewardPool
from r1ranker.trainer.update import Updater
from r1ranker.trainer.workers.cluster import Cluster, call_all
from r1ranker.trainer.workers.profiling import DIRECTORY as PROFILES


class Run:
    """What outlives a step: the data, the reward, the KL controller, and how far the run is."""

    def __init__(self, config: Config) -> None:
        """Look at the models, read data and tokenizer; raises UserError for what cannot be used. No process starts."""
        self.config = config
        self.say: Callable[[str], None] = print
        """takes a line for the reader"""
        self.notes: list[str] = []
        """lines for the reader before the first step"""
        check_architecture(str(config.actor_rollout_ref.model.path))
        load_adapters("actor_rollout_ref.model", config.actor_rollout_ref.model)
        if config.needs_critic:
            check_architecture(str(config.critic.model.path))
            load_adapters("critic.model", config.critic.model)
        actor = config.actor_rollout_ref.actor
        if actor.use_kl_loss and actor.kl_loss_coef and actor.kl_loss_type == "k1":
            self.notes.append(
                "actor_rollout_ref.actor.kl_loss_type: the gradient of k1 is 0 in expectation, so the KL loss holds nothing "
                "back; k3 or k2 does"
            )
        data, trainer, control = config.data, config.trainer, config.algorithm.kl_ctrl
        rewards = RewardPool(config.custom_reward_function, config.reward.num_workers, config.reward.timeout)
        tokenizer = self._tokenizer = load_shared_tokenizer(config)
        train = load_split(config, tokenizer, data.train_files, "data.train_files", self.notes.append)
        validation: Sequence[Prompt] = []
        if data.val_files:
            validation = load_split(config, tokenizer, data.val_files, "data.val_files", self.notes.append)
        self.validation = subsample_by_task(validation, data.val_max_samples)
        if config.algorithm.credit == "rank" and train[0].mode != "direct":
            raise UserError(
                "algorithm.credit: rank is of direct_ranking rows, and data.train_files holds iterative ones; response is wanted"
            )
        if data.rounds == "conversation":
            self.notes += describe_turns(config, tokenizer, train)
        self.loader = PromptLoader(
            train, data.train_batch_size, data.seed, data.shuffle, data.task_weights, data.curriculum
        )
        steps = self.loader.steps_per_epoch * trainer.total_epochs
        self.total_steps = min(steps, trainer.total_training_steps or steps)
        self.sampler = Sampler(config, tokenizer, self.loader, rewards)
        self.updater = Updater(config)
        target = control.target_kl if control.type == "adaptive" else None
        self.kl_control = KLController(control.kl_coef, target, control.horizon)
        self.bad_steps = NonFiniteSteps(config, tokenizer)
        self.rollouts = RolloutLog(config, tokenizer)
        self.best: float | None = None
        """the highest trainer.best_metric so far"""
        self.saved = 0
        """the step of the actor that was saved last"""
        self.actor_dir = str(Path(config.output_dir) / "actor")
        self.data_checksums = {path: checksum(Path(path)) for path in list_files(data.train_files, "data.train_files")}

    def close(self) -> None:
        """End the processes of the reward."""
        self.sampler.rewards.close()

    def step(self, cluster: Cluster, step: int) -> dict[str, float]:
        """One batch; returns its metrics. Profiled where trainer.profile_steps names it."""
        if step not in self.config.trainer.profile_steps:
            return self._step(cluster, step)
        call_all(cluster, "start_profile")
        metrics = self._step(cluster, step)
        for summary in call_all(cluster, "stop_profile", str(Path(self.config.output_dir) / PROFILES), step):
            self.say(summary)
        return metrics

    def _step(self, cluster: Cluster, step: int) -> dict[str, float]:
        timing: dict[str, float] = {}
        with timed(timing, "step"):
            version, is_last = self.updater.policy_version, step == self.total_steps
            # 1. and 2. deal prompts and sample n responses to each
            sampled = self.sampler.next_batch(cluster, step, version, is_last, timing)
            # 3. rewards; with dynamic sampling of further batches, too
            batch = self.score(cluster, sampled, step, timing)
            trajectories, metrics = batch.trajectories, batch.metrics
            metrics |= policy_lag(trajectories, version)
            with self.bad_steps.guard(step, self.say):
                # 4. log-probabilities and values
                prepare(cluster, self.config, trajectories, version, timing)
                # 5. advantages
                learned = self.estimate(trajectories, timing)
                self.rollouts.write(step, batch.prompts, trajectories, batch.parts)
                # 6. update critic and actor
                metrics |= learned | self.updater.update(cluster, trajectories, step, timing)
            self.sampler.receive_ahead(timing)
            # 7. the new weights to the engines
            with timed(timing, "sync_weights"):
                cluster.sync_weights()
            metrics |= self.end_step(cluster, step)
        # 8. metrics; fit.py validates and saves
        is_bad = self.bad_steps.in_a_row > 0
        return step_metrics(metrics, trajectories, self.config.data, timing, batch.spent, cluster.size, is_bad)

    def score(self, cluster: Cluster, sampled: SampledBatch, step: int, timing: dict[str, float]) -> ScoredBatch:
        """The batch with its rewards; where algorithm.filter_groups asks for it, filled with groups that have a signal."""
        batches = [sampled]

        def draw(number: int) -> SampledBatch:
            batches.append(self.sampler.begin(cluster, step, self.updater.policy_version, timing, number))
            return batches[-1]

        if self.config.algorithm.filter_groups.enable:
            scored = fill_with_signal(sampled, draw, self.config, timing)
        else:
            scored = score(sampled, self.config, timing)
        for one in batches:
            one.report_failures(f"step {step}", self.say)
        return scored

    def estimate(self, trajectories: list[Trajectory], timing: dict[str, float]) -> dict[str, float]:
        """Advantages on whole groups; importance weights in them, and tokens out of the loss, where algorithm.rollout_correction says so.

        Raises NonFiniteError where a number is not finite, before or after.
        """
        refuse_non_finite(trajectories, ("old_logprobs", "ref_logprobs", "values"))
        every = self.config.actor_rollout_ref.rollout.every_answer
        correction = self.config.algorithm.rollout_correction
        with timed(timing, "adv"):
            metrics = {} if correction.rollout_rs is None else reject_tokens(trajectories, correction)
            metrics |= assign_advantages(trajectories, self.config.algorithm, self.kl_control, every)
            if correction.rollout_is is not None:
                metrics |= apply_importance_weights(trajectories, correction)
            fresh = self.config.on_policy and not is_stale(trajectories, self.updater.policy_version)
            if fresh and self.config.corrects:
                for trajectory in trajectories:
                    trajectory.old_logprobs = None  # the ratio is 1, exactly
        refuse_non_finite(trajectories, ("advantages", "returns"))
        return metrics

    def end_step(self, cluster: Cluster, step: int) -> dict[str, float]:
        """Have every process move its schedules on; returns learning rates, memory, and how far the run is."""
        rates = call_all(cluster, "end_step", step > self.config.trainer.critic_warmup)
        memory = "perf/max_memory_allocated_gb"
        epoch = (step - 1) // self.loader.steps_per_epoch
        return rates[0] | {
            memory: max(rate[memory] for rate in rates),
            "training/global_step": step,
            "training/epoch": epoch,
        }

    def validate(self, cluster: Cluster, step: int) -> dict[str, float]:
        """Metrics of the validation rows; keeps the actor under best/ where trainer.best_metric is higher than ever."""
        version = self.updater.policy_version
        metrics = validate(cluster, self.sampler, self.validation, version, self.say, self.rollouts, step)
        wanted = self.config.trainer.best_metric
        if wanted is None:
            return metrics
        if wanted not in metrics:
            raise UserError(f"trainer.best_metric: no {wanted!r}{suggest(wanted, metrics)} in a validation")
        if self.best is None or metrics[wanted] > self.best:
            self.best = metrics[wanted]
            self._export(cluster, step, str(Path(self.config.output_dir) / "best"))
        return metrics

    def save(self, cluster: Cluster, step: int) -> dict[str, float]:
        """Write the actor as a Hugging Face directory with what is needed to rank with it."""
        timing: dict[str, float] = {}
        with timed(timing, "save_checkpoint"):
            self._export(cluster, step, self.actor_dir)
        self.saved = step
        return {"timing_s/save_checkpoint": timing["save_checkpoint"]}

    def _export(self, cluster: Cluster, step: int, directory: str) -> None:
        call_all(cluster, "save_policy", directory, self._ranker_settings(step))

    def _ranker_settings(self, step: int) -> dict[str, Any]:
        """What is needed to rank with the actor of `step`."""
        first = self.loader.prompts[0]
        return {
            "strategy": first.mode,
            "answer_style": first.answer_format.answer_style,
            "think": first.answer_format.think,
            "rounds": self.config.data.rounds if first.mode == "iterative" else "separate",
            "keep_thoughts": self.config.data.keep_thoughts,
            "constrain": self.config.actor_rollout_ref.rollout.constrain,
            "max_prompt_length": self.config.data.max_prompt_length,
            "max_response_length": self.config.data.max_response_length,
            "single_token_labels": count_single_token_labels(self._tokenizer, first.mode, first.answer_format),
            "base_model": full_path(str(self.config.actor_rollout_ref.model.path)),
            "step": step,
        }

    def state(self, step: int) -> dict[str, Any]:
        """The driver's part of a training state after `step`."""
        return {
            "step": step,
            "updates": self.updater.policy_version,
            "bad_steps": self.bad_steps.in_a_row,
            "kl_coef": self.kl_control.value,
            **self.sampler.state(),
            "best": self.best,
            "actor": self._ranker_settings(step),
            "random": get_random_states(),
            "data": self.data_checksums,
            "config": to_dict(self.config),
            "versions": installed_versions(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; raises UserError where other rows would be dealt."""
        self.updater.policy_version, self.kl_control.value = state["updates"], state["kl_coef"]
        self.best, self.bad_steps.in_a_row = state["best"], state["bad_steps"]
        self.sampler.restore(state)
        with suppress(ValueError, TypeError):
            self.saved = int(read_setting(self.actor_dir, "step"))
        now = installed_versions()
        changed = [
            f"{name} {before} -> {now.get(name)}"
            for name, before in state["versions"].items()
            if now.get(name) != before
        ]
        if changed:
            self.notes.append(f"other versions than where the run was left: {', '.join(changed)}")

    def load(self, cluster: Cluster, state: State) -> None:
        """Bring every process to where `state` was taken."""
        call_all(cluster, "load_state", str(state.directory))
        cluster.sync_weights()
        call_all(cluster, "restore_random", str(state.directory))
        set_random_states(state.driver["random"])
