"""Trajectories spread over processes and micro-batches: within bounds, groups together where that saves, by predicted cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from r1ranker.model.widths import Widths
from r1ranker.trainer.batch.chains import Chain, chain, count_row_tokens, group_by_prompt
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config, RefConfig, RolloutConfig

Piece = list[Chain]
"""sequences with one prompt, computed together"""


@dataclass(frozen=True)
class PassCost:
    """What a pass costs, in units of one token through the linear layers of the transformer blocks."""

    pair: float = 0.0
    """of a token that attends to another"""
    sampled: float = 0.0
    """of the output embedding for a sampled token"""

    def of(self, prompt: int, inputs: Sequence[int], sampled: int) -> float:
        """Of a prompt of so many tokens computed once, the inputs that follow it in each sequence, and the tokens predicted."""
        pairs = prompt * (prompt + 1) / 2 + sum(length * prompt + length * (length + 1) / 2 for length in inputs)
        return prompt + sum(inputs) + self.pair * pairs + self.sampled * sampled


@cache
def load_pass_cost(path: str) -> PassCost:
    """The cost of a dense transformer with gated feed-forward layers, from its config: two operations a weight and token.

    A pair takes 4 d operations in a block, d being the width of all query heads: a dot product with the key, a sum of the value.
    """
    from transformers import AutoConfig

    widths = Widths.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    hidden, heads, head = widths.hidden, widths.heads, widths.head_width
    block = hidden * head * (2 * heads + 2 * widths.kv_heads) + 3 * hidden * widths.intermediate
    return PassCost(
        pair=4 * heads * head / (2 * block),
        sampled=widths.vocabulary * hidden / (widths.layers * block),
    )


@dataclass(frozen=True)
class Budget:
    """Bounds of a micro-batch, and what a pass costs."""

    max_tokens: int
    max_sequences: int | None = None
    share_prompts: bool = True
    cost: PassCost = PassCost()
    forced_ends: bool = False
    """whether tokens that the constraint left no choice about are computed: values of their states are"""

    @classmethod
    def _of(
        cls,
        config: Config,
        tokens: int | None,
        sequences: int | None,
        sequences_each: int | None,
        dynamic: bool | None,
        path: str | None = None,
    ) -> Budget:
        """The bounds that a role's keys give, for the critic with its `path`; what they leave open is the actor's."""
        actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
        max_tokens, cost = tokens or actor.ppo_max_token_len_per_gpu, load_pass_cost(str(path or model.path))
        if actor.use_dynamic_bsz if dynamic is None else dynamic:
            return cls(max_tokens, None, model.share_prompts, cost, path is not None)
        each = sequences_each or (sequences // config.world_size if sequences else None)
        actors = actor.ppo_micro_batch_size_per_gpu or (actor.ppo_micro_batch_size or 1) // config.world_size
        return cls(max_tokens, max(1, each or actors), model.share_prompts, cost, path is not None)

    @classmethod
    def of_actor(cls, config: Config) -> Budget:
        """The bounds of the actor's updates."""
        actor = config.actor_rollout_ref.actor
        return cls._of(config, None, actor.ppo_micro_batch_size, actor.ppo_micro_batch_size_per_gpu, None)

    @classmethod
    def of_critic(cls, config: Config) -> Budget:
        """The bounds of the critic's values and updates."""
        critic = config.critic
        return cls._of(
            config,
            critic.ppo_max_token_len_per_gpu,
            critic.ppo_micro_batch_size,
            critic.ppo_micro_batch_size_per_gpu,
            critic.use_dynamic_bsz,
            critic.model.path,
        )

    @classmethod
    def of_role(cls, config: Config, role: RefConfig | RolloutConfig) -> Budget:
        """The bounds of computing log-probabilities for `role`."""
        return cls._of(
            config,
            role.log_prob_max_token_len_per_gpu,
            role.log_prob_micro_batch_size,
            role.log_prob_micro_batch_size_per_gpu,
            None,
        )


def arrange_micro_batches(trajectories: Sequence[Trajectory], processes: int, budget: Budget) -> list[list[list[int]]]:
    """For each process its bins of indices of `trajectories`; all have as many bins, some of them perhaps empty.

    Raises ValueError where one sequence alone is over the budget.
    """
    longest = max((len(trajectory) for trajectory in trajectories), default=0)
    if longest > budget.max_tokens:
        raise ValueError(f"a sequence of {longest} tokens does not fit into a micro-batch of {budget.max_tokens}")
    if not trajectories:
        return [[[]] for _ in range(processes)]
    chains = chain(trajectories, budget.share_prompts, budget.forced_ends)
    families = [[chains[place] for place in family] for family in group_by_prompt(chains, budget.share_prompts)]
    plans = []
    for parts in _ways_to_split([_cost(family, budget.cost) for family in families], processes):
        pieces = [
            piece for family, count in zip(families, parts, strict=True) for piece in _split(family, count, budget)
        ]
        plans.append(_plan_micro_batches(pieces, processes, budget))
    best = min(plans, key=lambda plan: _duration(plan, budget))
    return [[[index for piece in one for own in piece for index in own.members] for one in hand] for hand in best]


