"""Charts of training runs: a line a run for each metric, validation, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from r1ranker.report.entries import PALETTE, Entry, validation_rewards
from r1ranker.report.figure import WIDEST_LABEL, Figure, Section, Trace, axes, distinct, label, meta, rounded
from r1ranker.report.load import Run

CURVES = (
    ("KL to the reference model", "actor/kl_loss"),
    ("KL penalty in the reward", "actor/reward_kl_penalty"),
    ("KL between old and new policy", "actor/ppo_kl"),
    ("KL between engine and trainer", "rollout/kl"),
    ("Entropy", "actor/entropy"),
    ("Response length, tokens", "response_length/mean"),
    ("Prompt length, tokens", "prompt_length/mean"),
    ("Share of responses cut off at the limit", "response_length/clip_ratio"),
    ("Clip fraction of the policy", "actor/pg_clipfrac"),
    ("Clip fraction of the critic", "critic/vf_clipfrac"),
    ("Gradient norm of the policy", "actor/grad_norm"),
    ("Groups of equal rewards", "critic/zero_signal_groups"),
)
"""title, metric; the reward and its parts come before them, by the names that the runs have"""
SMOOTHED_FROM = 40
"""steps; a running mean over a twentieth of them is drawn on top of as many or more"""


def training_section(runs: Sequence[Entry[Run]]) -> Section:
    """Curves over steps: the reward, its parts, then CURVES."""
    section = Section(missing=_without_rows(runs))
    if not any(run.source.rows for run in runs):
        return section
    absent = []
    for title, metric in (*_reward_parts(runs), *CURVES):
        traces = [trace for run in runs for trace in _curve(run, metric)]
        if traces:
            section.figures.append(Figure(title, traces, axes("step", metric)))
        else:
            absent.append(f"{title} ({metric})")
    if absent:
        section.missing.append(f"Left out, since no run logged it: {', '.join(absent)}.")
    return section


def _without_rows(runs: Sequence[Entry[Run]]) -> list[str]:
    if not runs:
        return ["Left out: no training run (metrics.jsonl) was given."]
    return [f"{run.name}: {run.source.file.name} is empty, no step was logged." for run in runs if not run.source.rows]


def _reward_parts(runs: Sequence[Entry[Run]]) -> list[tuple[str, str]]:
    found = dict.fromkeys(name for run in runs for row in run.source.rows for name in row)
    parts = [name.split("/")[1] for name in found if name.startswith("reward/") and name.endswith("/mean")]
    others = [(f"Reward: {part}", f"reward/{part}/mean") for part in parts if part != "score"]
    return [("Reward", "reward/score/mean" if "score" in parts else "critic/score/mean"), *others]


def _curve(run: Entry[Run], metric: str) -> list[Trace]:
    points = [(row["step"], row[metric]) for row in run.source.rows if metric in row]
    if not any(math.isfinite(value) for _, value in points):
        return []
    trace = run_line(run, points) | {"mode": "lines+markers" if len(points) == 1 else "lines"}
    if len(points) < SMOOTHED_FROM:
        return [trace]
    smooth = trace | {"y": rounded(running_mean([value for _, value in points], len(points) // 20))}
    return [trace | {"opacity": 0.25, "hoverinfo": "skip"}, smooth]


def run_line(run: Entry[Run], points: Sequence[tuple[float, float]]) -> Trace:
    """A run's line through points (step, value), shown where the run is chosen."""
    return {
        "type": "scatter",
        "name": label(run.label),
        "x": [int(step) for step, _ in points],
        "y": rounded(value for _, value in points),
        "line": {"color": run.colour, "width": 1.6},
        "meta": meta([run.id]),
    }


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of up to `window` finite values around each place; fewer at the ends, NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(array))
    first, end = np.maximum(places - window // 2, 0), np.minimum(places - window // 2 + window, len(array))
    number = counts[end] - counts[first]
    return list(np.where(number > 0, (sums[end] - sums[first]) / np.maximum(number, 1), np.nan))


def validation_section(runs: Sequence[Entry[Run]], tasks: dict[str, str]) -> Section:
    """A chart a task: the mean reward of its validation rows over steps, a line a run."""
    section = Section()
    for task, task_id in tasks.items():
        traces: list[Trace] = []
        for run in runs:
            points = [
                (row["step"], validation_rewards(row)[task])
                for row in run.source.rows
                if task in validation_rewards(row)
            ]
            if points:
                traces.append(run_line(run, points) | {"mode": "lines+markers", "marker": {"size": 6}})
        if traces:
            section.figures.append(Figure(task, traces, axes("step", "mean reward"), task=task_id))
    if not section.figures:
        section.missing.append("Left out: no run logged a validation (val-core/TASK/reward/mean).")
    return section


def time_section(runs: Sequence[Entry[Run]]) -> Section:
    """Each run's seconds by phase, as shares of their sum over all steps, and the same step by step."""
    section = Section()
    head, whole = "timing_s/", "timing_s/step"
    phases = dict.fromkeys(
        name for run in runs for row in run.source.rows for name in row if name.startswith(head) and name != whole
    )
    colours = {phase: PALETTE[place % len(PALETTE)] for place, phase in enumerate(phases)}
    totals: list[Trace] = []
    names = distinct(label(run.label, WIDEST_LABEL) for run in runs)
    for phase in phases:  # a phase's bars follow one another, so that every run stacks them in the same order
        for run, row in zip(runs, names, strict=True):
            seconds = {name: sum(line.get(name, 0.0) for line in run.source.rows) for name in phases}
            if seconds[phase] <= 0:
                continue
            name = phase[len(head) :]
            totals.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": label(name),
                    "y": [row],
                    "x": rounded([100 * seconds[phase] / sum(seconds.values())]),
                    "marker": {"color": colours[phase]},
                    "hovertemplate": f"{label(name)}: %{{x:.1f}}%, {seconds[phase]:,.1f} s<extra></extra>",
                    "meta": meta([run.id]),
                }
            )
    if not totals:
        section.missing.append("Left out: no run logged times (timing_s/...).")
        return section
    layout = axes("% of the time of all phases", "", xaxis_range=[0, 100], yaxis_autorange="reversed")
    section.key = {phase[len(head) :]: colour for phase, colour in colours.items()}
    section.figures.append(Figure("Share of each phase", totals, layout | {"barmode": "stack"}, row_height=30))
    for run in runs:
        traces = _stacked(run, list(phases), colours)
        if traces:
            layout = axes("step", "% of the step", yaxis_range=[0, 100])
            section.figures.append(Figure(f"Step by step: {run.label}", traces, layout, entries=(run.id,)))
    return section


def _stacked(run: Entry[Run], phases: Sequence[str], colours: dict[str, str]) -> list[Trace]:
    rows = [row for row in run.source.rows if sum(row.get(phase, 0.0) for phase in phases) > 0]
    own = [phase for phase in phases if any(row.get(phase, 0.0) > 0 for row in rows)]
    if len(rows) < 2:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "phases",
            "groupnorm": "percent",
            "name": label(phase.split("/", 1)[1]),
            "x": [int(row["step"]) for row in rows],
            "y": rounded(row.get(phase, 0.0) for row in rows),
            "line": {"color": colours[phase], "width": 0.5},
            "meta": meta([run.id]),
        }
        for phase in own
    ]
