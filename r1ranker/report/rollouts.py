"""What a run wrote down of its answers: the same validation rows time after time, and whole groups of a few steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from r1ranker.report.entries import Entry
from r1ranker.report.fields import as_mapping, as_number, as_sequence, as_text, as_whole, read_lines
from r1ranker.report.figure import Figure, Section, Trace, axes
from r1ranker.report.load import Run
from r1ranker.report.training_figures import run_line

DIRECTORY, VALIDATION = "rollouts", "validation"
"""of a run; the trainer writes them"""
MOST_STEPS = 60
"""whose files are read, evenly spread"""
SHOWN_STEPS = 6
"""of a validation row"""
SHOWN_GROUPS = 3
"""steps whose first group is shown"""
LONGEST = 700
"""characters of an answer"""
_STEP = re.compile(r"(\d+)\.jsonl")


@dataclass(frozen=True)
class Answer:
    """A response, as a line of a rollout file has it."""

    step: int
    task: str
    row: str
    """what the prompt's row is called"""
    prompt: str
    """rows of several files may be called the same"""
    turn: int
    best: str
    thinks: bool
    """whether a thought was asked for"""
    text: str
    score: float
    advantage: float | None
    """mean over the tokens"""
    tokens: int
    is_valid: bool
    """it can be used as it is"""

    @property
    def shown(self) -> str:
        """As much of the text as is shown."""
        more = len(self.text) - LONGEST
        return self.text if more <= 0 else f"{self.text[:LONGEST]} ... ({more:,} more characters)"


@dataclass(frozen=True)
class Answers:
    """A table: the answers to one prompt."""

    entry: str
    """id of the run"""
    summary: str
    rows: tuple[Answer, ...]
    by_step: bool
    """the same prompt at several steps; else a group of one step"""


Steps = dict[int, list[Answer]]
"""step -> its answers"""


def read_rollouts(run: Run) -> tuple[Steps, Steps]:
    """(training, validation) of the steps that are read; raises UserError for a broken file."""
    directory = run.file.parent / DIRECTORY
    return _read(directory), _read(directory / VALIDATION)


def _read(directory: Path) -> Steps:
    files = {int(match[1]): file for file in directory.glob("*.jsonl") if (match := _STEP.fullmatch(file.name))}
    return {step: read_lines(files[step], _answer) for step in _spread(sorted(files), MOST_STEPS)}


def _answer(value: Any, where: str) -> Answer:
    line = as_mapping(value, where, lambda inner, _: inner)

    def text(name: str) -> str:
        return as_text(line.get(name) or "", f"{where}.{name}")

    def number(name: str) -> float:
        return as_number(line.get(name) or 0, f"{where}.{name}")

    found = line.get("advantage")
    advantages = as_sequence(found if isinstance(found, list) else [found or 0.0], f"{where}.advantage", as_number)
    parts = as_mapping(line.get("parts") or {}, f"{where}.parts", as_number)
    return Answer(
        as_whole(line.get("step"), f"{where}.step"),
        text("task"),
        text("row"),
        text("input"),
        as_whole(line.get("turn") or 0, f"{where}.turn"),
        text("best"),
        bool(line.get("think")),
        text("output"),
        number("score"),
        None if found is None else mean(advantages or [0.0]),
        as_whole(line.get("tokens") or 0, f"{where}.tokens"),
        parts.get("valid", 1.0) >= 1,
    )


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, evenly, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[place * (len(steps) - 1) // (most - 1)] for place in range(most)]


def rollout_tables(runs: Sequence[Entry[Run]], read: Sequence[tuple[Steps, Steps]]) -> list[Answers]:
    """Of each run: its validation rows over the steps, then the first group of some steps; of a conversation the first turn."""
    tables = []
    for run, (training, validation) in zip(runs, read, strict=True):
        rows: dict[tuple[str, str, str], list[Answer]] = {}
        for step in _spread(list(validation), SHOWN_STEPS):
            for one in validation[step]:
                if one.turn == 0:
                    rows.setdefault((one.task, one.row, one.prompt), []).append(one)
        tables += [
            Answers(run.id, f"{run.label} · {task}, {row}, over the steps", tuple(own), True)
            for (task, row, _), own in rows.items()
        ]
        for step in _spread([step for step, own in training.items() if own], SHOWN_GROUPS):
            first = training[step][0]
            group = tuple(one for one in training[step] if _prompt_of(one) == _prompt_of(first))
            title = f"{run.label} · step {step}: samples of {first.task}, {first.row}"
            tables.append(Answers(run.id, title, group, False))
    return tables


def _prompt_of(one: Answer) -> tuple[str, str, int]:
    """What sets the prompts of a step apart: their rows, words and turns. Of a conversation's turns the words differ by sample."""
    return one.row, "" if one.turn else one.prompt, one.turn


def rollout_section(runs: Sequence[Entry[Run]], read: Sequence[tuple[Steps, Steps]]) -> Section:
    """Curves of what stands in the rollouts: how long thoughts are, how many answers cannot be used, how many groups teach nothing."""
    section = Section()
    if not any(training or validation for training, validation in read):
        section.missing.append("Left out: no run has a directory rollouts/ beside its metrics.jsonl.")
        return section
    for title, unit, figure in (
        ("Thought, characters", "mean of the rollouts", _thought),
        ("Share of answers that cannot be used as they are", "of the rollouts", _unusable),
        ("Share of groups in which no score differs", "of the rollouts", _silent),
    ):
        traces: list[Trace] = []
        for run, (training, _) in zip(runs, read, strict=True):
            figures = ((step, figure(answers)) for step, answers in training.items())
            points = [(step, value) for step, value in figures if value is not None]
            if points:
                traces.append(run_line(run, points) | {"mode": "lines+markers", "marker": {"size": 4}})
        if traces:
            section.figures.append(Figure(title, traces, axes("step", unit)))
    return section


def _thought(answers: Sequence[Answer]) -> float | None:
    """Mean length of the thoughts, of one that was cut off all of it; None where none were asked for."""
    thoughts = [one.text.removeprefix("<think>").partition("</think>")[0] for one in answers if one.thinks]
    return mean(len(thought.strip()) for thought in thoughts) if thoughts else None


def _unusable(answers: Sequence[Answer]) -> float | None:
    return mean(not one.is_valid for one in answers) if answers else None


def _silent(answers: Sequence[Answer]) -> float | None:
    scores: dict[tuple[str, str, int], list[float]] = {}
    for one in answers:
        scores.setdefault(_prompt_of(one), []).append(one.score)
    groups = [own for own in scores.values() if len(own) > 1]
    return mean(max(own) == min(own) for own in groups) if groups else None
