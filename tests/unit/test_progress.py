"""How far an evaluation or a validation is, also where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from rich.console import Console

from r1ranker import progress
from r1ranker.progress import follow, report_progress
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.experience.sampler import Sampler
from r1ranker.trainer.loop import Run
from r1ranker.trainer.workers.cluster import start_cluster

PATIENCE = 30.0
"""seconds after which a line that does not come fails its test"""


def be_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Have rich see a terminal of a kind. Its own mapping is set: veRL's tests leave another one in os.environ's place."""
    monkeypatch.setattr(Console, "_environ", {"FORCE_COLOR": "1", "TERM": kind})


class Lines:
    """Takes lines, in place of standard error as well."""

    def __init__(self) -> None:
        self._said: Queue[str] = Queue()

    def say(self, line: str) -> None:
        self._said.put(line)

    def write(self, text: str) -> None:
        if text.strip():
            self.say(text)

    def flush(self) -> None:
        pass

    def wait_for(self, line: str) -> None:
        """Until one comes that begins with `line`; others may come before it."""
        until = time.monotonic() + PATIENCE
        while not (said := self._said.get(timeout=PATIENCE)).startswith(line):
            assert time.monotonic() < until, f"{line!r} was wanted; the last was {said!r}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines follow one another at once."""
    monkeypatch.setattr(progress, "EVERY", 1e-4)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_that_has_a_bar_lines_say_how_far_it_is(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        be_terminal(monkeypatch, "dumb")
    now, lines = [0.0], Lines()
    monkeypatch.setattr("sys.stderr", lines)

    def arriving() -> Iterator[str]:
        now[0] = 30.0
        lines.wait_for("run-a: 0 of 5 queries, 30 s")
        yield "a"
        yield "b"
        now[0] = 40.0
        lines.wait_for("run-a: 2 of 5 queries, 40 s, 0.05 queries/s, about 60 s left")
        yield "c"
        yield "d"
        now[0] = 3640.0
        lines.wait_for("run-a: 4 of 5 queries, 61 min, 0.0011 queries/s, about 15 min left")
        yield "e"
        now[0] = 7200.0
        lines.wait_for("run-a: 5 of 5 queries, 2.0 h")

    assert list(follow(arriving(), 5, "run-a", clock=lambda: now[0])) == list("abcde")


@pytest.mark.usefixtures("impatient")
def test_calls_and_tokens_a_second_are_said_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, lines = [0.0], Lines()
    monkeypatch.setattr("sys.stderr", lines)

    def arriving() -> Iterator[int]:
        yield 900
        yield 1200
        now[0] = 10.0
        lines.wait_for("run: 2 of 3 queries, 10 s, 0.2 queries/s, about 5 s left, 1.8 calls/s, 210 tokens/s")
        yield 1

    found = follow(arriving(), 3, "run", lambda: now[0], lambda tokens: {"calls": 9, "tokens": tokens})
    assert list(found) == [900, 1200, 1]
    be_terminal(monkeypatch, "xterm")
    assert list(follow(range(3), 3, "bar", pace=lambda _: {"calls": 9})) == [0, 1, 2]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [None, ValueError("of the work")])
def test_no_line_comes_once_the_work_is_over_or_has_failed(error: ValueError | None) -> None:
    lines = Lines()
    with suppress(ValueError), report_progress("the work", 3, "rows", lines.say, clock=lambda: 0.0) as count:
        count()
        lines.wait_for("the work: 1 of 3 rows, 0 s")
        if error is not None:
            raise error
    assert "progress of the work" not in [thread.name for thread in threading.enumerate()]


def test_what_is_over_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(follow(range(3), 3, "run-a")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    be_terminal(monkeypatch, "xterm")
    assert list(follow(range(3), 3, "[run]")) == [0, 1, 2]
    assert "[run]" in capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_a_runs_validation_says_how_far_it_is(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = f"{toy}/iterative_ranking/test.parquet"
    config = load_config(
        "quickstart",
        [
            f"data.train_files={rows}", f"data.val_files={rows}", "data.val_max_samples=9", "data.val_batch_size=4",
            f"actor_rollout_ref.model.path={tiny_model}", f"trainer.default_local_dir={tmp_path}",
        ],
    )  # fmt: skip
    run, lines = Run(config), Lines()
    run.say = lines.say
    wanted = [f"validation: {done} of 9 rows, " for done in (0, 4, 8)]
    send = Sampler.send

    def wait_and_send(*arguments: Any) -> Any:
        lines.wait_for(wanted.pop(0))
        return send(*arguments)

    monkeypatch.setattr(Sampler, "send", wait_and_send)
    with start_cluster(config, 1) as cluster:
        assert run.validate(cluster, 0)["timing_s/testing"] > 0
    assert not wanted
