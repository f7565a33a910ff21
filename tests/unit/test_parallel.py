"""Work side by side: what fails, what is killed, and what an interrupt leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from r1ranker.errors import RunError, UserError
from r1ranker.experiments.parallel import Job, run_parallel


def work(kind: str, directory: Path) -> None:
    (directory / f"{kind}.begun").touch()
    if kind == "bad":
        raise UserError("rows.csv: row 3: nothing there")
    if kind == "broken":
        raise KeyError("brand")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind.startswith("slow"):
        try:
            time.sleep(60)
        finally:
            (directory / f"{kind}.saved").touch()
    (directory / f"{kind}.done").write_text(os.environ["OMP_NUM_THREADS"])


def units(directory: Path, *kinds: str) -> dict[str, Job]:
    return {kind: Job(work, (kind, directory), directory / f"{kind}.log") for kind in kinds}


def test_what_fails_or_is_killed_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(RunError) as raised:
        run_parallel(units(tmp_path, "killed", "bad", "broken", "one", "two"), 2, Console())
    assert sorted(path.name for path in tmp_path.glob("*.done")) == ["one.done", "two.done"]
    assert (tmp_path / "one.done").read_text() == "1"
    message = str(raised.value)
    assert "killed: killed by signal 9" in message
    assert f"bad: rows.csv: row 3: nothing there ({tmp_path}/bad.log)" in message
    assert "broken: KeyError: 'brand'" in message
    assert "Traceback" in (tmp_path / "broken.log").read_text()


def test_bad_input_stays_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 3"):
        run_parallel(units(tmp_path, "bad", "one"), 1, Console())
    assert (tmp_path / "one.done").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_what_runs_and_begins_nothing_more(tmp_path: Path, number: int) -> None:
    code = (
        "from pathlib import Path; from rich.console import Console; from test_parallel import units\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells have it ignored in the background
        "from r1ranker.errors import exit_on_user_error; from r1ranker.experiments.parallel import run_parallel\n"
        f"if __name__ == '__main__': exit_on_user_error(lambda: run_parallel(units(Path({str(tmp_path)!r}), 'slow1', 'slow2', 'one'), 2, Console()))"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE)
    try:
        while len(list(tmp_path.glob("slow*.begun"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == (143 if number == signal.SIGTERM else 130)
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["slow1.saved", "slow2.saved"]
    assert not (tmp_path / "one.begun").exists()