def _ways_to_split(costs: Sequence[float], processes: int) -> list[list[int]]:
    """Into how many pieces each group might go: a split computes a prompt once more, and may let processes end together."""
    ways = [[1] * len(costs)]
    left = len(costs) % processes
    if left:  # as many groups as there are processes keep them evenly busy; those left over are shared out
        order = sorted(range(len(costs)), key=lambda index: costs[index])
        for shared in (order[:left], order[-left:]):
            ways.append([math.ceil(processes / left) if index in shared else 1 for index in range(len(costs))])
    if processes > 1:
        ways.append([2] * len(costs))
    return ways


def _cost(piece: Piece, cost: PassCost) -> float:
    return cost.of(len(piece[0].prompt), [len(one.inputs) for one in piece], sum(one.sampled for one in piece))


def _count_members(piece: Piece) -> int:
    return sum(len(one.members) for one in piece)


def _split(family: Piece, parts: int, budget: Budget) -> list[Piece]:
    """A family in `parts` pieces of like size, or as many more as the budget asks for; a single sequence always stands."""
    by_length = sorted(family, key=lambda one: (-len(one.inputs), one.members))
    most = max(budget.max_sequences or _count_members(family), *(len(one.members) for one in family))
    fewest = min(len(family), max(parts, math.ceil(_count_members(family) / most)))
    for count in range(fewest, len(family) + 1):
        pieces: list[Piece] = [[] for _ in range(count)]
        sizes = [0] * count
        for one in by_length:
            open_ = [place for place in range(count) if _count_members(pieces[place]) + len(one.members) <= most]
            if not open_:
                break
            place = min(open_, key=lambda place: sizes[place])
            pieces[place].append(one)
            sizes[place] += 1 + len(one.inputs)
        else:
            if all(len(piece) == 1 or count_row_tokens(piece) <= budget.max_tokens for piece in pieces):
                break
    return [sorted(piece, key=lambda one: one.members) for piece in pieces]


def _plan_micro_batches(pieces: Sequence[Piece], processes: int, budget: Budget) -> list[list[list[Piece]]]:
    """Pieces in as few bins a process as the budget allows: the dearest first, each into the cheapest bin with room."""
    tokens = [count_row_tokens(piece) for piece in pieces]
    costs = [_cost(piece, budget.cost) for piece in pieces]
    members = [_count_members(piece) for piece in pieces]
    # a conversation is computed whole, however many turns it has
    most = max(budget.max_sequences or sum(members), *members)
    order = sorted(range(len(pieces)), key=lambda place: (-costs[place], place))
    each = math.ceil(max(sum(tokens) / budget.max_tokens, sum(members) / most) / processes)
    while True:
        bins: list[list[Piece]] = [[] for _ in range(each * processes)]
        room, load, count = [budget.max_tokens] * len(bins), [0.0] * len(bins), [0] * len(bins)
        for place in order:
            fitting = [
                one for one in range(len(bins)) if room[one] >= tokens[place] and count[one] + members[place] <= most
            ]
            if not fitting:
                break
            chosen = min(fitting, key=lambda one: load[one])
            bins[chosen].append(pieces[place])
            room[chosen] -= tokens[place]
            load[chosen] += costs[place]
            count[chosen] += members[place]
        else:
            break
        each += 1
    assert all(left >= 0 for left in room)
    # processes wait for each other at every bin: like costs side by side
    dearest = sorted(range(len(bins)), key=lambda one: -load[one])
    hands: list[list[list[Piece]]] = [[] for _ in range(processes)]
    for round_ in range(each):
        row = dearest[round_ * processes : (round_ + 1) * processes]
        for process, one in enumerate(row if round_ % 2 == 0 else reversed(row)):
            hands[process].append(bins[one])
    return hands


def _duration(plan: list[list[list[Piece]]], budget: Budget) -> float:
    """Predicted: the dearest bin of each round, one after another."""

    def cost(one: list[Piece]) -> float:
        chains = [own for piece in one for own in piece]
        families = group_by_prompt(chains, budget.share_prompts)
        return sum(_cost([chains[place] for place in family], budget.cost) for family in families)

    return sum(max(map(cost, bins)) for bins in zip(*plan, strict=True))
