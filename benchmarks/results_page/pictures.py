"""The pictures of docs/results.md: which figures each shows, and drawing them as SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from results_page.layout import Lines, Question
from results_page.page import cell
from results_page.tables import FullTables, read_figure

BEFORE, AFTER, BASELINE = "#9ecae1", "#1f77b4", "#9a9a9a"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
"""told apart by readers who are colour-blind (Okabe and Ito's, but for the last)"""


@dataclass(frozen=True)
class Series:
    """Means with the ends of their intervals; `at`: the rows of bars, the x of lines."""

    label: str
    at: tuple[str | float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Axes of a picture."""

    kind: str
    """bars or lines"""
    title: str
    xlabel: str
    ylabel: str
    series: tuple[Series, ...]


def panels_of(question: Question, tables: FullTables) -> list[Panel]:
    """Everything that a question's picture shows, read from the full tables."""
    found: list[Panel] = []
    for part in question.picture:
        if isinstance(part, Lines):
            found.append(_lines(question, part, tables))
            continue
        series = [_bars(question, head, tables) for head in part.columns]
        if part.together:
            found.append(Panel("bars", "", part.unit, "", tuple(series)))
        else:
            titled = len(series) > 1
            found.extend(Panel("bars", one.label if titled else "", part.unit, "", (one,)) for one in series)
    return found


def _bars(question: Question, head: str, tables: FullTables) -> Series:
    column = next(one for one in question.columns if one.head == head)
    cells = {row.label: cell(question, row, column, tables) for row in question.rows}
    labels = tuple(label for label, text in cells.items() if text)
    mean, low, high = zip(*(read_figure(cells[label]) for label in labels), strict=True)
    return Series(head, labels, mean, low, high)


def _lines(question: Question, part: Lines, tables: FullTables) -> Panel:
    found = []
    for row in question.rows:
        table = tables.find(question.file, part.corner.format(arm=row.arm), part.y)
        x, y = (table.head.index(name) if name else 0 for name in (part.x, part.y))
        mean, low, high = zip(*(read_figure(cells[y]) for cells in table.rows), strict=True)
        found.append(Series(row.label, tuple(read_figure(cells[x])[0] for cells in table.rows), mean, low, high))
    return Panel("lines", "", part.xlabel, part.ylabel, tuple(found))


def described(panels: Sequence[Panel]) -> str:
    """The figures of a picture as JSON, which its file holds as its description."""
    return json.dumps([asdict(one) for one in panels], separators=(",", ":"), ensure_ascii=False)


def draw(question: Question, panels: Sequence[Panel], file: Path) -> None:
    """Write a question's picture. The same figures give the same file with the same matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # text as text, and neither a date nor random ids; white behind it all, which is legible on any page
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": question.name,
        "font.size": 9,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(style):
        size = 3.6 * max(len(panels), 2) + 1.4 * (len(panels[-1].series) > 1), 1.0 + 0.26 * max(_heights(panels))
        # readers' fonts may be wider than the one that is laid out here
        layout = ConstrainedLayoutEngine(w_pad=0.12)
        figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, layout=layout)
        for place, (axis, panel) in enumerate(zip(axes[0], panels, strict=True)):
            if panel.kind == "bars":
                _draw_bars(axis, panel, question, named=place == 0)
            else:
                _draw_lines(axis, panel)
            axis.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
            axis.spines[["top", "right"]].set_visible(False)
        if len(panels[-1].series) > 1:
            figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        notes = {"Date": None, "Creator": None, "Title": question.shows, "Description": described(panels)}
        figure.savefig(file, facecolor="white", metadata=notes)
        pyplot.close(figure)


def _heights(panels: Sequence[Panel]) -> list[float]:
    """The height that each panel wants, in bars."""
    bars = [max(len(one.at) for one in panel.series) * (0.4 + 0.6 * len(panel.series)) for panel in panels]
    return [height if panel.kind == "bars" else 9 for height, panel in zip(bars, panels, strict=True)]


def _draw_bars(axis: Any, panel: Panel, question: Question, named: bool) -> None:
    """Horizontal bars with intervals, the first row on top; several series side by side, told apart by colour."""
    rows = [row.label for row in question.rows]
    thickness = 0.8 / len(panel.series)
    for place, one in enumerate(panel.series):
        at = [rows.index(str(label)) + (place - (len(panel.series) - 1) / 2) * thickness for label in one.at]
        ends = [
            [mean - low for mean, low in zip(one.mean, one.low, strict=True)],
            [high - mean for mean, high in zip(one.mean, one.high, strict=True)],
        ]
        colour = COLOURS[place] if len(panel.series) > 1 else [_colour(question, str(label)) for label in one.at]
        axis.barh(
            at, one.mean, height=0.9 * thickness, xerr=ends, color=colour, label=one.label,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
        )  # fmt: skip
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), rows if named else [""] * len(rows))


def _colour(question: Question, label: str) -> str:
    name = next(row.name for row in question.rows if row.label == label)
    if name.endswith((", before", ", base")):
        return BEFORE
    return AFTER if name.endswith(", after") or "steps" in name else BASELINE


def _draw_lines(axis: Any, panel: Panel) -> None:
    """Lines with a band where intervals are known."""
    for colour, one in zip(COLOURS, panel.series, strict=False):
        axis.plot(one.at, one.mean, marker="o", markersize=3, color=colour, label=one.label)
        if one.low != one.high:
            axis.fill_between(one.at, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
