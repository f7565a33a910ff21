"""A batch with its rewards, and what is done to them before anything is learned: long responses, ranks by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import UserError
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config, OverlongBufferConfig
from r1ranker.trainer.experience.collect import SampledBatch
from r1ranker.trainer.experience.lines import split_by_rank
from r1ranker.trainer.monitoring.metrics import mean_reward_parts


@dataclass
class ScoredBatch:
    """What a step learns from."""

    prompts: list[Prompt]
    trajectories: list[Trajectory]
    """whose group is their prompt's place"""
    parts: list[dict[str, float]]
    """of each one's reward"""
    metrics: dict[str, float]
    """of all that were drawn"""
    spent: int
    """tokens that are not in the trajectories: of pools made smaller, and of groups left out"""


def score(batch: SampledBatch, config: Config, timing: dict[str, float]) -> ScoredBatch:
    """A batch with its rewards, less what reward.overlong_buffer takes off; each rank with its own where algorithm.credit says so."""
    trajectories, metrics = batch.trajectories(timing)
    if not trajectories:
        raise UserError(
            "data.rounds: no conversation of a batch came to a turn that is learned from; a larger rollout.max_turns, "
            "data.max_prompt_length or rollout.eliminate_to is wanted"
        )
    parts, buffer = batch.parts, config.reward.overlong_buffer
    if buffer.enable:
        metrics |= shape_overlong(trajectories, parts, buffer, config.data.max_response_length)
    if config.algorithm.credit == "rank":
        gamma = config.algorithm.turn_gamma
        trajectories, origins = split_by_rank(batch.tokenizer, batch.prompts, trajectories, gamma)
        parts = [parts[place] for place in origins]
    return ScoredBatch(list(batch.prompts), trajectories, parts, metrics, batch.elimination_tokens)


def shape_overlong(
    trajectories: Sequence[Trajectory], parts: Sequence[dict[str, float]], buffer: OverlongBufferConfig, longest: int
) -> dict[str, float]:
    """Take off the scores of responses that come near `longest` tokens, as a part of the reward; returns the parts' means that change.

    From 0 at longest - len tokens to -penalty_factor at longest, in proportion (DAPO, arXiv 2503.14476, equation 13).
    """
    for one, own in zip(trajectories, parts, strict=True):
        over = len(one.response_ids) - (longest - buffer.len)
        own["overlong"] = -buffer.penalty_factor * max(0, over) / buffer.len
        own["score"] += own["overlong"]
        one.score = own["score"]
    changed = [{name: own[name] for name in ("score", "overlong")} for own in parts]
    return mean_reward_parts(changed, [one.sample_weight for one in trajectories]) if changed else {}
