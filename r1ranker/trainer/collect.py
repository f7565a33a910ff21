"""From prompts to scored trajectories: completions are handed to the reward as they come, while others are generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompts import Prompt
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Completion, Request
from r1ranker.trainer.config import Config
from r1ranker.trainer.metrics import reward_parts, timed
from r1ranker.trainer.reward_pool import Pending, RewardPool
from r1ranker.trainer.scoring import response_text
from r1ranker.trainer.trajectory import Trajectory


class Sampling:
    """Prompts whose responses are under way; nothing in it hangs on the order in which they come."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        arriving: Iterator[tuple[int, list[Completion]]],
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardPool,
        policy_version: int,
    ) -> None:
        """`arriving`: (place of a prompt, its completions), as `dispatch.stream` has them."""
        self._prompts, self._arriving = prompts, arriving
        self._tokenizer, self._rewards = tokenizer, rewards
        self._policy_version = policy_version
        self._completions: list[list[Completion]] = [[] for _ in prompts]
        self._pending: list[list[Pending]] = [[] for _ in prompts]

    def receive(self, timing: dict[str, float]) -> None:
        """Wait until every response is complete, and hand each to the reward as it comes.

        Adds to `timing` the seconds waited for responses (gen) and spent on their rewards meanwhile (reward).
        """
        while True:
            with timed(timing, "gen"):
                arrived = next(self._arriving, None)
            if arrived is None:
                return
            place, samples = arrived
            with timed(timing, "reward"):
                self._completions[place] = samples
                self._pending[place] = [
                    self._rewards.submit(
                        self._prompts[place],
                        response_text(self._tokenizer, sample.token_ids, sample.finish_reason == "stop"),
                    )
                    for sample in samples
                ]

    def breakdowns(self, timing: dict[str, float]) -> list[dict[str, float]]:
        """Score and parts of each response, those of a prompt one after another; waits for what is not computed yet."""
        with timed(timing, "reward"):
            return [pending() for own in self._pending for pending in own]

    def trajectories(self, timing: dict[str, float]) -> tuple[list[Trajectory], dict[str, float]]:
        """Scored trajectories, whose group is the prompt's place in the batch, and the means of their rewards' parts."""
        breakdowns = self.breakdowns(timing)
        trajectories = [
            Trajectory(
                prompt_ids=list(prompt.token_ids),
                response_ids=sample.token_ids,
                rollout_logprobs=np.array(sample.logprobs, dtype=np.float64),
                finish_reason=sample.finish_reason,
                group_id=group,
                policy_version=self._policy_version,
                allowed=sample.allowed,
            )
            for group, (prompt, samples) in enumerate(zip(self._prompts, self._completions, strict=True))
            for sample in samples
        ]
        for trajectory, parts in zip(trajectories, breakdowns, strict=True):
            trajectory.score = parts["score"]
        return trajectories, reward_parts(breakdowns)


def requests_of(
    config: Config, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], step: int
) -> list[Request]:
    """Requests with a seed each, made from the run's seed, the step and the place in the batch."""
    seeds = np.random.SeedSequence([config.trainer.seed, step]).generate_state(len(prompts), dtype=np.uint64)
    constrain = config.actor_rollout_ref.rollout.constrain == "candidates"
    return [
        Request(
            prompt.token_ids,
            int(seed),
            build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format) if constrain else None,
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
