"""Prompts dealt and answered, a batch a step; with trainer.async_steps the next batch while this one is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from r1ranker.data.loader import PromptLoader
from r1ranker.data.prompt_store import Prompt
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.episodes import EpisodeRequest, Turn
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.collect import SampledBatch, as_turns, build_requests, replay_turns
from r1ranker.trainer.experience.conversing import build_episodes, learned_turns
from r1ranker.trainer.experience.elimination import eliminate_to_pool
from r1ranker.trainer.experience.enumeration import enumerate_answers, enumerate_turns
from r1ranker.trainer.monitoring.metrics import timed
from r1ranker.trainer.scoring.pool import RewardPool
from r1ranker.trainer.workers import dispatch
from r1ranker.trainer.workers.cluster import Cluster

DRAWS = 1000
"""from here on, a step's second number is that of a batch drawn for it; below, of a round of elimination"""


class Sampler:
    """Deals prompts to the rollout engines and their responses to the reward."""

    def __init__(
        self, config: Config, tokenizer: PreTrainedTokenizerBase, loader: PromptLoader, rewards: RewardPool
    ) -> None:
        self.config, self.tokenizer, self.loader, self.rewards = config, tokenizer, loader, rewards
        self._ahead: SampledBatch | None = None
        """the next step's batch, where it is sampled while this one is trained on"""
        self._before_ahead: dict[str, Any] = {}
        """where the loader stood before that batch was dealt"""

    def next_batch(
        self, cluster: Cluster, step: int, policy_version: int, is_last: bool, timing: dict[str, float]
    ) -> SampledBatch:
        """The batch of `step`, whose responses are complete; the next one is under way where trainer.async_steps asks for it."""
        batch = self._ahead or self.begin(cluster, step, policy_version, timing)
        batch.receive(timing)
        is_ahead = self.config.trainer.async_steps and not is_last
        self._ahead = self.begin(cluster, step + 1, policy_version, timing) if is_ahead else None
        return batch

    def receive_ahead(self, timing: dict[str, float]) -> None:
        """Wait for the responses of the batch ahead: all of it is sampled with the weights from before an update."""
        if self._ahead is not None:
            self._ahead.receive(timing)

    def begin(
        self, cluster: Cluster, step: int, policy_version: int, timing: dict[str, float], draw: int = 0
    ) -> SampledBatch:
        """The next prompts, n responses to each under way; on smaller pools where rollout.eliminate_to asks for them.

        `draw`: batches that were drawn for the step before.
        """
        when = (step, DRAWS + draw) if draw else (step,)
        rollout = self.config.actor_rollout_ref.rollout
        params = SamplingParams(
            n=rollout.n, temperature=rollout.temperature, max_tokens=self.config.data.max_response_length
        )
        self._before_ahead = self.loader.state_dict()
        prompts = self.loader.next()
        if self.config.data.rounds == "conversation":
            return self._converse(cluster, prompts, params, when, policy_version, timing)
        spent = 0
        if rollout.eliminate_to is not None:
            with timed(timing, "eliminate"):
                prompts, spent = eliminate_to_pool(cluster, self.config, self.tokenizer, prompts, params, *when)
        if rollout.every_answer:
            with timed(timing, "gen"):
                answers = enumerate_answers(cluster, self.config, self.tokenizer, prompts, *when)
            batch = self._batch(prompts, enumerate(answers), policy_version, every=True)
        else:
            requests = build_requests(self.config, self.tokenizer, prompts, *when)
            batch = self.send(cluster, prompts, requests, params, policy_version)
        batch.elimination_tokens = spent
        return batch

    def _converse(
        self,
        cluster: Cluster,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        when: Sequence[int],
        policy_version: int,
        timing: dict[str, float],
    ) -> SampledBatch:
        """n episodes of each prompt under way; with every answer one, and all that its turns could have been answered."""
        rollout = self.config.actor_rollout_ref.rollout
        each = 1 if rollout.every_answer else rollout.n
        if rollout.every_answer:  # nothing of what is sampled is learned: whom the ranker would let go goes
            params = replace(params, temperature=0.0)
        episodes = build_episodes(self.config, self.tokenizer, prompts, each, *when, to_learn=True)
        arriving = learned_turns(self.config, prompts, each, self._play(cluster, episodes, params))
        if rollout.every_answer:
            with timed(timing, "gen"):
                answers = enumerate_turns(cluster, self.config, self.tokenizer, prompts, dict(arriving))
            arriving = enumerate(answers)
        return self._made(prompts, arriving, policy_version, each, rollout.every_answer)

    def send(
        self,
        cluster: Cluster,
        prompts: Sequence[Prompt],
        requests: Sequence[Request],
        params: SamplingParams,
        policy_version: int,
    ) -> SampledBatch:
        """The prompts' requests on their way to the engines."""
        size = self.config.actor_rollout_ref.rollout.tensor_model_parallel_size
        arriving = dispatch.stream(cluster, requests, params, size)
        return self._batch(prompts, arriving, policy_version)

    def send_episodes(
        self,
        cluster: Cluster,
        prompts: Sequence[Prompt],
        episodes: Sequence[EpisodeRequest],
        params: SamplingParams,
        policy_version: int,
    ) -> SampledBatch:
        """Episodes, as many of each prompt, on their way to the engines."""
        return self._made(prompts, self._play(cluster, episodes, params), policy_version, len(episodes) // len(prompts))

    def _play(
        self, cluster: Cluster, episodes: Sequence[EpisodeRequest], params: SamplingParams
    ) -> Iterator[tuple[int, list[Turn]]]:
        size = self.config.actor_rollout_ref.rollout.tensor_model_parallel_size
        return dispatch.stream_episodes(cluster, episodes, replace(params, n=1), size)

    def _batch(
        self,
        prompts: Sequence[Prompt],
        arriving: Iterator[tuple[int, list[Completion]]],
        policy_version: int,
        every: bool = False,
    ) -> SampledBatch:
        turns = ((place, as_turns(prompts[place], samples)) for place, samples in arriving)
        return self._made(prompts, turns, policy_version, 0, every)

    def _made(
        self,
        prompts: Sequence[Prompt],
        turns: Iterator[tuple[int, list[Turn]]],
        policy_version: int,
        episodes: int,
        every: bool = False,
    ) -> SampledBatch:
        most = self.config.reward.max_failure_rate
        return SampledBatch(prompts, turns, self.tokenizer, self.rewards, policy_version, most, every, episodes)

    def state(self) -> dict[str, Any]:
        """Where the loader stands, and the batch ahead, as JSON takes them."""
        if self._ahead is None:
            return {"loader": self.loader.state_dict(), "ahead": None}
        return {"loader": self._before_ahead, "ahead": self._ahead.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; raises UserError where other rows would be dealt."""
        self.loader.load_state_dict(state["loader"])
        ahead = state["ahead"]
        if ahead is not None:
            self._before_ahead = state["loader"]
            episodes = self.config.actor_rollout_ref.rollout.n if self.config.data.rounds == "conversation" else 0
            prompts = self.loader.next()
            self._ahead = self._made(prompts, replay_turns(ahead, prompts), ahead["policy_version"], episodes)
