"""Reading the full tables of docs/results/NAME.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from r1ranker.errors import UserError

_NUMBER = r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
_FIGURE = re.compile(rf"({_NUMBER})(?: [\[(]({_NUMBER})(?:, | to )({_NUMBER})[\])]| \[-\])?")


@dataclass(frozen=True)
class Table:
    """A Markdown table: the cells of its head and of each row, stripped."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_tables(text: str) -> list[Table]:
    """The tables of a Markdown text, in order."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        head, _, *rows = (_cells(line) for line in block.splitlines())
        found.append(Table(head, tuple(rows)))
    return found


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1])


class FullTables:
    """docs/results/NAME.md, each read once: the tables between its marks, or all where it was written by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, list[Table]] = {}

    def find(self, name: str, corner: str, column: str) -> Table:
        """The first table of NAME.md whose head begins with `corner` and has `column`.

        Raises UserError where there is none.
        """
        if name not in self._read:
            text = (self.folder / f"{name}.md").read_text(encoding="utf-8")
            written = re.search(f"<!-- {name}: begin -->(.*)<!-- {name}: end -->", text, flags=re.DOTALL)
            self._read[name] = read_tables(written[1] if written else text)
        for table in self._read[name]:
            if table.head[0] == corner and column in table.head:
                return table
        raise UserError(f"{self.folder / name}.md: no table whose head begins with {corner!r} and has {column!r}")

    def cell(self, name: str, corner: str, column: str, row: str) -> str | None:
        """One cell as it is written; None where the table has no such row."""
        table = self.find(name, corner, column)
        place = table.head.index(column)
        return next((cells[place] for cells in table.rows if cells[0] == row), None)


def read_figure(cell: str) -> tuple[float, float, float]:
    """Mean, low and high of "63.4 [60.6, 66.0]" or "0.97 (0.96 to 0.98)"; all three alike of "63.4" and "63.4 [-]".

    Raises UserError where the cell is no figure.
    """
    found = _FIGURE.fullmatch(cell)
    if not found:
        raise UserError(f"a figure is wanted, such as 63.4 [60.6, 66.0]; found {cell!r}")
    mean, low, high = (float(part.replace(",", "")) if part else None for part in found.groups())
    assert mean is not None
    return mean, mean if low is None else low, mean if high is None else high
