"""Dynamic sampling (DAPO, arXiv 2503.14476): groups that say nothing are replaced by others, so that a batch is full of signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from r1ranker.errors import UserError, suggest
from r1ranker.trainer.algorithm.statistics import SIGNAL_TOLERANCE
from r1ranker.trainer.batch.trajectory import number_groups
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.collect import SampledBatch
from r1ranker.trainer.experience.scored import ScoredBatch, score
from r1ranker.trainer.monitoring.metrics import count_tokens


def fill_with_signal(
    first: SampledBatch,
    draw: Callable[[int], SampledBatch],
    config: Config,
    timing: dict[str, float],
) -> ScoredBatch:
    """As many groups as `first` has whose rewards differ, from it and from what `draw` gives (its number, from 1), in their order.

    Fewer after algorithm.filter_groups.max_num_gen_batches; where no group differs, the last batch as it is. Raises UserError for
    a metric that the reward does not give.
    """
    how = config.algorithm.filter_groups
    wanted, drawn = len(first.prompts), 0
    kept = ScoredBatch([], [], [], {}, 0)
    found: list[dict[str, float]] = []
    batch = first
    while True:
        drawn += 1
        scored = score(batch, config, timing)
        found.append(scored.metrics)
        groups = _groups_with_signal(scored, how.metric)
        chosen = groups[: wanted - len(kept.prompts)]
        _move(scored, chosen, kept)
        if len(kept.prompts) == wanted or drawn == how.max_num_gen_batches:
            break
        batch = draw(drawn)
        batch.receive(timing)
    used = len(kept.prompts)
    if not used:
        spent = kept.spent - count_tokens(scored.trajectories)  # which are taken after all
        kept = ScoredBatch(scored.prompts, scored.trajectories, scored.parts, {}, spent)
    kept.metrics = {name: float(np.mean([one[name] for one in found if name in one])) for name in found[0]}
    kept.metrics |= {"filter_groups/num_gen_batches": float(drawn), "filter_groups/kept": float(used)}
    return kept


def _groups_with_signal(scored: ScoredBatch, metric: str) -> list[int]:
    """Groups in which something differs: among samples of a prompt, or of a turn of its conversations."""
    values: dict[int, dict[int, list[float]]] = {}
    for one, number, parts in zip(scored.trajectories, number_groups(scored.trajectories), scored.parts, strict=True):
        if metric not in parts:
            raise UserError(
                f"algorithm.filter_groups.metric: the reward gives no {metric!r}{suggest(metric, parts)}; one of "
                f"{', '.join(parts)} is wanted"
            )
        values.setdefault(one.group_id, {}).setdefault(number, []).append(parts[metric])
    return [
        group
        for group, compared in sorted(values.items())
        if any(np.ptp(some) >= SIGNAL_TOLERANCE for some in compared.values())
    ]


def _move(scored: ScoredBatch, chosen: Sequence[int], into: ScoredBatch) -> None:
    """Put the chosen groups behind those that are kept, with numbers of their own."""
    places = {group: len(into.prompts) + place for place, group in enumerate(chosen)}
    into.prompts += [scored.prompts[group] for group in chosen]
    left_out = [one for one in scored.trajectories if one.group_id not in places]
    into.spent += scored.spent + count_tokens(left_out)
    most = max((one.episode for one in into.trajectories), default=-1) + 1
    for one, parts in zip(scored.trajectories, scored.parts, strict=True):
        if one.group_id not in places:
            continue
        one.group_id = places[one.group_id]
        if one.episode >= 0:
            one.episode += most
        into.trajectories.append(one)
        into.parts.append(parts)
