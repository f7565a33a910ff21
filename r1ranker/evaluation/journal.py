"""What an evaluation has ranked so far, on disk as soon as it is known, so that a second call goes on where the first was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from r1ranker.errors import UserError, note
from r1ranker.evaluation.records import Record


class Journal:
    """JSON lines: what is evaluated, then a record a query. Context manager; `done` holds the records by (task, row)."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """`about` says what is evaluated and how; a journal of anything else is begun anew."""
        self.path = path
        self.done: dict[tuple[str, int], Record] = {}
        self._about = json.loads(json.dumps(about))

    def __enter__(self) -> Journal:
        whole = self._read()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if whole else "wb")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._file.seek(whole)
        self._file.truncate()  # a line cut short
        if not whole:
            self._write(self._about)
        elif self.done:
            note(f"{self.path}: {len(self.done):,} queries were ranked before and are taken over")
        return self

    def add(self, task: str, row: int, record: Record) -> None:
        """Keep the record of a query."""
        self.done[task, row] = record
        self._write({"task": task, "row": row, "record": record})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()  # the system has it then, whatever becomes of this process

    def _read(self) -> int:
        """Take over what is there; returns how many bytes of the file are whole lines of this evaluation."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError:
            return 0
        whole = 0
        for number, line in enumerate(lines):
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
                if value is None or (number == 0 and value != self._about):
                    break
                if number:
                    self.done[value["task"], value["row"]] = value["record"]
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line)
        return whole
