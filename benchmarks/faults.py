"""python benchmarks/faults.py [--times 1] [--cases 100000] [--only NAME ...]: faults done to real runs, and what became of them, as a table.

Kills are real signals, the full disk a real file system (tmpfs; takes root's rights), the other user a real one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault_numbers import bad_numbers, fuzz, rewards
from fault_runs import WITH_RAY, Row, Workspace, copied, killed_run, last_step, runs_match

from r1ranker.experiments.tables import markdown_table

KILLS = 24
"""of one run of forty steps, times --times"""
NOBODY = 65534


def kills(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """kill -9 at any moment."""
    more = (
        "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive", "trainer.critic_warmup=1",
        "trainer.total_training_steps=40", "trainer.test_freq=7",
    )  # fmt: skip
    alone = ground.place("kills_alone")
    ground.run(alone, *more)
    injected = whole = in_a_save = 0
    redone: list[int] = []
    for turn in range(times):
        output = ground.place(f"kills_{turn}")
        spec = {"overrides": ground.overrides(output, *more), "output": str(output), "log": f"{output}.log"}
        seen = killed_run(spec | {"kills": KILLS, "seed": chance.randrange(1000)})
        injected += seen["kills"]
        whole += seen["kills"] if seen["code"] == 0 and runs_match(output, alone) else 0
        in_a_save += seen["in a save"]
        redone += seen["redone"]
    row = Row(
        f"kill -9 of the run, at random moments ({in_a_save} of them in a save)", "same weights and metrics as undisturbed, bit for bit",
        injected, whole, f"{sum(redone)} finished steps done again, at most {max(redone)} a kill",
    )  # fmt: skip
    return [row]


def signals(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """SIGTERM and Ctrl-C, of which the second is the same as SIGINT."""
    rows = []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        good = 0
        for turn in range(2 * times):
            output = ground.place(f"{number.name}_{turn}")
            run = ground.start(output, "trainer.save_freq=-1")
            run.after_step(chance.randint(1, 4))
            time.sleep(chance.random() * 0.3)
            run.process.send_signal(number)
            done = run.end()
            left = last_step(output)
            saved = (output / "state" / f"step_{left}").is_dir()
            again = ground.run(output)
            good += (
                done.code == code and saved and done.in_a_line and again.code == 0 and runs_match(output, ground.alone)
            )
        name = number.name if number != signal.SIGINT else "SIGINT (Ctrl-C)"
        rows.append(
            Row(
                name,
                f"state of the step under way saved, exit code {code}, goes on bit for bit",
                2 * times,
                good,
                "nothing",
            )
        )
    return rows


def _flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def _truncate(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def damage(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """Of the newest state, one file."""
    half = ground.place("half")
    ground.run(half, "trainer.total_training_steps=5")
    rows = []
    hurts: dict[str, Callable[[Path, random.Random], None]] = {
        "a bit of a file of the newest state flipped": _flip,
        "a file of it truncated": _truncate,
        "a file of it missing": lambda file, _: file.unlink(),
    }
    for what, hurt in hurts.items():
        good = injected = 0
        for name in sorted(path.name for path in (half / "state" / "step_5").iterdir()):
            for _ in range(times):
                output = copied(half, ground.place("damaged"))
                hurt(output / "state" / "step_5" / name, chance)
                done = ground.run(output)
                named = f"{output}/state/step_5" in done.text and "going on from step_4" in done.text
                injected += 1
                good += done.code == 0 and named and runs_match(output, ground.alone)
        rows.append(
            Row(what, "named, the state before it taken, same end", injected, good, "1 step a time, done again")
        )
    output = copied(half, ground.place("damaged"))
    for state in (output / "state").iterdir():
        _truncate(state / "driver.json", chance)
    done = ground.run(output)
    kept = len(list((output / "state").iterdir())) == 2 and (output / "actor").is_dir()
    good = int(done.code == 2 and done.in_a_line and "no whole state is left" in done.text and kept)
    rows.append(
        Row("all states damaged", "a line, exit code 2, nothing deleted", 1, good, "the states; the actor is whole")
    )
    return rows


def disk(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """A file system that fills up: the states' own, and that of all that the run writes."""
    rows = []
    for what, inner in (("disk full, of the states alone", "state"), ("disk full, of the whole run's directory", "")):
        good = injected = 0
        for turn in range(2 * times):
            output = ground.place(f"disk_{inner}_{turn}")
            mount = output / inner
            mount.mkdir(parents=True)
            size = chance.randint(3500, 9000)
            options = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(mount)]
            if subprocess.run(options, capture_output=True, check=False).returncode:
                return [Row("disk full", "could not be tested: mounting takes root's rights", 0, 0, "")]
            try:
                full = ground.run(output, "trainer.max_actor_ckpt_to_keep=3")
                subprocess.run(["mount", "-o", "remount,size=100m", str(mount)], check=True)
                again = ground.run(output, "trainer.max_actor_ckpt_to_keep=3")
                said = full.code in (1, 2) and full.in_a_line and "No space left" in full.text
                good += said and again.code == 0 and runs_match(output, ground.alone)
                injected += 1
            finally:
                subprocess.run(["umount", str(mount)], check=True)
        rows.append(
            Row(
                what,
                "a line names it, older states stay; with room again, same end",
                injected,
                good,
                "steps after the last whole state, done again",
            )
        )
    return rows


