"""A data set on its way to disk: its files, its card and its manifest take their places together, or none does."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from r1ranker.atomic import atomic_path, fsync_path
from r1ranker.data.files.card import DataSetInfo, render_card
from r1ranker.data.files.manifest import MANIFEST, list_manifest_files, manifest_entry, write_manifest
from r1ranker.data.files.parquet import RowWriter
from r1ranker.data.files.statistics import RowStatistics
from r1ranker.data.files.tally import Tally
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.custom import TASKS_FILE, write_tasks

__all__ = ["DataSetInfo", "DataSetWriter", "command_line"]


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


class DataSetWriter:
    """Context manager: `file` opens a parquet file of the data set; at the end README.md and manifest.json are added.

    After an error, or where the disk is full, everything under `directory` is as it was. With a `commit` stack the files
    take their places when that is closed, so that several data sets can do so together, after all of them were written.
    Files of an earlier data set there that this one does not have are deleted then, so that none is taken for its.
    """

    def __init__(self, directory: Path, about: DataSetInfo, commit: ExitStack | None = None) -> None:
        self.directory = directory
        self.about = about
        self.tally = Tally()
        self.statistics: dict[str, RowStatistics] = {}
        """kind of row ('direct', 'iterative') -> what is measured of the rows"""
        self._own = commit is None
        self._stack = commit or ExitStack()
        self._described: dict[str, dict[str, Any]] = {}
        self._old: list[str] = []
        self._new: set[str] = set()

    def __enter__(self) -> DataSetWriter:
        # what is entered first takes its place last: nothing is described before it is there
        self._stack.push(self._delete_old)
        self._old = [*list_manifest_files(self.directory), TASKS_FILE]
        self._manifest = self._place(MANIFEST)
        self._readme = self._place("README.md")
        return self

    def _place(self, name: str) -> Path:
        if (self.directory / name).is_dir():  # said now: when places are taken it is too late
            raise UserError(f"{self.directory / name}: found a directory; the place of a file is wanted")
        return self._stack.enter_context(atomic_path(self.directory / name))

    def _delete_old(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            for name in self._old:
                if name not in self._new:
                    (self.directory / name).unlink(missing_ok=True)

    @contextmanager
    def file(self, name: str, schema: pa.Schema) -> Iterator[RowWriter]:
        """A file of the data set to add rows to."""
        temporary = self._place(name)
        self._new.add(name)
        with RowWriter(temporary, schema) as writer:
            yield writer
        fsync_path(temporary)
        self._described[name] = manifest_entry(temporary, writer.count)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            try:
                self._finish()
            except BaseException:
                if self._own:
                    self._stack.__exit__(*sys.exc_info())
                raise
        if self._own:
            self._stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        write_manifest(self._described, self._manifest, self.about.source)
        self._readme.write_text(render_card(self.about, self.tally, self.statistics, self._described), encoding="utf-8")
        own = [TASKS[name] for name in self.tally.tasks if name in TASKS and TASKS[name].scenario == "own"]
        if own:
            write_tasks(own, self._place(TASKS_FILE))
            self._new.add(TASKS_FILE)
