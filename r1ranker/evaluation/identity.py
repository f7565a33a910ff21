"""What a result is of: model, data, tasks and settings, and the short names that tell models apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from r1ranker.pretrained import full_path

About = dict[str, Any]
"""those of _KEYS that are known, as JSON holds them"""
_KEYS = ("model", "data", "tasks", "seed", "limit", "engine", "beside", "settings")


def about_of(found: Mapping[str, Any]) -> About:
    """What a result file, or the head of a journal, is of."""
    about = {key: found[key] for key in _KEYS if key in found}
    for key in ("model", "data"):
        if isinstance(about.get(key), str):
            about[key] = full_path(about[key])  # earlier versions wrote it as it was given
    if "tasks" in about:
        about["tasks"] = list(about["tasks"])  # with or without their figures
    result: About = json.loads(json.dumps(about))
    return result


def is_same(found: About, own: About) -> bool:
    """Whether two results are of the same, as far as both say: an earlier version may have said less."""

    def agree(one: Any, other: Any) -> bool:
        if isinstance(one, dict) and isinstance(other, dict):
            return all(agree(value, other[key]) for key, value in one.items() if key in other)
        return bool(one == other)

    return "model" in found and agree(found, own)


def digest_of(about: About) -> str:
    """Eight characters that stand for what a result is of."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def run_tag(about: About) -> str:
    """A result's name in TREC's run files: the last part of the model's path, and what stands for all of it."""
    short = re.sub(r"[^\w.-]+", "_", path_parts(str(about.get("model", "")))[-1]).strip("_")
    return f"{short or 'r1ranker'}-{digest_of(about)}"


def path_parts(path: str) -> list[str]:
    """The names along a path; the directory `actor`, in which every run keeps its model, does not count."""
    parts = [part for part in PurePath(path).parts if part != "/"]
    return (parts[:-1] if parts[-1:] == ["actor"] and len(parts) > 1 else parts) or [path]


def lengthening_names(path: str, joint: str) -> list[str]:
    """A path by its last part, its last two, and so on; at last with the `actor` that does not count."""
    short, whole = path_parts(path), [part for part in PurePath(path).parts if part != "/"]
    names = [joint.join(short[-count:]) for count in range(1, len(short) + 1)]
    return names + [joint.join(whole[-count:]) for count in range(2, len(whole) + 1) if len(whole) > len(short)]


def short_names(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Paths by as few of their last parts, the same number for all, as tell those of each group apart."""
    longer = [[lengthening_names(path, "/") for path in group] for group in groups]
    different = [len({names[-1] for names in group}) for group in longer]
    names: list[list[str]] = [[] for _ in groups]
    for place in range(max((len(path) for group in longer for path in group), default=0)):
        names = [[path[min(place, len(path) - 1)] for path in group] for group in longer]
        if [len(set(group)) for group in names] == different:
            break
    return names
