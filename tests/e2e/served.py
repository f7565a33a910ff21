"""`r1ranker serve` as a process, for tests that ask it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

COMMAND = (sys.executable, "-m", "r1ranker.cli")
SHORT = (
    "--port", "0", "--engine", "hf", "--strategy", "iterative", "--no-think", "--constrain", "candidates", "--max-tokens", "8",
)  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A process that listens."""

    process: subprocess.Popen[str]
    address: str
    lines: list[str]
    """what it has written so far; all of it once `reading` has ended"""
    reading: threading.Thread


@contextmanager
def start_served(
    model: str, *options: str, command: Sequence[str] = COMMAND, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """A process that serves `model`, once it has said where; its output is read away, so that it never waits for a reader."""
    process = subprocess.Popen(
        [*command, "serve", model, *SHORT, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
    )
    assert process.stdout is not None
    written = iter(process.stdout.readline, "")
    lines: list[str] = []
    for line in written:
        lines.append(line)
        if found := re.search(r"is served at (\S+)", line):
            break
    else:
        raise AssertionError("".join(lines))
    reading = threading.Thread(target=lambda: lines.extend(written), daemon=True)
    reading.start()
    try:
        yield Served(process, found[1], lines, reading)
    finally:
        process.kill()
        process.wait()
