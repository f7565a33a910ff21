"""Rows of text files (tab- or comma-separated, JSON lines; plain or .gz), with the line each stands on."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from r1ranker.data.files.tab_separated import split_rows
from r1ranker.errors import UserError, note, suggest

STDIN = "-"
"""in place of a path"""
MOST_CHARACTERS = 10_000_000
"""of one field"""
MISSING = ("nan", "none", "null", "<na>")
"""what pandas and Python write, in any case, for a text that is not there"""
_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "'::'", " ": "spaces"}


def text_lines(path: str, stdin: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file, or with `stdin` of stdin where `path` is `-`. A byte-order
    mark and Windows line ends are taken off.

    Raises UserError for a file that is not there, is a directory, is empty, is cut short or is not text.
    """
    number = 0
    try:
        with nullcontext(sys.stdin.buffer) if stdin and path == STDIN else _opened(path) as file:
            for number, raw in enumerate(file, 1):
                yield number, _decoded(path, number, raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: line {number + 1}: not gzip, or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not number:
        raise UserError(f"{path}: empty; at least one row is wanted")


def _opened(path: str) -> AbstractContextManager[Iterable[bytes]]:
    """The lines of a file as they stand in it, unpacked."""
    if Path(path).is_dir():
        raise UserError(f"{path}: found a directory; a file is wanted")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _decoded(path: str, number: int, raw: bytes) -> str:
    if number == 1:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{path}: line 1: found UTF-16; UTF-8 is wanted")
        if raw.startswith(b"\x1f\x8b"):
            raise UserError(f"{path}: line 1: found gzip; a name that ends in .gz is wanted for it")
        if raw.startswith(b"PAR1"):
            raise UserError(f"{path}: line 1: found parquet; text is wanted")
        if raw.startswith(b"\xef\xbb\xbf"):
            raw = raw[3:]
            note(f"{path}: line 1: a byte-order mark was left out")
        if raw.endswith(b"\r\n"):
            note(f"{path}: line 1: Windows line ends were taken off")
    if b"\0" in raw:
        raise UserError(f"{path}: line {number}: found a NUL byte; text is wanted")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = raw[error.start]
        raise UserError(f"{path}: line {number}: found byte 0x{found:02x} at {error.start}; UTF-8 is wanted") from error
    return line[:-2] + "\n" if line.endswith("\r\n") else line


class TextTable:
    """A table with a header: `columns`, and an iteration over (line, fields)."""

    def __init__(self, path: str, delimiter: str, quoted: bool) -> None:
        """`quoted`: as the csv module writes them. Else the delimiter is a tab, and a cell in quotes may be as written by
        the csv module or be a text that begins with a quote (`split_rows` tells them apart).
        """
        self.path = path
        csv.field_size_limit(MOST_CHARACTERS)
        self._last = 0
        self._delimiter = delimiter
        self._rows = self._csv_rows() if quoted else split_rows(path, text_lines(path), MOST_CHARACTERS)
        _, header = next(self._rows, (0, []))
        self._header = [name.strip() for name in header]
        self.columns = list(self._header)

    def _lines(self) -> Iterator[str]:
        for number, line in text_lines(self.path):
            self._last = number
            yield line

    def _csv_rows(self) -> Iterator[tuple[int, list[str]]]:
        rows = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
        while True:
            first = self._last + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                reason = "a carriage return without a line feed" if "new-line" in str(error) else error
                raise UserError(f"{self.path}: line {self._last}: not a row of the table ({reason})") from error
            if row is None:
                return
            if row:  # no empty line
                yield first, row

    def column_indices(self, names: Sequence[str], like: str) -> list[int]:
        """Where the columns of these names stand; raises UserError, with `like` as an example of the header wanted."""
        for name in names:
            others = [one for one in _DELIMITERS if one != self._delimiter and one in "".join(self._header)]
            if others and len(self._header) == 1:
                raise UserError(
                    f"{self.path}: line 1: no column {name!r}; columns are separated by {_DELIMITERS[others[0]]}, "
                    f"{_DELIMITERS[self._delimiter]} are wanted"
                )
            if name not in self.columns:
                raise UserError(
                    f"{self.path}: line 1: no column {name!r}{suggest(name, self.columns)}; found {self.header}; "
                    f"a header such as {like} is wanted"
                )
            self.once(name)
        return [self.columns.index(name) for name in names]

    @property
    def header(self) -> str:
        """The names of the columns as the file has them, for a message; not more than fit into a line."""
        return repr(", ".join(self._header[:12])[:200])

    def once(self, name: str) -> None:
        """Raise UserError where two columns are called `name`."""
        if self.columns.count(name) > 1:
            raise UserError(f"{self.path}: line 1: column {name!r} stands there twice")

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        rows = 0
        for line, row in self._rows:
            if len(row) != len(self.columns):
                raise UserError(
                    f"{self.path}: line {line}: found {len(row)} columns; {len(self.columns)} are wanted, as in the header"
                )
            rows += 1
            yield line, row
        if not rows:
            raise UserError(f"{self.path}: a header and no rows; at least one is wanted")


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text holds; raises UserError where it is none, has a key twice or holds half a character."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            found = error.object[error.start]
            raise UserError(f"{where}: found {found!a}, half a surrogate pair; text is wanted") from error
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def json_rows(path: str, stdin: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a JSON-lines file, or with `stdin` of stdin where `path` is `-`."""
    rows = 0
    for number, line in text_lines(path, stdin):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}: line {number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: found {type(row).__name__}; an object is wanted")
        rows += 1
        yield number, row
    if not rows:
        raise UserError(f"{path}: no rows; at least one is wanted")


def parse_finite(text: str, where: str) -> float:
    """The number in `text`; raises UserError unless it is a finite one."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(f"{where}: found {text!r}; a finite number is wanted")
    return value
