"""From prompts to scored trajectories: completions are handed to the reward as they come, while others are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt
from r1ranker.data.tokenise import decode_response
from r1ranker.rewards import OUT
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Completion, Request
from r1ranker.rollout.episodes import Turn
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.enumeration import answer_probabilities
from r1ranker.trainer.monitoring.metrics import mean_reward_parts, timed
from r1ranker.trainer.scoring.outcome import Failure, Outcome, refuse_too_many_failures, report_failures
from r1ranker.trainer.scoring.pool import RewardPool


class SampledBatch:
    """Prompts whose responses are under way; nothing in it hangs on the order in which they come."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        arriving: Iterator[tuple[int, list[Turn]]],
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardPool,
        policy_version: int,
        max_failure_rate: float = 0.0,
        every_answer: bool = False,
        episodes: int = 0,
    ) -> None:
        """`arriving`: (place of a prompt, its samples); of conversations, `episodes` of each prompt, (place of one, its turns).

        `every_answer`: they are all there are, of a prompt or of a turn.
        """
        self._every_answer, self._episodes = every_answer, episodes
        self.elimination_tokens = 0
        """spent on making the pools smaller; a prompt counts for each of its answers"""
        self.prompts, self._arriving = prompts, arriving
        self.tokenizer, self._rewards = tokenizer, rewards
        self.policy_version = policy_version
        each = max(1, episodes)
        self._turns: list[list[Turn]] = [[] for _ in range(each * len(prompts))]
        self._pending: list[list[Future[Outcome]]] = [[] for _ in self._turns]
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
            place, turns = arrived
            on_arrival()
            with timed(timing, "reward"):
                self._turns[place] = turns
                self._pending[place] = [self._score(self.prompt_of(place), turn) for turn in turns]
                for pending in self._pending[place]:
                    pending.add_done_callback(self._note_failure)
                if not self._episodes:  # how many turns others have is not known yet
                    refuse_too_many_failures(self._early, len(turns) * len(self._turns), self._max_failure_rate)

    def prompt_of(self, place: int) -> Prompt:
        """The prompt of what arrived at `place`."""
        return self.prompts[place // max(1, self._episodes)]

    def _score(self, prompt: Prompt, turn: Turn) -> Future[Outcome]:
        if turn.out:
            prompt = replace(prompt, extra_info={**prompt.extra_info, OUT: list(turn.out)})
        said = turn.completion
        return self._rewards.submit(
            prompt, decode_response(self.tokenizer, said.token_ids, said.finish_reason == "stop")
        )

    def state(self) -> dict[str, Any]:
        """Its responses, once they are received, as JSON takes them."""
        turns = [[asdict(turn) for turn in turns] for turns in self._turns]
        return {"policy_version": self.policy_version, "turns": turns}

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

    def answered(self) -> list[Prompt]:
        """The prompt of each outcome."""
        return [self.prompt_of(place) for place, turns in enumerate(self._turns) for _ in turns]

    def turns_each(self) -> list[int]:
        """Turns of each conversation, or samples of each prompt."""
        return list(map(len, self._turns))

    def report_failures(self, where: str, say: Callable[[str], None]) -> None:
        """Have `say` take a line for each place where rewards failed, once all are computed."""
        for line in report_failures(self.failures, sum(map(len, self._pending))):
            say(f"{where}: {line}")

    def trajectories(self, timing: dict[str, float]) -> tuple[list[Trajectory], dict[str, float]]:
        """Scored trajectories, whose group is the prompt's place in the batch, and the means of their rewards' parts.

        A response whose reward failed is left out: it is in no loss, no denominator and none of its group's statistics.
        """
        outcomes = self.outcomes(timing)
        found = [
            self._trajectory(place, turn, number, weight)
            for place, turns in enumerate(self._turns)
            for turn, number, weight in zip(turns, *self._number_and_weigh(place), strict=True)
        ]
        weights = [one.sample_weight for one in found]
        self.parts = [parts for parts in outcomes if not isinstance(parts, Failure)]
        trajectories = []
        for one, parts in zip(found, outcomes, strict=True):
            if not isinstance(parts, Failure):
                one.score = parts["score"]
                trajectories.append(one)
        return trajectories, reward_metrics(outcomes, weights)

    def _trajectory(self, place: int, turn: Turn, number: int, weight: float) -> Trajectory:
        said = turn.completion
        return Trajectory(
            prompt_ids=turn.prompt_ids,
            response_ids=said.token_ids,
            rollout_logprobs=np.array(said.logprobs, dtype=np.float64),
            finish_reason=said.finish_reason,
            group_id=place // max(1, self._episodes),
            policy_version=self.policy_version,
            allowed=said.allowed,
            sample_weight=weight,
            episode=place if self._episodes else -1,
            turn=number,
            root_length=len(self.prompt_of(place).token_ids) if self._episodes else None,
        )

    def _number_and_weigh(self, place: int) -> tuple[list[int], list[float]]:
        """Of each turn that arrived at `place`: its number in the conversation, and so many samples it stands for."""
        turns = self._turns[place]
        numbers = [len(turn.out) for turn in turns] if self._episodes else [0] * len(turns)
        if not self._every_answer:
            return numbers, [1.0] * len(turns)
        # a group counts as many samples as its pool has candidates, however many orders of them there are; in a conversation, as
        # many as its pools have on average, so that the last turns count as much as the first
        pools = sorted(set(numbers))
        size = len(self.prompt_of(place).candidates) - (float(np.mean(pools)) if pools else 0.0)
        weights = np.zeros(len(turns))
        for number in pools:
            own = [index for index, other in enumerate(numbers) if other == number]
            weights[own] = size * answer_probabilities([turns[index].completion for index in own])
        return numbers, weights.tolist()


def reward_metrics(outcomes: Sequence[Outcome], sample_weights: Sequence[float]) -> dict[str, float]:
    """Means of the parts of a batch's rewards, and the share of those that failed."""
    kept = [
        (parts, weight)
        for parts, weight in zip(outcomes, sample_weights, strict=True)
        if not isinstance(parts, Failure)
    ]
    means = mean_reward_parts([parts for parts, _ in kept], [weight for _, weight in kept])
    return means | {"reward/failure_rate": 1 - len(kept) / max(1, len(outcomes))}


def as_turns(prompt: Prompt, samples: Sequence[Completion]) -> list[Turn]:
    """Samples of a prompt by itself."""
    return [Turn(prompt.token_ids, one) for one in samples]


def replay_turns(state: Mapping[str, Any], prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Turn]]]:
    """What `SampledBatch.state` holds, as if it were arriving."""
    if "turns" not in state:  # from before there were conversations
        for place, samples in enumerate(state["completions"]):
            yield place, as_turns(prompts[place], [Completion(**one) for one in samples])
        return
    for place, turns in enumerate(state["turns"]):
        yield place, [Turn(one["prompt_ids"], Completion(**one["completion"]), tuple(one["out"])) for one in turns]


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
