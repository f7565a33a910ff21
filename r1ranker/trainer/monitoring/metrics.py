"""What a training run reports: the list of names, veRL's where veRL has the thing, and their values for a batch."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from r1ranker.trainer.algorithm.statistics import explained_variance, group_statistics, summarise
from r1ranker.trainer.batch.trajectory import Trajectory, number_groups
from r1ranker.trainer.config.schema import DataConfig
from r1ranker.trainer.scoring.outcome import Failure

METRIC_NAMES = (
    "training/global_step",
    "training/epoch",
    "training/policy_lag",
    "training/bad_step",
    "critic/{score,rewards,advantages,returns,values}/{mean,max,min}",
    "critic/{vf_explained_var,vf_loss,vf_clipfrac,grad_norm,lr,zero_signal_groups}",
    "reward/{part}/mean",
    "reward/failure_rate",
    "{prompt_length,response_length}/{mean,max,min,clip_ratio}",
    "actor/{pg_loss,pg_clipfrac,ppo_kl,entropy,kl_loss,kl_coef,reward_kl_penalty,grad_norm,lr}",
    "rollout/{logprob_diff_mean,logprob_diff_max,kl,dropped_tokens}",
    "conversation/turns/{mean,max,min}",
    "filter_groups/{num_gen_batches,kept}",
    "rollout_corr/{rollout_is_mean,rollout_is_max,rollout_is_min,rollout_is_truncated,rollout_rs_masked_fraction,rollout_rs_seq_masked_fraction}",
    "timing_s/{eliminate,gen,reward,old_log_prob,ref,values,adv,update_critic,update_actor,sync_weights,testing,save_checkpoint,step}",
    "perf/{total_num_tokens,throughput,max_memory_allocated_gb,wait_for_state_s}",
    "val-core/{task}/reward/mean",
    "val-aux/{task}/{part}/mean",
)
"""every name that a run writes; `{a,b}` stands for one of them, `{task}` and `{part}` for a task's and a reward part's name"""


def is_known_metric(name: str) -> bool:
    """Whether METRIC_NAMES has `name`."""
    return any(pattern.fullmatch(name) for pattern in _PATTERNS)


def _pattern(entry: str) -> re.Pattern[str]:
    def choice(match: re.Match[str]) -> str:
        options = match.group(1).split(",")
        return "(?:[^/]+)" if len(options) == 1 else "(?:" + "|".join(map(re.escape, options)) + ")"

    return re.compile(re.sub(r"\\\{(.*?)\\\}", lambda found: choice(found), re.escape(entry).replace(r"\,", ",")))


_PATTERNS = [_pattern(entry) for entry in METRIC_NAMES]


def batch_metrics(trajectories: Sequence[Trajectory], max_prompt: int, max_response: int) -> dict[str, float]:
    """Scores, lengths, advantages and values of a batch; a response counts as many samples as it stands for."""
    scores = np.array([trajectory.score for trajectory in trajectories])
    prompts = np.array([len(trajectory.prompt_ids) for trajectory in trajectories])
    responses = np.array([len(trajectory.response_ids) for trajectory in trajectories])
    standing = np.array([trajectory.sample_weight for trajectory in trajectories])
    metrics = (
        summarise("critic/score", scores, standing)
        | summarise("prompt_length", prompts)
        | summarise("response_length", responses, standing)
    )
    metrics["prompt_length/clip_ratio"] = float((prompts >= max_prompt).mean())
    cut = [trajectory.finish_reason == "length" for trajectory in trajectories]
    metrics["response_length/clip_ratio"] = float(np.average(cut, weights=standing))
    for name in ("advantages", "returns", "values"):
        having = [trajectory for trajectory in trajectories if getattr(trajectory, name) is not None]
        columns = [getattr(trajectory, name)[trajectory.valid] for trajectory in having]
        if columns:
            counts = [trajectory.sample_weight for trajectory in having]
            tokens = np.repeat(counts, [len(column) for column in columns])
            metrics |= summarise(f"critic/{name}", np.concatenate(columns), tokens)
    if all(trajectory.values is not None and trajectory.returns is not None for trajectory in trajectories):
        values = np.concatenate([trajectory.values[trajectory.valid] for trajectory in trajectories])  # type: ignore[index]
        returns = np.concatenate([trajectory.returns[trajectory.valid] for trajectory in trajectories])  # type: ignore[index]
        metrics["critic/vf_explained_var"] = explained_variance(values, returns)
    groups = number_groups(trajectories)
    metrics["critic/zero_signal_groups"] = float(len(group_statistics(scores.tolist(), groups)[1]))
    metrics["rollout/dropped_tokens"] = float(sum((~np.isfinite(one.rollout_logprobs)).sum() for one in trajectories))
    metrics["perf/total_num_tokens"] = float(count_tokens(trajectories))
    turns: dict[int, int] = {}
    for one in trajectories:
        if one.episode >= 0:
            turns[one.episode] = max(turns.get(one.episode, 0), one.turn + 1)
    return metrics | summarise("conversation/turns", np.array(list(turns.values())))


def count_tokens(trajectories: Sequence[Trajectory]) -> int:
    """Tokens of responses, each with its prompt. A conversation counts once, and what else could have been answered on top."""
    alone, whole, answers = 0, dict[int, tuple[int, int]](), dict[tuple[int, int], list[int]]()
    for one in trajectories:
        if one.episode < 0:
            alone += len(one)
            continue
        # its last turn has all of the others in its prompt
        whole[one.episode] = max(whole.get(one.episode, (0, 0)), (len(one.prompt_ids), len(one.response_ids)))
        answers.setdefault((one.episode, one.turn), []).append(len(one.response_ids))
    return alone + sum(map(sum, whole.values())) + sum(sum(some[1:]) for some in answers.values())


def mean_reward_parts(
    outcomes: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Mean of each part of the reward, over the responses that have it."""
    means = {}
    for name in dict.fromkeys(name for parts in outcomes for name in parts):
        having = [place for place, parts in enumerate(outcomes) if name in parts]
        own = None if weights is None else [weights[place] for place in having]
        means[f"reward/{name}/mean"] = float(np.average([outcomes[place][name] for place in having], weights=own))
    return means


