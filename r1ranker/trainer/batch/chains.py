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
    # the longest sequence holds all turns but those that went on in another way
    longest = max(members, key=lambda place: (len(trajectories[place].prompt_ids) + ends[place], -place))
    carrier = trajectories[longest]
    whole = [*carrier.prompt_ids, *carrier.response_ids[: ends[longest]]]
    begins: dict[int, bool] = {}
    """whether the sequence begins with a prompt, which alternatives have in common"""
    held: list[int] = []
    apart: dict[int, list[int]] = {}
    """others, by the prompt that they have in common"""
    for place in members:
        one = trajectories[place]
        length = len(one.prompt_ids)
        if id(one.prompt_ids) not in begins:
            begins[id(one.prompt_ids)] = whole[:length] == one.prompt_ids
        if begins[id(one.prompt_ids)] and whole[length : length + ends[place]] == one.response_ids[: ends[place]]:
            held.append(place)
        else:
            apart.setdefault(id(one.prompt_ids), []).append(place)
    root = carrier.root_length if share else None
    found = [_chain_of(trajectories, longest, held, ends[longest], root)]
    for places in apart.values():
        prompt = len(trajectories[places[0]].prompt_ids)
        behind = prompt - (prompt if root is None else root)
        # several answers to a turn: all that came before once, or what came behind the first prompt for each
        own = None if len(places) * behind > prompt + behind else root
        found += [_chain_of(trajectories, place, [place], ends[place], own) for place in places]
    return found


def _chain_of(
    trajectories: Sequence[Trajectory], carrier: int, members: Sequence[int], end: int, root_length: int | None
) -> Chain:
    ids, response = trajectories[carrier].prompt_ids, trajectories[carrier].response_ids[:end]
    prompt = ids if root_length is None else ids[:root_length]
    sampled = sum(len(trajectories[place].response_ids) for place in members)
    return Chain(tuple(members), prompt, [*ids[len(prompt) :], *response], sampled)


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
