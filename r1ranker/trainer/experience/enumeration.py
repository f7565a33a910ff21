"""Groups of every answer that a pool has, instead of samples: expectations over the policy are exact, and nothing is generated.

An elimination answered at once and constrained to the pool has as many answers as the pool has candidates; a direct ranking of a
small pool has its orders. The policy's probabilities of them make group means, advantages and the gradient exact (all-action
policy gradients: Sutton et al., 'Comparing Policy-Gradient Algorithms', 2001; expected policy gradients, arXiv 1801.03326).

A larger pool has too many orders. Its group is one order, drawn evenly, in all its rotations, so that each candidate comes first once.
The first choice alone is the policy's, and exact; what follows is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, permutations

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import RunError, UserError
from r1ranker.rollout.constraint import ConstraintState, PoolConstraint, build_constraint
from r1ranker.rollout.engine import Completion
from r1ranker.rollout.episodes import Turn
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.scoring.outcome import describe_row
from r1ranker.trainer.workers.cluster import Cluster
from r1ranker.trainer.workers.dispatch import fill

MOST_RANKED = 4
"""candidates of a direct ranking of which every order is taken; they have 24"""


def enumerate_answers(
    cluster: Cluster, config: Config, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *when: int
) -> list[list[Completion]]:
    """Each prompt's answers, in the order of its candidates or of their permutations, with the policy's log-probabilities.

    when: step (and round), which the orders drawn hang on. Raises UserError for a prompt that thoughts are wanted of, or
    answers of more than data.max_response_length tokens, and RunError where the policy has diverged.
    """
    rng = np.random.default_rng([config.trainer.seed, *when])
    trajectories: list[Trajectory] = []
    for group, prompt in enumerate(prompts):
        paths = _enumerate_paths(_check_constraint(tokenizer, prompt), prompt.token_ids, group, rng)
        _check_length(config.data.max_response_length, prompt, paths)
        trajectories += paths
    completions: list[list[Completion]] = [[] for _ in prompts]
    for group, completion in _complete(cluster, config, trajectories):
        completions[group].append(completion)
    return completions


def enumerate_turns(
    cluster: Cluster,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    episodes: Mapping[int, Sequence[Turn]],
) -> list[list[Turn]]:
    """For each prompt's episode every answer that each of its turns has, in the order of the candidates, turn after turn.

    The answer that was sampled says no more than how the conversation went on. Raises as enumerate_answers does.
    """
    trajectories: list[Trajectory] = []
    turns: list[tuple[int, Turn]] = []
    rng = np.random.default_rng(0)  # answers are one name each: none is drawn
    for place, prompt in enumerate(prompts):
        whole = _check_constraint(tokenizer, prompt)
        for turn in episodes[place]:
            paths = _enumerate_paths(whole.without(turn.out), turn.prompt_ids, len(turns), rng)
            _check_length(config.data.max_response_length, prompt, paths)
            for one in paths:
                one.episode, one.root_length = place, len(prompt.token_ids)
            trajectories += paths
            turns.append((place, turn))
    found: list[list[Turn]] = [[] for _ in prompts]
    more = config.algorithm.filter_groups.enable  # conversations are played until enough groups have a signal
    for number, completion in _complete(cluster, config, trajectories, more):
        place, turn = turns[number]
        found[place].append(replace(turn, completion=completion))
    return found


def _complete(
    cluster: Cluster, config: Config, trajectories: Sequence[Trajectory], awake: bool = False
) -> Iterator[tuple[int, Completion]]:
    """(group, completion) of each, with the policy's log-probabilities; `awake` where engines may go on sampling."""
    budget = Budget.of_role(config, config.actor_rollout_ref.rollout)
    fill(cluster, trajectories, "old_logprobs", budget, "logprobs", "policy", awake)
    for one in trajectories:
        assert one.old_logprobs is not None
        if not np.isfinite(one.old_logprobs).all():
            raise RunError("the policy's log-probabilities are not finite: its weights have diverged")
        yield one.group_id, Completion(one.response_ids, one.old_logprobs.tolist(), "stop", one.allowed)


def answer_probabilities(answers: Sequence[Completion]) -> np.ndarray:
    """Of a prompt's answers [K], which are all there are: they sum to 1."""
    found = np.exp([sum(one.logprobs) for one in answers])
    return np.asarray(found / found.sum())


def _check_constraint(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PoolConstraint:
    key = "actor_rollout_ref.rollout.every_answer"
    if prompt.answer_format.think:
        raise UserError(f"{describe_row(prompt)}: {key} wants answers at once; found thoughts before answers")
    return build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format)


def _check_length(most: int, prompt: Prompt, answers: Sequence[Trajectory]) -> None:
    tokens = max(len(one.response_ids) for one in answers)
    if tokens > most:
        raise UserError(
            f"{describe_row(prompt)}: an answer of {len(prompt.candidates)} candidates has {tokens} tokens; found "
            f"data.max_response_length={most}, and as many are wanted"
        )


def _enumerate_paths(
    constraint: PoolConstraint, prompt_ids: list[int], group: int, rng: np.random.Generator
) -> list[Trajectory]:
    answers = []
    for ids, chosen in _spell_answers(constraint, rng):
        state = ConstraintState(constraint, lambda token: "")
        allowed: list[list[int]] = []
        while len(allowed) < chosen and state.forced_token_ids() is None:
            allowed.append(state.allowed_token_ids())
            state.accept_token(ids[len(allowed) - 1])
        allowed += [[token] for token in ids[len(allowed) :]]
        nothing = np.zeros(len(ids))
        answers.append(Trajectory(prompt_ids, list(ids), nothing, "stop", group, allowed=allowed))
    return answers


def _spell_answers(constraint: PoolConstraint, rng: np.random.Generator) -> list[tuple[tuple[int, ...], int]]:
    """The whole answers, a candidate each, or an order of them each; and how many of its tokens the policy chooses."""
    final, separated = constraint.final_ids, constraint.separated_ids
    if not separated:
        return [(ids, len(ids)) for ids in final]
    first = constraint.first_ids or separated
    answers = []
    for order in _list_orders(len(final), rng):
        names = [first[order[0]], *(separated[place] for place in order[1:-1])] if len(order) > 1 else []
        ids = tuple(chain.from_iterable([*names, final[order[-1]]]))
        answers.append((ids, len(ids) if len(order) <= MOST_RANKED else len(names[0])))
    return answers


def _list_orders(size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Every order of a pool of up to MOST_RANKED candidates; of a larger one an order drawn evenly, in its `size` rotations."""
    if size <= MOST_RANKED:
        return list(permutations(range(size)))
    drawn = [int(place) for place in rng.permutation(size)]
    return [(*drawn[turn:], *drawn[:turn]) for turn in range(size)]
