"""Credit over the turns of a conversation: what comes later counts for less, or for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1ranker.trainer.algorithm.advantages import Ragged
from r1ranker.trainer.batch.trajectory import Trajectory

Conversations = Sequence[Sequence[int]]
"""places of the trajectories of each conversation, in the order of its turns"""


def order_turns(trajectories: Sequence[Trajectory]) -> list[list[int]]:
    """The places of each conversation's turns; one that is by itself has one turn.

    Where every answer of a turn is there, each is a conversation that ends with it: none of them says how another one went on.
    """
    turns: dict[tuple[int, int], list[int]] = {}
    for place, one in enumerate(trajectories):
        turns.setdefault((one.episode, one.turn), []).append(place)
    conversations: dict[int, list[int]] = {}
    alone: list[list[int]] = []
    for (episode, _), places in sorted(turns.items()):
        if episode < 0 or len(places) > 1:
            alone += [[place] for place in places]
        else:
            conversations.setdefault(episode, []).extend(places)
    return [*alone, *conversations.values()]


def turn_returns(scores: Sequence[float], conversations: Conversations, turn_gamma: float) -> list[float]:
    """Return [N] of each turn: G_t = r_t + turn_gamma G_{t+1}, with G = 0 after the last turn (Sutton and Barto, section 3.3)."""
    returns = [0.0] * len(scores)
    for places in conversations:
        following = 0.0
        for place in reversed(places):
            returns[place] = following = float(scores[place]) + turn_gamma * following
    return returns


def turn_discounts(ragged: Ragged, conversations: Conversations, gamma: float, turn_gamma: float) -> Ragged:
    """Discount [tokens of all its turns] of each conversation: `gamma` inside a turn, `turn_gamma` from its last token to the next turn's first."""
    found = []
    for places in conversations:
        parts = [np.full(len(ragged[place]), gamma) for place in places]
        for part in parts:
            part[-1:] = turn_gamma
        found.append(np.concatenate(parts))
    return found


def join_turns(ragged: Ragged, conversations: Conversations) -> Ragged:
    """The tokens of each conversation's turns one after another."""
    return [np.concatenate([ragged[place] for place in places]) for places in conversations]


def split_turns(joined: Ragged, like: Ragged, conversations: Conversations) -> Ragged:
    """What join_turns joined, a turn each again, as long as in `like`."""
    found: Ragged = [np.zeros(0)] * len(like)
    for whole, places in zip(joined, conversations, strict=True):
        start = 0
        for place in places:
            found[place] = whole[start : start + len(like[place])]
            start += len(like[place])
    return found
