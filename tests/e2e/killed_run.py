"""Runs that are killed with SIGKILL again and again: `python killed_run.py '<json>'...`, where nothing but imports precedes the forks.

Keys of a run: overrides, of the quickstart config; kills; seed, of the moments; uid, of the child, and before, its overrides until then. A line of JSON a run says what was seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.fit import fit
from r1ranker.trainer.loop import Run

MOST_EVENTS = 120
"""file operations after which a child kills itself, at most: those of two or three steps with a save each"""
MOST_SECONDS = 0.6
"""of computing after which a child is killed, at most"""
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")


def child(spec: dict[str, Any], begun: int, kind: str, events: int) -> int:
    """Run to the end, or until `events` file operations, of a step ("stepping") or from the beginning ("starting")."""
    step, seen = Run.step, 0

    def stepping(self: Run, *arguments: Any) -> dict[str, float]:
        if not counting:
            counting.append(True)
            os.write(begun, b".")
        return step(self, *arguments)

    def audit(event: str, arguments: Any) -> None:
        nonlocal seen
        if (counting or kind == "starting") and event in EVENTS:
            seen += 1
            if seen == events:
                os.kill(os.getpid(), signal.SIGKILL)

    counting: list[bool] = []
    Run.step = stepping  # type: ignore[method-assign]
    if spec.get("uid") is not None:
        # modules that are loaded late may be where only this user can read
        fit(load_config("quickstart", [*spec["overrides"], *spec["before"]]))
        os.setgroups([])
        os.setgid(spec["uid"])
        os.setuid(spec["uid"])
    if kind in ("starting", "stepping"):
        sys.addaudithook(audit)
    try:
        fit(load_config("quickstart", spec["overrides"]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if type(error).__name__ not in ("UserError", "RunError"):
            traceback.print_exc()
        return 1
    return 0


def processor_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forked(spec: dict[str, Any], kind: str, amount: float = 0) -> int:
    """One child, killed after `amount` of file operations ("starting", "stepping") or seconds ("computing"); its exit code, or -9."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        out = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = child(spec, writing, kind, int(amount))
        sys.stdout.flush()
        os._exit(code)
    os.close(writing)
    has_begun = os.read(reading, 1)  # or it has ended
    os.close(reading)
    if kind == "computing" and has_begun:
        start = processor_seconds(pid)
        # time of the process, not of the wall: a machine that stands still makes no difference
        while processor_seconds(pid) - start < amount:
            time.sleep(0.002)
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def steps_beyond_states(output: Path) -> int:
    """Steps that were finished, and have to be done again."""
    saved = max((int(path.name[5:]) for path in (output / "state").glob("step_*")), default=0)
    metrics = output / "metrics.jsonl"
    steps = (
        [json.loads(line)["step"] for line in metrics.read_text().splitlines(True) if line.endswith("\n")]
        if metrics.is_file()
        else []
    )
    return max(0, max(steps, default=0) - saved)


def kill(spec: dict[str, Any]) -> dict[str, Any]:
    """A run from one kill to the next, and to its end."""
    moments = random.Random(spec.get("seed", 0))
    seen: dict[str, Any] = {"kills": 0, "in a save": 0, "redone": []}
    states = Path(spec["output"]) / "state"
    for number in range(spec.get("kills", 0)):
        kind = ("computing", "stepping", "starting", "stepping")[number % 4]
        amount = moments.uniform(0, MOST_SECONDS) if kind == "computing" else moments.randint(1, MOST_EVENTS)
        seen["kills"] += forked(spec, kind, amount) == -signal.SIGKILL
        seen["in a save"] += bool(list(states.glob(".step_*")))
        seen["redone"].append(steps_beyond_states(Path(spec["output"])))
    seen["code"] = forked(spec, "none")
    return seen


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(json.dumps(kill(json.loads(given))), flush=True)
    os._exit(0)  # to take apart all that was imported is two seconds' work
