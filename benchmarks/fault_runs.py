"""What faults are done to: short runs of a tiny model by the command line, comparable bit for bit; their processes and files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600
"""seconds after which a run that has not ended hangs"""
SMALL = (
    "data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.n=2",
    "trainer.total_training_steps=8", "trainer.save_freq=1", "trainer.val_before_train=false", "data.val_max_samples=9",
    "algorithm.adv_estimator=gae",
)  # fmt: skip
WITH_RAY = ("trainer.executor=ray", "trainer.n_gpus_per_node=2")
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class FinishedRun:
    """A run that has ended."""

    code: int
    text: str
    """both streams on one line"""

    @property
    def in_a_line(self) -> bool:
        """Whether it ended without a traceback."""
        return TRACEBACK not in self.text


@dataclass(frozen=True)
class Row:
    """Of the table."""

    fault: str
    promise: str
    injected: int
    kept: int
    """how often the promise was kept"""
    lost: str


class Workspace:
    """A directory with data and a model, in which runs are made."""

    def __init__(self, directory: Path) -> None:
        from r1ranker.data.options import PrepareOptions
        from r1ranker.data.prepare import prepare
        from r1ranker.model.init import ModelSize, init_model

        self.directory = directory
        self.data, self.model = directory / "data", directory / "model"
        prepare(PrepareOptions("toy", str(self.data), think=False, size=30))
        rows = [str(self.data / "iterative_ranking" / "train.parquet")]
        size = ModelSize(hidden_size=64, layers=2, heads=2, kv_heads=1)
        init_model(str(self.model), rows, size, vocab_size=500, title_tokens=True)
        self.alone = self.place("alone")
        """a run that was not disturbed"""
        if (done := self.run(self.alone)).code:
            raise RuntimeError(done.text)

    def place(self, name: str) -> Path:
        """A directory for one run."""
        return self.directory / name

    def overrides(self, output: Path, *more: str) -> list[str]:
        """Of the configuration quickstart."""
        rows = self.data / "iterative_ranking"
        return [
            f"data.train_files={rows}/train.parquet", f"data.val_files={rows}/test.parquet", f"data.cache_dir={self.directory}/cache",
            f"actor_rollout_ref.model.path={self.model}", f"critic.model.path={self.model}", f"trainer.default_local_dir={output}",
            *SMALL, *more,
        ]  # fmt: skip

    def start(self, output: Path, *more: str, code: str = "") -> RunningProcess:
        """`r1ranker train` under way; `code` runs before it in the same process."""
        log = output.with_suffix(".log")
        call = f"{code}\nfrom r1ranker.cli import main\nmain()"
        command = [sys.executable, "-c", call, "train", "--config-name", "quickstart", *self.overrides(output, *more)]
        with log.open("wb") as written:
            process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=_environment(), cwd=ROOT)
        return RunningProcess(process, output, log)

    def run(self, output: Path, *more: str, code: str = "") -> FinishedRun:
        """`r1ranker train` to its end."""
        return self.start(output, *more, code=code).end()


@dataclass
class RunningProcess:
    """A run under way."""

    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    def after_step(self, step: int) -> None:
        """Wait until a step's line is there."""
        self._until(lambda: last_step(self.output) >= step)

    def wait_for_output(self, words: str) -> float:
        """Seconds until it says something."""
        begun = time.monotonic()
        self._until(lambda: words in " ".join(self.log.read_text(errors="replace").split()))
        return time.monotonic() - begun

    def _until(self, is_so: Any) -> None:
        until = time.monotonic() + LIMIT
        while not is_so():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"{self.output}: ended or hung before it was disturbed: {self.log.read_text()[-2000:]}"
                )
            time.sleep(0.02)

    def processes(self, title: str) -> list[int]:
        """Process ids of its Ray processes whose title begins so."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int(re.search(r"PPid:\s+(\d+)", (path / "status").read_text())[1])  # type: ignore[index]
                above = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{parent}/status").read_text())
            except OSError:  # it is gone
                continue
            if command.startswith(title) and above and self.process.pid in (parent, int(above[1])):
                found.append(int(path.name))
        return sorted(found)

    def end(self) -> FinishedRun:
        """Wait for its end."""
        code = self.process.wait(LIMIT)
        return FinishedRun(code, " ".join(self.log.read_text(errors="replace").split()))


def last_step(output: Path) -> int:
    """Of the lines of metrics that are whole; 0 without one."""
    steps = [line["step"] for line in _lines(output)]
    return int(max(steps, default=0))


def runs_match(found: Path, expected: Path) -> bool:
    """Whether two runs have the same metrics but for clocks, each step once, and the same actor bit for bit."""
    own, other = (load_file(place / "actor" / "model.safetensors") for place in (found, expected))
    weights = own.keys() == other.keys() and all(np.array_equal(own[name], other[name]) for name in own)
    return weights and figures(found) == figures(expected)


def figures(output: Path) -> list[dict[str, float]]:
    """Lines of metrics without clocks."""
    return [{k: v for k, v in line.items() if not k.startswith(("timing", "perf"))} for line in _lines(output)]


def _lines(output: Path) -> list[dict[str, float]]:
    file = output / "metrics.jsonl"
    whole = (
        [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] if file.is_file() else []
    )
    return [json.loads(line) for line in whole]


def killed_run(spec: dict[str, Any]) -> dict[str, Any]:
    """The last line of tests/e2e/killed_run.py: a run that is killed again and again, or is another user's."""
    script = ROOT / "tests" / "e2e" / "killed_run.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(spec)], capture_output=True, text=True, env=_environment(), check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def copied(source: Path, target: Path) -> Path:
    """A run's directory once more."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "400"}