def permissions(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """Another user without rights: to write states, and to read the newest."""
    if os.geteuid():
        return [Row("directory of another user", "could not be tested: takes root's rights", 0, 0, "")]
    place = ground.place("user")
    output = place / "run"
    (output / "state").mkdir(parents=True)
    for path in (ground.directory, *ground.directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    os.chown(output, NOBODY, NOBODY)
    spec = {
        "overrides": ground.overrides(output, f"data.cache_dir={output}/cache"), "output": str(output), "uid": NOBODY,
        "log": f"{place}/log",
        "before": [f"trainer.default_local_dir={place}/before", f"data.cache_dir={place}/cache", "trainer.total_training_steps=1"],
    }  # fmt: skip
    code = killed_run(spec)["code"]
    text = " ".join((place / "log").read_text().split())
    written = int(code == 1 and f"({output}/state: Permission denied)" in text and (output / "actor").is_dir())
    (output / "state").rmdir()
    shutil.copytree(ground.alone / "state", output / "state")
    for path in (output / "state", *(output / "state").iterdir()):
        os.chown(path, NOBODY, NOBODY)
    (output / "state" / "step_8" / "rank_00000_actor_00000.safetensors").chmod(0)
    (place / "log").unlink()
    shutil.rmtree(place / "before")
    shutil.rmtree(output / "actor")
    code = killed_run(spec)["code"]
    text = " ".join((place / "log").read_text().split())
    read = int(code == 0 and "cannot be read (Permission denied); going on from step_7" in text)
    return [
        Row("directory of states that may not be written", "a line, exit code 1, the actor saved all the same", 1, written, "the states"),
        Row("newest state that may not be read", "named, the one before it taken", 1, read, "1 step, done again"),
    ]  # fmt: skip


def lost_processes(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """Processes of Ray's that are killed, or stop answering."""
    rows: list[Row] = []
    apart = (*WITH_RAY[:1], "actor_rollout_ref.rollout.placement=separate")
    quick = "trainer.timeout=20"
    for what, setting, title, number, more in (
        ("kill -9 of a training process (one of two)", WITH_RAY, "ray::TrainerHost", signal.SIGKILL, ()),
        ("kill -9 of the rollout's engine", apart, "ray::RolloutHost", signal.SIGKILL, ()),
        (
            "a training process that hangs (SIGSTOP), trainer.timeout=20",
            WITH_RAY,
            "ray::TrainerHost",
            signal.SIGSTOP,
            (quick,),
        ),
    ):
        alone = ground.place(f"ray_alone_{len(rows)}")
        ground.run(alone, *setting)
        good, noticed = 0, []
        for turn in range(2 * times):
            output = ground.place(f"ray_{len(rows)}_{turn}")
            run = ground.start(output, *setting, *more)
            run.after_step(chance.randint(1, 3))
            time.sleep(chance.random())
            os.kill(chance.choice(run.processes(title)), number)
            noticed.append(run.wait_for_output("starting the processes again (1 of 3)"))
            done = run.end()
            good += done.code == 0 and done.in_a_line and runs_match(output, alone)
        lost = f"the step under way; noticed after {min(noticed):.1f} to {max(noticed):.1f} s"
        rows.append(Row(what, "processes started again, same end, bit for bit", 2 * times, good, lost))
    output = ground.place("ray_given_up")
    run = ground.start(output, *WITH_RAY, "trainer.max_restarts=0")
    run.after_step(2)
    os.kill(chance.choice(run.processes("ray::TrainerHost")), signal.SIGKILL)
    done = run.end()
    good = int(done.code == 1 and done.in_a_line and "a process of the run died" in done.text)
    rows.append(
        Row("kill -9 of a training process, no restarts left", "a line, exit code 1", 1, good, "nothing that was saved")
    )
    return rows


FAULTS = {
    "kills": kills, "signals": signals, "damage": damage, "disk": disk, "permissions": permissions, "processes": lost_processes,
    "numbers": bad_numbers, "rewards": rewards,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=1, help="how often everything is done")
    parser.add_argument("--cases", type=int, default=100_000, help="of hostile text; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="r1ranker-faults-") as directory:
        ground = Workspace(Path(directory))
        for name in options.only:
            begun = time.monotonic()
            found = FAULTS[name](ground, options.times, random.Random(f"{name} {options.seed}"))
            print(f"{name}: {time.monotonic() - begun:.0f} s", *found, sep="\n  ", file=sys.stderr, flush=True)
            rows += found
    if options.cases:
        rows += fuzz(options.cases, options.seed)
    cells = [(row.fault, str(row.injected), row.promise, f"{row.kept} of {row.injected}", row.lost) for row in rows]
    print(markdown_table(["fault", "injected", "promise", "kept", "lost"], cells))
    return int(any(row.kept < row.injected for row in rows))


if __name__ == "__main__":
    sys.exit(main())
