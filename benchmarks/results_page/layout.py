"""What a question's small table and picture are made of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A column of a small table: where its cells stand in the full tables. `{row}` and `{arm}` are put in row by row."""

    head: str
    column: str = ""
    """its name in the full table; empty: the same as `head`"""
    corner: str = ""
    """the first cell of the full table's head"""
    row: str = "{row}"
    """the row of the full table"""
    file: str = ""
    """the full tables' name; empty: the row's, or the question's"""


@dataclass(frozen=True)
class Row:
    """A row of a small table."""

    name: str
    """of the row in the full table"""
    shown: str = ""
    """the name on the page; empty: as in the full table"""
    file: str = ""
    """the full tables' name; empty: the column's, or the question's"""

    @property
    def label(self) -> str:
        return self.shown or self.name

    @property
    def arm(self) -> str:
        return self.name.removesuffix(", after").removesuffix(", before")


@dataclass(frozen=True)
class Bars:
    """Bars with intervals, a bar a row: of each of `columns` a panel, or all of them side by side in one."""

    columns: tuple[str, ...]
    unit: str = "MRR x 100"
    together: bool = False


@dataclass(frozen=True)
class Lines:
    """A line a row, from the full table whose head begins with `corner`."""

    corner: str
    x: str
    """the column; empty: the first"""
    y: str
    xlabel: str
    ylabel: str


@dataclass(frozen=True)
class Question:
    """A section of docs/results.md: its small table, its picture, and where the full tables are."""

    name: str
    """of its marks on the page and of its picture"""
    file: str
    """of the full tables, docs/results/FILE.md"""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    picture: tuple[Bars | Lines, ...]
    shows: str
    """the picture in words"""
    corner: str = ""
    old_world: bool = False
    """measured on the built-in world as it was before its most frequent label stopped solving it"""
    gaps: bool = False
    """rows may lack some columns"""
    also: tuple[str, ...] = field(default=())
    """more full tables to link"""

    def files(self) -> list[str]:
        """The names of all full tables that it draws on or links, its own first."""
        named = [self.file, *(one.file for one in self.columns), *(one.file for one in self.rows), *self.also]
        return [name for name in dict.fromkeys(named) if name]
