"""Rows of tab-separated files that a csv writer may have quoted, or nobody: which it was is seen from each cell."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from r1ranker.errors import UserError, note

DELIMITER = "\t"
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|\n|\Z)')
_OPEN = re.compile(r'"[^"]*(?:""[^"]*)*\Z')
_INSIDE = re.compile(r'[^"]*(?:""[^"]*)*')
"""of a quoted cell, up to a quote that stands alone"""

Line = tuple[int, str]
"""number from 1, text with its end"""


def unquote(cell: str) -> str:
    """The text of a cell as the csv module quotes it: it begins and ends with a quote, and those within are doubled.

    Any other cell is text as it stands, such as `12" Remix` or `"Weird Al" Yankovic: Live`.
    """
    found = _QUOTED.fullmatch(cell)
    return found[1].replace('""', '"') if found else cell


def split_rows(path: str, lines: Iterator[Line], longest: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, cells) of each row; a quoted cell may hold tabs and line ends. Empty lines are left out.

    A cell counts as quoted by the rule of `unquote`, on however many lines it stands, unless that gives another number of
    cells than the first row has. Where each of its lines is a whole row by itself, it is not: nobody quoted that file, and
    two titles happen to begin and to end with a quote. This is said of the first such row. A cell of over `longest` characters is not quoted.
    Raises UserError for a carriage return in the middle of a line.
    """
    source = _Lookahead(lines)
    wanted, said = 0, False
    for number, line in source:
        if not line.rstrip("\r\n"):
            continue
        if '"' in line:
            cells, last = _cells(source, line, wanted, longest)
            if last and not said:
                said = True
                note(
                    f"{path}: a quote is opened on line {number} and closed on line {last}; each line is read as a row"
                )
        else:
            cells = _plain(line)
            if "\r" in line.rstrip("\r\n"):
                raise UserError(
                    f"{path}: line {number}: not a row of the table (a carriage return without a line feed)"
                )
        wanted = wanted or len(cells)
        yield number, cells


def _plain(line: str) -> list[str]:
    """The cells of a line in which quotes mean nothing."""
    return line.rstrip("\r\n").split(DELIMITER)


def _cells(source: _Lookahead, line: str, wanted: int, longest: int) -> tuple[list[str], int]:
    """The cells of the row that begins on a line; with the last line of a quoted cell that was not read as one, else 0."""
    read: list[Line] = []
    cells, plain = _read_quoted(source, line, read, longest), _plain(line)
    if wanted and len(cells) != wanted:
        source.put_back(read)
        return [unquote(cell) for cell in plain] if len(plain) == wanted else plain, 0
    if read and all(len(_plain(text)) == wanted for text in (line, *(text for _, text in read))):
        source.put_back(read)
        return [unquote(cell) for cell in plain], read[-1][0]
    return cells, 0


def _read_quoted(source: _Lookahead, line: str, read: list[Line], longest: int) -> list[str]:
    """The cells that begin on a line, quotes undone; the further lines that they take are added to `read`."""
    text, place, cells = line, 0, []
    while True:
        if _OPEN.match(text, place):
            more = _lines_to_closing(source, longest)
            read += more
            text += "".join(one for _, one in more)
        found = _QUOTED.match(text, place)
        if found:
            cells.append(found[1].replace('""', '"'))
            place = found.end()
        else:
            end = text.find(DELIMITER, place)
            cells.append(text[place:].rstrip("\r\n") if end < 0 else text[place:end])
            place = len(text) if end < 0 else end
        if not text.startswith(DELIMITER, place):
            return cells
        place += 1


def _lines_to_closing(source: _Lookahead, longest: int) -> list[Line]:
    """The lines that an open quote takes; none, and nothing read, where it is not closed as a csv writer closes one."""
    taken: list[Line] = []
    length = 0
    for one in source:
        taken.append(one)
        length += len(one[1])
        inside = _INSIDE.match(one[1])
        if length > longest or inside is None:
            break
        if inside.end() == len(one[1]):
            continue
        if _QUOTED.match('"' + one[1]):
            return taken
        break
    source.put_back(taken)
    return []


class _Lookahead:
    """Lines that can be put back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._waiting: deque[Line] = deque()

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        return self._waiting.popleft() if self._waiting else next(self._lines)

    def put_back(self, lines: list[Line]) -> None:
        """Have `lines` come again, in their order."""
        self._waiting.extendleft(reversed(lines))
