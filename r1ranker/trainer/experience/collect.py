"""From prompts to scored trajectories: completions are handed to the reward as they come, while others are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Completion, Request
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.enumeration import answer_probabilities
from r1ranker.trainer.monitoring.metrics import mean_reward_parts, timed
from r1ranker.trainer.scoring.outcome import (
    Failure,
    Outcome,
    decode_response,
    refuse_too_many_failures,
    report_failures,
)
from r1ranker.trainer.scoring.pool import RewardPool


class SampledBatch:
    """Prompts whose responses are under way; nothing in it hangs on the order in which they come."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        arriving: Iterator[tuple[int, list[Completion]]],
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardPool,
        policy_version: int,
        max_failure_rate: float = 0.0,
        every_answer: bool = False,
    ) -> None:
        """`arriving`: (place of a prompt, its completions), as `dispatch.stream` has them; `every_answer`: all there are."""
        self._every_answer = every_answer
        self.elimination_tokens = 0
        """spent on making the pools smaller; a prompt counts for each of its answers"""
        self.prompts, self._arriving = prompts, arriving
        self._tokenizer, self._rewards = tokenizer, rewards
        self.policy_version = policy_version
        self._completions: list[list[Completion]] = [[] for _ in prompts]
        self._pending: list[list[Future[Outcome]]] = [[] for _ in prompts]
        self._max_failure_rate = max_failure_rate
        self._early: list[Failure] = []
        """of rewards so far, as their threads tell it"""
        self.failures: list[Failure] = []
        """of rewards, once all are computed"""
        self.parts: list[dict[str, float]] = []
        """of the reward of each of its trajectories"""

    def receive(self, timing: dict[str, float], on_arrival: Callable[[], None] = lambda: None) -> None:
        """Wait until every response is complete, and hand each to the reward as it comes.

        `on_arrival` is called for each prompt whose responses are there. Adds to `timing` the seconds waited for responses (gen)
        and spent on their rewards meanwhile (reward). Raises UserError as soon as more rewards have failed than may.
        """
        while True:
            with timed(timing, "gen"):
                arrived = next(self._arriving, None)
            if arrived is None:
                return
            place, samples = arrived
            on_arrival()
            with timed(timing, "reward"):
                self._completions[place] = samples
                self._pending[place] = [
                    self._rewards.submit(
                        self.prompts[place],
                        decode_response(self._tokenizer, sample.token_ids, sample.finish_reason == "stop"),
                    )
                    for sample in samples
                ]
                for pending in self._pending[place]:
                    pending.add_done_callback(self._note_failure)
                refuse_too_many_failures(self._early, len(samples) * len(self.prompts), self._max_failure_rate)

    def state(self) -> dict[str, Any]:
        """Its responses, once they are received, as JSON takes them."""
        completions = [[asdict(sample) for sample in samples] for samples in self._completions]
        return {"policy_version": self.policy_version, "completions": completions}

    def _note_failure(self, done: Future[Outcome]) -> None:
        if not done.cancelled() and done.exception() is None and isinstance(failure := done.result(), Failure):
            self._early.append(failure)

    def outcomes(self, timing: dict[str, float]) -> list[Outcome]:
        """Score and parts of each response, or why it has none, those of a prompt one after another; waits for what is not computed yet.

        Raises UserError where more rewards have failed than may.
        """
        with timed(timing, "reward"):
            outcomes = [pending.result() for own in self._pending for pending in own]
        self.failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        refuse_too_many_failures(self.failures, len(outcomes), self._max_failure_rate)
        return outcomes

    def report_failures(self, where: str, say: Callable[[str], None]) -> None:
        """Have `say` take a line for each place where rewards failed, once all are computed."""
        for line in report_failures(self.failures, sum(map(len, self._pending))):
            say(f"{where}: {line}")

    def trajectories(self, timing: dict[str, float]) -> tuple[list[Trajectory], dict[str, float]]:
        """Scored trajectories, whose group is the prompt's place in the batch, and the means of their rewards' parts.

        A response whose reward failed is left out: it is in no loss, no denominator and none of its group's statistics.
        """
        outcomes = self.outcomes(timing)
        samples = [
            (group, prompt, sample, weight)
            for group, (prompt, samples) in enumerate(zip(self.prompts, self._completions, strict=True))
            for sample, weight in zip(samples, self._sample_weights(prompt, samples), strict=True)
        ]
        self.parts = [parts for parts in outcomes if not isinstance(parts, Failure)]
        trajectories = [
            Trajectory(
                prompt_ids=list(prompt.token_ids),
                response_ids=sample.token_ids,
                rollout_logprobs=np.array(sample.logprobs, dtype=np.float64),
                finish_reason=sample.finish_reason,
                group_id=group,
                policy_version=self.policy_version,
                allowed=sample.allowed,
                score=parts["score"],
                sample_weight=weight,
            )
            for (group, prompt, sample, weight), parts in zip(samples, outcomes, strict=True)
            if not isinstance(parts, Failure)
        ]
        return trajectories, reward_metrics(outcomes, [weight for _, _, _, weight in samples])

    def _sample_weights(self, prompt: Prompt, samples: Sequence[Completion]) -> list[float]:
        if not self._every_answer:
            return [1.0] * len(samples)
        # a group counts as many samples as its pool has candidates, however many orders of them there are
        return (len(prompt.candidates) * answer_probabilities(samples)).tolist()


def reward_metrics(outcomes: Sequence[Outcome], sample_weights: Sequence[float]) -> dict[str, float]:
    """Means of the parts of a batch's rewards, and the share of those that failed."""
    kept = [
        (parts, weight)
        for parts, weight in zip(outcomes, sample_weights, strict=True)
        if not isinstance(parts, Failure)
    ]
    means = mean_reward_parts([parts for parts, _ in kept], [weight for _, weight in kept])
    return means | {"reward/failure_rate": 1 - len(kept) / max(1, len(outcomes))}


def replay_completions(state: Mapping[str, Any]) -> Iterator[tuple[int, list[Completion]]]:
    """What `SampledBatch.state` holds, as if it were arriving."""
    return ((place, [Completion(**one) for one in samples]) for place, samples in enumerate(state["completions"]))


def build_requests(
    config: Config, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *when: int
) -> list[Request]:
    """Requests with a seed each, made from the run's seed, the step (and round) and the place in the batch."""
    seeds = np.random.SeedSequence([config.trainer.seed, *when]).generate_state(len(prompts), dtype=np.uint64)
    constrain = config.actor_rollout_ref.rollout.constrain == "candidates"
    return [
        Request(
            prompt.token_ids,
            int(seed),
            build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format) if constrain else None,
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
