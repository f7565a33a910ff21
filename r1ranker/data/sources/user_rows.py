"""Rows of one's own files (JSON lines, CSV, parquet) as they stand there: columns by their names, lists as lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from r1ranker.data.files.parquet_reader import column_names, read_table
from r1ranker.data.files.text_rows import MISSING, STDIN, TextTable, json_rows, parse_json
from r1ranker.errors import UserError, note, suggest

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz")
COLUMNS = ("task", "id", "split", "query", "history", "candidates", "texts", "positive", "labels")
_KNOWN = frozenset(COLUMNS)
_TO_MISS = _KNOWN - {"candidates", "positive"}
"""columns whose cell may say that nothing is there"""
_LISTS = ("history", "candidates", "texts", "labels")
_PRINTED_ARRAY = re.compile(r"(array|Index|tensor)\(\[|<\w*Array>\n\[|\[np\.\w+\(")
_NUMBER = r"(?:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|-?inf|nan|None|True|False)"
_PRINTED_NUMBERS = re.compile(rf"[\[({{]\s*{_NUMBER}(?:[\s,]+{_NUMBER})*\s*(?:,?\)|\]|\}})")
_PRINTED = ("['", '["', "(", "{", "[nan", "[None")
_LONGEST_PRINTED = 100_000
"""characters of a cell that is looked at for Python's way of writing lists"""


def is_user_file(path: str) -> bool:
    """Whether `path` names a file of one's own data."""
    return path.lower().endswith(SUFFIXES) and not Path(path).is_dir()


def read_user_rows(path: str, stdin: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and row, values by column of `COLUMNS`) of a file of any of the kinds, or with `stdin` of JSON lines there where `path` is `-`.

    Columns may be in any order, and their names in any case. In CSV a list is JSON, or parts between '|'.
    Raises UserError for a column that is missing or there twice, and for a cell that holds no list where one is wanted.
    """
    plain = path.lower().removesuffix(".gz")
    if plain.endswith((".jsonl", ".json")) or (stdin and path == STDIN):
        for line, row in json_rows(path, stdin):
            where = f"{path}: line {line}"
            columns = _columns(row, where)
            yield where, {name: row[key] for key, name in columns.items()}
    elif plain.endswith(".parquet"):
        columns = _columns(column_names(path), path)
        for number, row in enumerate(read_table(path, dict.fromkeys(columns, "anything"))):
            yield f"{path}: row {number}", {name: row[key] for key, name in columns.items()}
    elif plain.endswith((".csv", ".tsv")):
        table = TextTable(path, "," if plain.endswith(".csv") else "\t", quoted=True)
        header = _columns(table.columns, f"{path}: line 1", table)
        for line, fields in table:
            cells = dict(zip(table.columns, fields, strict=True))
            yield (
                f"{path}: line {line}",
                _parsed({name: cells[key] for key, name in header.items()}, f"{path}: line {line}"),
            )
    else:
        raise UserError(f"{path}: a name that ends in one of {', '.join(SUFFIXES)} is wanted")


def _columns(keys: Iterable[str], where: str, table: TextTable | None = None) -> dict[str, str]:
    """Key of the file -> column that it means; a key that is nearly an optional one is pointed out.

    Raises UserError where candidates are missing, or a column is there twice.
    """
    keys = list(keys)
    found: dict[str, str] = {}
    for key in keys:
        name = key if key in _KNOWN else key.strip().casefold()
        if name in _KNOWN:
            if name in found.values():
                raise UserError(f"{where}: column {name!r} stands there twice")
            found[key] = name
    if "candidates" not in found.values():
        if table is not None:
            table.column_indices(["candidates"], "query,candidates,positive")
        raise UserError(f"{where}: no key 'candidates'{suggest('candidates', keys)}; a list of names is wanted")
    for key in keys:
        if key not in found and (like := suggest(key, _KNOWN.difference(found.values()), 0.8)):
            note(f"{where}: {key!r} is not used{like}")
    return found


def _parsed(cells: dict[str, str], where: str) -> dict[str, Any]:
    """The values of a row of CSV; an empty cell is none, and so is one that holds what pandas writes for none."""
    kept = {name: text for name, text in cells.items() if text != "" and not (name in _TO_MISS and _is_missing(text))}
    if "positive" in kept and not kept.get("candidates", "").lstrip().startswith("["):
        kept["positive"] = kept["positive"].strip()  # as the parts between bars are
    row: dict[str, Any] = {name: _list(text, name, where) if name in _LISTS else text for name, text in kept.items()}
    if _is_missing(row.get("positive", "")) and row["positive"] not in row.get("candidates", ()):
        del row["positive"]  # a candidate may be called None
    return row


def _is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING


def _list(text: str, key: str, where: str) -> list[Any]:
    wanted = "[1, 0]" if key == "labels" else '["a", "b"]'
    bare = text.strip()
    error = None
    if bare.startswith('["') or (bare.startswith("[") and bare.endswith("]")):
        try:
            value = parse_json(bare, f"{where}: {key}")
            return value if isinstance(value, list) else [value]
        except UserError as refused:
            error = refused
    if _is_printed_by_python(bare) or (key == "labels" and _PRINTED_NUMBERS.fullmatch(bare)):
        raise UserError(
            f"{where}: {key}: found {bare[:100]!r}, a list as Python prints it; JSON such as {wanted} is wanted "
            "(json.dumps writes it)"
        )
    if error is not None and ("|" not in bare or bare.startswith('["')):  # else parts, such as [REC]|[REC 2]
        raise UserError(f"{error}; found {bare[:100]!r}, a list such as {wanted} is wanted")
    parts = [part.strip() for part in text.split("|")]
    if key != "labels":
        return parts
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise UserError(
            f"{where}: labels: found {text[:100]!r}; numbers with '|' between them, or a list such as {wanted}, are wanted"
        ) from None


def _is_printed_by_python(text: str) -> bool:
    """Whether a text that is no JSON list is one of texts, or a tuple, set, dict or array of them, as Python prints it."""
    if _PRINTED_ARRAY.match(text):
        return True
    if not text.startswith(_PRINTED) or len(text) > _LONGEST_PRINTED:
        return False
    try:
        value = ast.literal_eval(text.replace("nan", "None"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, list | tuple | set | dict) and all(isinstance(one, str | float | None) for one in value)
