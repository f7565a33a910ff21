"""Fields of the JSON that a report reads, each checked: what is of another kind is a UserError that names file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from r1ranker.errors import UserError
from r1ranker.tasks.example import HIGHEST_GRADE

METRICS_FILE = "metrics.jsonl"
WANTED = f"a run directory with {METRICS_FILE}, or an evaluation result (.json), is wanted"

T = TypeVar("T")


def read_text(file: Path) -> str:
    """A file's text; raises UserError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); {WANTED}") from error
    except OSError as error:
        raise UserError(f"{file}: {(error.strerror or str(error)).lower()}; {WANTED}") from error


def parse_json(text: str, where: Callable[[json.JSONDecodeError | None], str]) -> Any:
    """What `text` holds; `where` names its place by the error, if one is known."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where(error)}: broken JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        raise UserError(f"{where(None)}: JSON that cannot be read ({error})") from error


def read_lines(file: Path, read: Callable[[Any, str], T]) -> list[T]:
    """What `read` makes of each line of a file of JSON lines, and of the line's place."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            rows.append(read(parse_json(line, lambda _, where=where: where), where))  # type: ignore[misc]
    return rows


def as_mapping(value: Any, where: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    """An object whose values `read` takes; the others raise UserError, as those below."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {_brief(value)}; an object is wanted")
    return {name: read(inner, f"{where}.{name}") for name, inner in value.items()}


def as_sequence(value: Any, where: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    """A list."""
    if not isinstance(value, list):
        raise UserError(f"{where}: found {_brief(value)}; a list is wanted")
    return tuple(read(inner, f"{where}[{place}]") for place, inner in enumerate(value))


def as_number(value: Any, where: str) -> float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: found {_brief(value)}; a number is wanted")
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{where}: found a number too large") from error


def as_whole(value: Any, where: str) -> int:
    """A whole number of at least 0."""
    number = as_number(value, where)
    if not number.is_integer() or number < 0:
        raise UserError(f"{where}: found {_brief(value)}; a whole number of at least 0 is wanted")
    return int(number)


def as_grade(value: Any, where: str) -> float:
    """A grade."""
    number = as_number(value, where)
    if not 0 <= number <= HIGHEST_GRADE:
        raise UserError(f"{where}: found {_brief(value)}; a number from 0 to {HIGHEST_GRADE} is wanted")
    return number


def as_text(value: Any, where: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise UserError(f"{where}: found {_brief(value)}; text is wanted")
    return value


def _brief(value: Any) -> str:
    written = json.dumps(value)
    return written if len(written) <= 40 else f"{written[:40]}..."
