"""A chart as plotly takes it, and the parts that charts share. Which trace is shown for a choice of the reader's is
decided in the page, by the trace's `meta`: `task`, `entries` and `metric`."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

GREY = "#8a8f98"
WIDEST_LABEL = 26
"""characters of a line beside a bar"""

Trace = dict[str, Any]


@dataclass
class Figure:
    """A chart of its own box."""

    title: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    """id of the task that all of it is about"""
    entries: tuple[str, ...] = ()
    """ids of the runs or results that all of it is about"""
    height: int = 280
    """pixels, where row_height is 0"""
    row_height: int = 0
    """pixels a bar, where the height follows the number of bars shown"""


@dataclass
class Section:
    """Charts under a heading; `missing` says which were left out, and why."""

    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    key: dict[str, str] = field(default_factory=dict)
    """what the colours stand for, where it is not runs or results: name -> colour"""


def meta(entries: Iterable[str] = (), task: str = "", metric: str = "") -> dict[str, Any]:
    """When a trace is shown: one of `entries` is chosen, and the task and the metric; empty: whatever is chosen."""
    values: dict[str, Any] = {"entries": list(entries), "task": task, "metric": metric}
    return {name: value for name, value in values.items() if value}


def label(text: str, width: int = 0) -> str:
    """Text for plotly, which reads some markup: none is left. Cut in front to `width` characters."""
    if width and len(text) > width:
        text = "…" + text[-width + 1 :]
    return html.escape(text, quote=False)


def distinct(labels: Iterable[str]) -> list[str]:
    """Labels as categories of an axis, which must not be the same: of equal ones the later have characters of no width."""
    found: dict[str, None] = {}
    for text in labels:
        while text in found:
            text += "\u200b"
        found[text] = None
    return list(found)


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Five digits are more than a screen shows; what is no number becomes a gap."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.5g}") for value in values]


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """A layout with titled axes; `xaxis_...` and `yaxis_...` set more of them."""
    layout: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name, value in more.items():
        axis, _, key = name.partition("_")
        layout[axis][key] = value
    return layout


def error_bars(means: Sequence[float], ends: Sequence[tuple[float, float]], colour: str = "#444") -> dict[str, Any]:
    """Bars from low to high around means."""
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded(high - mean for mean, (_, high) in zip(means, ends, strict=True)),
        "arrayminus": rounded(mean - low for mean, (low, _) in zip(means, ends, strict=True)),
        "thickness": 1.2,
        "width": 3,
        "color": colour,
    }
