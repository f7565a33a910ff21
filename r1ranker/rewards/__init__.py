"""Rewards: pure functions of a response and its ground truth, with veRL's signature. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from r1ranker.errors import UserError, suggest
from r1ranker.rewards.parts import (
    direct_task_score,
    first_task_score,
    format_score,
    iterative_task_score,
    linear_gain,
    tags_score,
    window_task_score,
)
from r1ranker.rewards.registry import REWARDS, get_reward, register
from r1ranker.tasks.answers import parse_answer, prepend_prefill
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import find_name

__all__ = [
    "MODES",
    "REWARDS",
    "compute_score",
    "compute_score_first",
    "compute_score_linear",
    "compute_score_task",
    "compute_score_window",
    "get_reward",
    "register",
]

OUT = "out"
"""key of extra_info: places of the candidates that went out earlier in a conversation"""
MODES: dict[str, Mode] = {"direct_ranking": "direct", "iterative_ranking": "iterative"}
"""data_source -> how it is ranked"""


@register("compute_score")
def compute_score(
    data_source: str, solution_str: str, ground_truth: Mapping[str, Any], extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Reward of one response: `score` = task + format + tags, beside these parts, `coverage` and `valid`.

    `solution_str` is the response alone; the tag that the prompt had opened may be missing. `ground_truth` holds
    candidate_text (names, a list or an array), gt (the positive) and, where the data has them, grades (a number from 0
    for each candidate), whose gain in NDCG is 2^grade - 1. `extra_info` may hold think and answer_style.
    coverage: share of the candidates named (direct), 1 where the answer is in the pool (iterative). valid: 1 where the
    answer can be used as it is. `extra_info` may hold out as well: places of the candidates that have gone, which an answer that
    names one of them does not find in the pool. Raises UserError for an unknown data_source or a positive that is no candidate.
    """
    return _score(data_source, solution_str, ground_truth, extra_info, direct_task_score)


@register("compute_score_first")
def compute_score_first(
    data_source: str, solution_str: str, ground_truth: Mapping[str, Any], extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """The same with the task's part of a direct ranking 1 where the best candidate comes first, and 0 else.

    With adv_estimator=maxrl, whose divisor NDCG keeps large, this teaches most where the policy is surely wrong.
    """
    return _score(data_source, solution_str, ground_truth, extra_info, first_task_score)


@register("compute_score_linear")
def compute_score_linear(
    data_source: str, solution_str: str, ground_truth: Mapping[str, Any], extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """The same with the grade itself as its gain in NDCG."""
    return _score(data_source, solution_str, ground_truth, extra_info, partial(direct_task_score, gain=linear_gain))


@register("compute_score_window")
def compute_score_window(
    data_source: str, solution_str: str, ground_truth: Mapping[str, Any], extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """The same with the task's part of a direct ranking made for windows that slide over a long list: who is among the first ten
    counts beside their order, as `window_task_score` has it."""
    return _score(data_source, solution_str, ground_truth, extra_info, window_task_score)


@register("compute_score_task")
def compute_score_task(
    data_source: str, solution_str: str, ground_truth: Mapping[str, Any], extra_info: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """The task's part alone as `score`: an answer's form counts only as far as it has to be found."""
    parts = _score(data_source, solution_str, ground_truth, extra_info, direct_task_score)
    return parts | {"score": parts["task"]}


def _score(
    data_source: str,
    solution_str: str,
    ground_truth: Mapping[str, Any],
    extra_info: Mapping[str, Any] | None,
    score_order: Callable[[Sequence[int], int, int, Sequence[float]], float],
) -> dict[str, float]:
    if data_source not in MODES:
        raise UserError(
            f"data_source: found {data_source!r}{suggest(data_source, MODES)}; one of {', '.join(MODES)} is wanted"
        )
    mode = MODES[data_source]
    extra = extra_info or {}
    think = extra.get("think")
    answer_format = AnswerFormat(extra.get("answer_style") or "name", True if think is None else bool(think))
    candidates = [str(name) for name in ground_truth["candidate_text"]]
    gold = str(ground_truth["gt"])
    known = ground_truth.get("grades")
    grades = [] if known is None else [float(grade) for grade in known]
    positive = find_name(candidates, gold)
    if positive is None:
        raise UserError(f"ground_truth: the positive {gold!r} is not among the {len(candidates)} candidates")
    completion = prepend_prefill(solution_str, answer_format.think)
    parsed = parse_answer(completion, candidates, mode, answer_format).without(extra.get(OUT) or ())
    form = format_score(completion, answer_format.think)
    tags = tags_score(completion, answer_format.think)
    coverage = len(parsed.named) / (len(candidates) if mode == "direct" else 1)
    if parsed.answer is None:
        task = -1.0
    elif mode == "direct":
        task = score_order(parsed.named, positive, len(candidates), grades)
    else:
        gone = set(extra.get(OUT) or ())
        left = [grade for place, grade in enumerate(grades) if place not in gone]
        task = iterative_task_score(parsed.named, positive, grades, left)
    return {
        "score": task + form + tags,
        "task": task,
        "format": form,
        "tags": tags,
        "coverage": coverage,
        "valid": float(parsed.is_valid(mode, len(candidates))),
    }
