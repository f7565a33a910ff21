"""How far an evaluation is, also where there is no terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from r1ranker.evaluation.progress import follow


def be_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Have rich see a terminal of a kind. Its own mapping is set: veRL's tests leave another one in os.environ's place."""
    monkeypatch.setattr(Console, "_environ", {"FORCE_COLOR": "1", "TERM": kind})


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_that_has_a_bar_a_line_every_half_minute_says_how_far_it_is(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        be_terminal(monkeypatch, "dumb")
    moments = iter([0.0, 10.0, 40.0, 50.0, 3640.0, 3700.0])
    assert list(follow("abcde", 5, "run-a", clock=lambda: next(moments))) == list("abcde")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "run-a: 2 of 5 queries, 0.05 queries/s, about 60 s left",
        "run-a: 4 of 5 queries, 0.0011 queries/s, about 15 min left",
    ]


def test_what_is_over_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(follow(range(3), 3, "run-a")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    be_terminal(monkeypatch, "xterm")
    assert list(follow(range(3), 3, "[run]")) == [0, 1, 2]
    assert "[run]" in capsys.readouterr().err
