"""Groups of every answer that a pool has, instead of samples: expectations over the policy are exact, and nothing is generated.

An elimination answered at once and constrained to the pool has as many answers as the pool has candidates. The policy's probabilities
of them make group means, advantages and the gradient exact (all-action policy gradients: Sutton et al., 'Comparing Policy-Gradient
Algorithms', 2001; expected policy gradients, arXiv 1801.03326).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import RunError, UserError
from r1ranker.rollout.constraint import PoolConstraint, build_constraint
from r1ranker.rollout.engine import Completion
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.scoring.outcome import describe_row
from r1ranker.trainer.workers.cluster import Cluster
from r1ranker.trainer.workers.dispatch import fill


def enumerate_answers(
    cluster: Cluster, config: Config, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[list[Completion]]:
    """Each prompt's answers in the order of its candidates, with the policy's log-probabilities.

    Raises UserError for a prompt that has other answers than its candidates, and RunError where the policy has diverged.
    """
    trajectories = [
        trajectory
        for group, prompt in enumerate(prompts)
        for trajectory in _enumerate_paths(_check_constraint(tokenizer, prompt), prompt, group)
    ]
    budget = Budget.of_role(config, config.actor_rollout_ref.rollout)
    fill(cluster, trajectories, "old_logprobs", budget, "logprobs", "policy")
    completions: list[list[Completion]] = [[] for _ in prompts]
    for one in trajectories:
        assert one.old_logprobs is not None
        if not np.isfinite(one.old_logprobs).all():
            raise RunError("the policy's log-probabilities are not finite: its weights have diverged")
        completions[one.group_id].append(Completion(one.response_ids, one.old_logprobs.tolist(), "stop", one.allowed))
    return completions


def answer_probabilities(answers: Sequence[Completion]) -> np.ndarray:
    """Of a prompt's answers [K], which are all there are: they sum to 1."""
    found = np.exp([sum(one.logprobs) for one in answers])
    return np.asarray(found / found.sum())


def _check_constraint(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PoolConstraint:
    if prompt.mode != "iterative" or prompt.answer_format.think:
        kind = "direct ranking" if prompt.mode == "direct" else "thoughts before answers"
        raise UserError(
            f"{describe_row(prompt)}: actor_rollout_ref.rollout.every_answer wants eliminations answered at once; found {kind}"
        )
    return build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format)


def _enumerate_paths(constraint: PoolConstraint, prompt: Prompt, group: int) -> list[Trajectory]:
    # what may follow each beginning; as ConstraintState has it, where one answer alone goes on no place is a choice any more
    following: dict[tuple[int, ...], list[int]] = {}
    for ids in constraint.final_ids:
        for depth, token in enumerate(ids):
            following.setdefault(ids[:depth], []).append(token)
    choices = {begun: sorted(set(tokens)) for begun, tokens in following.items() if len(tokens) > 1}
    answers = []
    for ids in constraint.final_ids:
        allowed = [choices.get(ids[:depth], [token]) for depth, token in enumerate(ids)]
        nothing = np.zeros(len(ids))
        answers.append(Trajectory(prompt.token_ids, list(ids), nothing, "stop", group, allowed=allowed))
    return answers
