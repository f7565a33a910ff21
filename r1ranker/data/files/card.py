"""What is said of a data set: rows read, left out and written, and what is measured of them; on the terminal and in its README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from r1ranker.data.files.statistics import RowStatistics
from r1ranker.data.files.tally import Tally
from r1ranker.tasks.catalog import TASK_NAMES

LIKELY = 0.001
"""p below which the positives' places are called uneven"""


@dataclass(frozen=True)
class DataSetInfo:
    """Where a data set comes from."""

    title: str
    sources: Sequence[str]
    """a line each, with the licence as far as it is known"""
    seed: int
    command: str = ""
    """that makes it again"""
    source: str = ""
    """what the manifest calls the source; empty: nothing"""


Rows = list[list[str]]


def counts_rows(tally: Tally) -> tuple[list[str], Rows]:
    """Header and rows: what was read and written of each task."""
    columns = sorted(dict.fromkeys(name for task in tally.tasks.values() for name in task.written), key=_column_order)
    known = any(count for task in tally.tasks.values() for count in task.read.values())
    header = ["task", *(["read"] if known else []), *columns]
    rows = []
    for name in in_order(tally.tasks):
        task = tally.tasks[name]
        read = ", ".join(f"{count:,} {what}" for what, count in task.read.items() if count)
        rows.append([name, *([read] if known else []), *(f"{task.written[column]:,}" for column in columns)])
    if len(rows) > 1:
        totals = [sum(task.written[column] for task in tally.tasks.values()) for column in columns]
        rows.append(["all", *([""] if known else []), *(f"{total:,}" for total in totals)])
    return header, rows


def _column_order(name: str) -> tuple[str, bool]:
    config, _, split = name.rpartition(" ")
    return config, split == "test"


def reasons_rows(tally: Tally) -> tuple[list[str], Rows]:
    """Header and rows: what was left out of each task and why, and what is worth knowing of the rest."""
    rows = []
    for name in in_order(tally.tasks):
        task = tally.tasks[name]
        rows += [[name, "left out", reason, f"{count:,}"] for reason, count in task.left_out.items() if count]
        rows += [[name, "noted", what, f"{count:,}"] for what, count in task.noted.items() if count]
    return ["task", "", "what", "rows"], rows


def statistics_rows(statistics: Mapping[str, RowStatistics]) -> tuple[list[str], Rows]:
    """Header and rows: candidates, prompt tokens and the positives' places of each task and kind of row."""
    most = next((kind.most_tokens for kind in statistics.values()), 0)
    header = ["task", "rows", "candidates", "tokens, median", "99%", f"over {most:,}", "positives' places, p"]
    tokens = any(task.tokens for kind in statistics.values() for task in kind.tasks.values())
    rows = []
    for kind, figures in statistics.items():
        for name in in_order(figures.tasks):
            task = figures.tasks[name]
            low, high = min(task.sizes), max(task.sizes)
            size = f"{low}" if low == high else f"{low} to {high}"
            lengths = task.token_figures(figures.most_tokens)
            shown = [f"{lengths[0]:,.0f}", f"{lengths[1]:,.0f}", f"{lengths[2]:.1%}"] if lengths else ["", "", ""]
            p = task.position_p_value()
            rows.append([name, kind, size, *shown, f"{p:.3f}{' uneven' if p < LIKELY else ''}"])
    if not tokens:
        header, rows = header[:3] + header[6:], [row[:3] + row[6:] for row in rows]
    return header, rows


def in_order(tasks: Mapping[str, Any]) -> list[str]:
    """The names, those of the catalogue first and in its order."""
    return [name for name in TASK_NAMES if name in tasks] + [name for name in tasks if name not in TASK_NAMES]


def print_tables(title: str, tally: Tally, statistics: Mapping[str, RowStatistics]) -> None:
    """Print what there is of it."""
    console = Console(markup=False, emoji=False)
    console.print(title, style="bold", markup=False, highlight=False)
    for header, rows in (counts_rows(tally), reasons_rows(tally), statistics_rows(statistics)):
        if not rows:
            continue
        table = Table()
        for place, column in enumerate(header):
            number = place > 0 and rows[0][place][:1].isdigit() and not rows[0][place][-1:].isalpha()
            table.add_column(column, justify="right" if number else "left", no_wrap=place == 0)
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == "all" else None)
        console.print(table)


def render_card(
    about: DataSetInfo, tally: Tally, statistics: Mapping[str, RowStatistics], files: Mapping[str, Mapping[str, Any]]
) -> str:
    """The README.md of a data set, in Markdown."""
    parts = [f"# {about.title}", "", "## Sources and licences", "", *(f"- {line}" for line in about.sources), ""]
    parts += [f"Seed {about.seed}." + (f" Made by `{about.command}`." if about.command else ""), ""]
    sizes = [[name, f"{entry['rows']:,}", f"{entry['bytes']:,}"] for name, entry in files.items()]
    parts += ["## Files", "", *_markdown(["file", "rows", "bytes"], sizes)]
    parts += ["", "Checksums are in manifest.json; a file that does not agree with it is refused at load."]
    for title, (header, rows) in (
        ("Rows", counts_rows(tally)),
        ("Left out, and noted", reasons_rows(tally)),
        ("Prompts", statistics_rows(statistics)),
    ):
        if rows:
            parts += ["", f"## {title}", "", *_markdown(header, rows)]
    if statistics:
        parts += ["", _P_VALUE]
    return "\n".join(parts) + "\n"


_P_VALUE = (
    "Positives' places: p of a chi-square test that every place in a pool is as likely to hold the positive. "
    f"Below {LIKELY} it is called uneven: a model can learn the place instead of the ranking."
)


def _markdown(header: Sequence[str], rows: Rows) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