def validation_metrics(tasks: Sequence[str], outcomes: Sequence[Mapping[str, Any] | Failure]) -> dict[str, float]:
    """Mean score and parts of each task's validation rows; those whose reward failed are left out."""
    metrics: dict[str, float] = {}
    for task in dict.fromkeys(tasks):
        own_rows = [parts for own, parts in zip(tasks, outcomes, strict=True) if own == task]
        rows = [parts for parts in own_rows if not isinstance(parts, Failure)]
        for name, value in mean_reward_parts(rows).items():
            part = name.split("/")[1]
            metrics[f"val-core/{task}/reward/mean" if part == "score" else f"val-aux/{task}/{part}/mean"] = value
    return metrics


def validation_turns(tasks: Sequence[str], turns: Sequence[int]) -> dict[str, float]:
    """Mean turns of each task's conversations, of which the last one is that in which the positive goes out, or one is left."""
    return {
        f"val-aux/{task}/turns/mean": float(
            np.mean([own for own, other in zip(turns, tasks, strict=True) if other == task])
        )
        for task in dict.fromkeys(tasks)
    }


def merge_updates(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several updates as one: the largest of maxima and of seconds, the mean of the others."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        largest = name.endswith("_max") or name.startswith("perf/")
        merged[name] = max(values) if largest else float(np.mean(values))
    return merged


@contextmanager
def timed(timing: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds spent inside to `timing[name]`."""
    began = time.perf_counter()
    yield
    timing[name] = timing.get(name, 0.0) + time.perf_counter() - began


def policy_lag(trajectories: Sequence[Trajectory], policy_version: int) -> dict[str, float]:
    """Updates that the policy has seen since it sampled a batch, on average."""
    return {"training/policy_lag": float(np.mean([policy_version - one.policy_version for one in trajectories]))}


def step_metrics(
    metrics: dict[str, float],
    trajectories: Sequence[Trajectory],
    data: DataConfig,
    timing: Mapping[str, float],
    elimination_tokens: int,
    processes: int,
    is_bad: bool,
) -> dict[str, float]:
    """All metrics of a step: those of its parts, of its batch, and its times; of a bad step only finite ones.

    `elimination_tokens`: spent before the batch itself was sampled; perf/throughput is tokens a second and process.
    """
    found = metrics | batch_metrics(trajectories, data.max_prompt_length, data.max_response_length)
    found["training/bad_step"] = float(is_bad)
    found["perf/total_num_tokens"] += elimination_tokens
    if is_bad:
        found = {name: value for name, value in found.items() if np.isfinite(value)}
    found["perf/throughput"] = found["perf/total_num_tokens"] / timing["step"] / processes
    return found | {f"timing_s/{name}": seconds for name, seconds in timing.items()}
