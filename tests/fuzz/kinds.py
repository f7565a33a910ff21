"""The kinds of cases, and the running of one of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, seed, settings

from . import files, paths, templates, words

KINDS: dict[str, Callable[..., None]] = {
    found.__name__: found
    for found in (
        words.prompts, words.kept_wordings, words.chats, words.answers, words.named, words.constrained, words.rewards,
        templates.templates, templates.template_answers,
        files.training_parquet, files.own_files, files.broken_files, files.reports,
        paths.paths, paths.overrides, paths.experiment_texts, paths.places,
    )
}  # fmt: skip
SHARES = {
    "training_parquet": 0.4, "reports": 0.2, "chats": 0.6, "templates": 0.1, "template_answers": 0.1, "paths": 0.02, "experiment_texts": 0.1,
}  # fmt: skip
"""of the cases, where a case is dear; 1 for the others"""
LONGEST = 60
"""seconds of this process's own time that a case may take; what takes longer has run away"""


def run(name: str, cases: int, seeded: int | None = None) -> int:
    """Run so many cases of a kind; returns how many there were. What fails is raised, with the smallest case that does."""
    inner = KINDS[name].hypothesis.inner_test  # type: ignore[attr-defined]
    ran = 0

    def counted(*arguments: Any, **named: Any) -> None:
        nonlocal ran
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
        try:
            inner(*arguments, **named)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        ran += 1

    before = signal.signal(signal.SIGVTALRM, _ran_away)
    try:
        KINDS[name].hypothesis.inner_test = counted  # type: ignore[attr-defined]
        wanted = settings(
            max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=seeded is None,
        )  # fmt: skip
        test = wanted(KINDS[name])
        (test if seeded is None else seed(seeded)(test))()
    except Exception as error:
        error.cases = ran  # type: ignore[attr-defined]
        raise
    finally:
        KINDS[name].hypothesis.inner_test = inner  # type: ignore[attr-defined]
        signal.signal(signal.SIGVTALRM, before)
    return ran


def _ran_away(number: int, frame: object) -> None:
    raise TimeoutError(f"a case ran for over {LONGEST} seconds")
