"""Which trajectories one sequence holds: the turns of a conversation, each of which begins with all of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1ranker.trainer.batch.trajectory import Trajectory


@dataclass(frozen=True)
class Chain:
    """A sequence that is computed once for all of its members."""

    members: tuple[int, ...]
    """places of the trajectories, whose inputs the sequence begins with"""
    prompt: Sequence[int]
    """what others may begin with, too"""
    inputs: Sequence[int]
    """what follows: all but the last token that is predicted"""
    sampled: int
    """tokens of its members' responses"""


def chain(trajectories: Sequence[Trajectory], share: bool = True, forced_ends: bool = True) -> list[Chain]:
    """The sequences that hold all the trajectories, in the order of their first members.

    With `share` off each trajectory is a sequence by itself. Without `forced_ends` the tokens at a response's end that the
    constraint left no choice about are no inputs.
    """
    episodes: dict[int, list[int]] = {}
    for place, one in enumerate(trajectories):
        # those that are alone have keys of their own
        episodes.setdefault(one.episode if share and one.episode >= 0 else -1 - place, []).append(place)
    return [
        found for members in episodes.values() for found in _chain_episode(trajectories, members, share, forced_ends)
    ]


def _chain_episode(
    trajectories: Sequence[Trajectory], members: list[int], share: bool, forced_ends: bool
) -> list[Chain]:
    ends = {place: trajectories[place].count_inputs(forced_ends) for place in members}
    if len(members) == 1:
        (place,) = members
        one = trajectories[place]
        return [_chain_of(one, (place,), ends[place], share, len(one.response_ids))]
    # the longest sequence holds all turns but those that went on in another way
    longest = max(members, key=lambda place: (len(trajectories[place].prompt_ids) + ends[place], -place))
    carrier = trajectories[longest]
    whole = [*carrier.prompt_ids, *carrier.response_ids[: ends[longest]]]
    begins: dict[int, bool] = {}
    """whether the sequence begins with a prompt, which alternatives have in common"""
    held: list[int] = []
    apart: list[int] = []
    for place in members:
        one = trajectories[place]
        length = len(one.prompt_ids)
        if id(one.prompt_ids) not in begins:
            begins[id(one.prompt_ids)] = whole[:length] == one.prompt_ids
        is_held = begins[id(one.prompt_ids)] and whole[length : length + ends[place]] == one.response_ids[: ends[place]]
        (held if is_held else apart).append(place)
    sampled = sum(len(trajectories[place].response_ids) for place in held)
    rest = [
        _chain_of(trajectories[place], (place,), ends[place], share, len(trajectories[place].response_ids))
        for place in apart
    ]
    return [_chain_of(carrier, tuple(held), ends[longest], share, sampled), *rest]


def _chain_of(carrier: Trajectory, members: tuple[int, ...], end: int, share: bool, sampled: int) -> Chain:
    root = carrier.prompt_ids if carrier.root_length is None or not share else carrier.prompt_ids[: carrier.root_length]
    behind = carrier.prompt_ids[len(root) :]
    return Chain(members, root, [*behind, *carrier.response_ids[:end]], sampled)


def group_by_prompt(chains: Sequence[Chain], share: bool = True) -> list[list[int]]:
    """Places of `chains`, those with the same prompt together; with `share` off each by itself."""
    if not share:
        return [[place] for place in range(len(chains))]
    families: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(chains):
        families.setdefault(tuple(one.prompt), []).append(place)
    return list(families.values())


def count_row_tokens(chains: Sequence[Chain], share: bool = True) -> int:
    """Tokens of the row that chains are packed into: a shared prompt once."""
    families = group_by_prompt(chains, share)
    return sum(
        len(chains[family[0]].prompt) + sum(len(chains[place].inputs) for place in family) for family in families
    )
