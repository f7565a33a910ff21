"""A .venv whose `python` and `r1ranker` are forks of one process, for scripts that run many commands: to import torch takes each five seconds.

A command is still a process of its own, with its arguments, environment, directory and exit code.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import forked_workers

MODULES = (
    "ray", "r1ranker.data.prepare", "r1ranker.evaluation.runner", "r1ranker.model.init", "r1ranker.report",
    "r1ranker.trainer.fit", "r1ranker.trainer.sft", "r1ranker.trainer.workers.worker",
)  # fmt: skip


@contextmanager
def forked_python(directory: Path) -> Iterator[None]:
    """Write `python` and `r1ranker` into a directory; they work until the end of the block."""
    for name, module in (("python", ""), ("r1ranker", "-m r1ranker.cli ")):
        (directory / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} ask {module}"$@"\n')
        (directory / name).chmod(0o755)
    with patch.dict(os.environ):  # another server's address comes back
        server = forked_workers.ForkServer(*MODULES)
        try:
            yield
        finally:
            server.close()


def ask(arguments: list[str]) -> int:
    """Have a command forked; returns its exit code."""
    with tempfile.NamedTemporaryFile("r") as code:
        forked_workers.ask(os.environ[forked_workers.SOCKET], [__file__, "run", code.name, *arguments])
        return int(code.read() or 1)


def run(code_file: str, arguments: list[str]) -> None:
    """Be `python ARGUMENTS`, and leave the exit code in a file."""
    code: object = 1
    try:
        if arguments[0] == "-m":
            sys.argv[:], sys.path[0] = arguments[1:], str(Path.cwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:], sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        raise
    finally:
        Path(code_file).write_text(str(code if isinstance(code, int) else 1))


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2:]))
    run(sys.argv[2], sys.argv[3:])
