"""The reward's parts for form: the completion's overall format and the count of its tags."""

from __future__ import annotations

import re

_THOUGHT = re.compile(r"<think>.*?</think>\s*\n\s*<answer>.*?</answer>(?:<\|[^|<>]*\|>)?", re.DOTALL)
_AT_ONCE = re.compile(r"<answer>.*?</answer>(?:<\|[^|<>]*\|>)?", re.DOTALL)


def format_score(completion: str, think: bool) -> float:
    """0 if the whole completion is <think>...</think>, a line break, <answer>...</answer>; else -1. Without thinking: only the latter."""
    return 0.0 if (_THOUGHT if think else _AT_ONCE).fullmatch(completion.strip()) else -1.0


def tags_score(completion: str, think: bool) -> float:
    """-0.25 for each of the tags that does not occur exactly once."""
    tags = ("<think>", "</think>", "<answer>", "</answer>") if think else ("<answer>", "</answer>")
    return -0.25 * sum(completion.count(tag) != 1 for tag in tags)
