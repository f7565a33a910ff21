"""Faults in what is computed and read: numbers that are not finite, rewards that fail, hostile text."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

from fault_runs import ROOT, Row, Workspace, figures, last_step

POISON = """
import numpy as np
from r1ranker.trainer import loop
put, calls = loop.assign_advantages, iter(range(1, 100))
def wrong(trajectories, *others):
    metrics = put(trajectories, *others)
    if next(calls) == {step}:
        one = trajectories[{sample}]
        setattr(one, {column!r}, np.full(len(one.response_ids), {value}))
    return metrics
loop.assign_advantages = wrong
"""
FAILING = """
import os, time, zlib
from r1ranker.rewards import compute_score

def own(data_source, solution_str, ground_truth, extra_info=None):
    if extra_info["split"] == "train" and zlib.crc32(f"{{extra_info['index']}} {{solution_str}}".encode()) % 100 < {share}:
        {how}
    return compute_score(data_source, solution_str, ground_truth, extra_info)
"""
GROUPS, SAMPLES = 4, 8
"""of a step"""


def bad_numbers(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """One sample of one step has a number that is not finite, or that becomes so in the loss."""
    good = injected = replayed = 0
    for column, value in (
        ("advantages", "np.nan"), ("advantages", "1e200"), ("returns", "np.inf"), ("returns", "1e200"), ("values", "np.nan"),
    ) * times:  # fmt: skip
        step, sample = chance.randint(2, 6), chance.randrange(SAMPLES)
        output = ground.place(f"bad_{injected}")
        code = POISON.format(step=step, sample=sample, column=column, value=value)
        done = ground.run(output, code=code)
        bad = [line["step"] for line in figures(output) if line["training/bad_step"]]
        file = output / "bad_steps" / f"step_{step}.jsonl"
        groups = {json.loads(line)["group_id"] for line in file.read_text().splitlines()} if file.is_file() else set()
        right = groups == {sample // (SAMPLES // GROUPS)} if column != "values" else bool(groups)
        said = f"step {step}: " in done.text and str(file) in done.text
        good += done.code == 0 and bad == [step] and right and said and last_step(output) == 8
        replay = [sys.executable, "-m", "r1ranker.cli", "replay", str(file), "--model", str(output / "actor")]
        shown = subprocess.run(replay, capture_output=True, text=True, cwd=ROOT, check=False)
        replayed += shown.returncode == 0 and "have numbers that are not finite" in shown.stdout
        injected += 1
    output = ground.place("diverged")
    done = ground.run(output, "actor_rollout_ref.actor.optim.lr=1e30", "trainer.total_training_steps=30")
    ended = int(done.code == 1 and done.in_a_line and "logits are not finite: its weights have diverged" in done.text)
    return [
        Row("a number of one sample not finite", "its sample named, no update of it, the run goes on", injected, good, "the step's update"),
        Row("the same, `r1ranker replay`", "computes the samples anew", injected, replayed, "nothing"),
        Row("weights that have diverged (lr = 1e30)", "a line names it, exit code 1", 1, ended, "steps since the last save: weights were gone"),
    ]  # fmt: skip


def rewards(ground: Workspace, times: int, chance: random.Random) -> list[Row]:
    """A reward of one's own that raises, hangs or dies."""
    rows: list[Row] = []
    share = 4
    for what, how, settings in (
        ("a reward that raises", "raise KeyError('brand')", ()),
        ("a reward that hangs, reward.timeout=2", "time.sleep(1000)", ("reward.num_workers=2", "reward.timeout=2")),
        ("a reward whose process dies", "os._exit(1)", ("reward.num_workers=2",)),
    ):
        file = ground.place("own.py")
        file.write_text(FAILING.format(how=how, share=share))
        output = ground.place(f"reward_{len(rows)}")
        own = (f"custom_reward_function.path={file}", "custom_reward_function.name=own")
        steps = 16 * times
        done = ground.run(
            output, *own, *settings, "reward.max_failure_rate=0.5", f"trainer.total_training_steps={steps}"
        )
        failures = [round(line["reward/failure_rate"] * SAMPLES) for line in figures(output)]
        named = len(re.findall(r"own\.py:\d+: the reward failed on iterative_ranking row \d+", done.text))
        good = done.code == 0 and last_step(output) == steps and named >= sum(1 for count in failures if count)
        lost = f"{sum(failures)} of {SAMPLES * steps} samples"
        rows.append(
            Row(
                what,
                "its sample is left out, with file and line; the run goes on",
                sum(failures),
                sum(failures) * good,
                lost,
            )
        )
    file.write_text(FAILING.format(how="raise KeyError('brand')", share=60))
    done = ground.run(ground.place("reward_many"), *own)
    refused = int(done.code == 2 and done.in_a_line and "reward.max_failure_rate is 0.05" in done.text)
    rows.append(
        Row(
            "a reward that raises for most",
            "ends in the first step, a line, exit code 2",
            1,
            refused,
            "nothing: nothing was learned",
        )
    )
    return rows


def fuzz(cases: int, seed: int) -> list[Row]:
    """Hostile text, by tests/fuzz."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(cases), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    found = re.search(r"^(\d+) cases in all", done.stdout, re.MULTILINE)
    ran = int(found[1]) if found else 0
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    kinds = len(re.findall(r"^\w+: \d+ cases", done.stdout, re.MULTILINE))
    promise = "does no harm in prompts, parser, rewards, files and report"
    return [Row(f"hostile text ({kinds} kinds of cases)", promise, ran, ran if not done.returncode else 0, "nothing")]
