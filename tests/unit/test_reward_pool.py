"""Rewards in the driver and in processes of their own: the same numbers, the same errors, nothing left behind."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import RunError, Terminated, UserError, _unwind
from r1ranker.rewards import compute_score
from r1ranker.rollout.engine import Completion
from r1ranker.rollout.episodes import Turn
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.trainer.algorithm.estimation import assign_advantages
from r1ranker.trainer.algorithm.kl import KLController
from r1ranker.trainer.config.schema import AlgorithmConfig, RewardFunctionConfig
from r1ranker.trainer.experience.collect import SampledBatch, as_turns
from r1ranker.trainer.scoring import process as reward_process
from r1ranker.trainer.scoring.outcome import Failure, report_failures
from r1ranker.trainer.scoring.pool import RewardPool

POOL = ["Alien", "Heat", "Ran"]


def prompt_of(row: int = 0) -> Prompt:
    truth = {"candidate_text": POOL, "gt": POOL[row % len(POOL)]}
    extra = {"index": row, "task_name": "Rec-Movie"}
    return Prompt([1, 2, row], "direct_ranking", truth, extra, "direct", AnswerFormat("name", think=False))


def reward_file(directory: Path, body: str) -> RewardFunctionConfig:
    file = directory / "own.py"
    file.write_text(
        f"import json, os, signal, subprocess, sys, time; from pathlib import Path\ndef own(data_source, solution_str, ground_truth, extra_info=None):\n    {body}\n"
    )
    return RewardFunctionConfig(str(file), "own")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rewards_are_those_of_the_function_in_whatever_order_they_are_asked_for(num_workers: int) -> None:
    answers = ["Heat\nAlien\nRan</answer>", "Alien", "Ran</answer>", "Heat\nheat</answer>"]
    calls = [(prompt_of(row), text) for row in range(3) for text in answers]
    with closing(RewardPool(RewardFunctionConfig(), num_workers)) as rewards:
        pending = [rewards.submit(prompt, text) for prompt, text in calls]
        found = [one.result() for one in reversed(pending)][::-1]
    for (prompt, text), parts in zip(calls, found, strict=True):
        assert parts == compute_score(
            prompt.data_source, text, prompt.ground_truth, {"think": False, "answer_style": "name"}
        )


def test_processes_of_the_pool_are_others_and_know_no_torch(tmp_path: Path) -> None:
    config = reward_file(tmp_path, "return {'score': float('torch' in sys.modules), 'process': os.getpid()}")
    with closing(RewardPool(config, 1)) as rewards:
        parts = rewards.submit(prompt_of(), "x").result()
    assert isinstance(parts, dict)
    assert parts["process"] != os.getpid()
    assert parts["score"] == 0


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 / extra_info['index']", r"own.py:3: the reward failed on direct_ranking row 0: ZeroDivisionError"),
        ("sys.exit(0)", r"own.py:3: the reward failed on direct_ranking row 0: SystemExit: 0"),
        ("return json.loads('{')", r"own.py:3: the reward failed on direct_ranking row 0: JSONDecodeError"),
        ("return float('inf')", r"own.py:2: .* it gave inf; 'score' is no finite number"),
        ("return {'score': 1.0, 'part': float('nan')}", r"own.py:2: .*'part' is no finite number"),
        ("return {'part': 1.0}", r"own.py:2: .*a finite number, or a dict with `score`, is wanted"),
        ("return type('Odd', (dict,), {'__repr__': None})(score='x')", r"own.py:2: .*it gave \(and TypeError"),
        ("return 10**400", r"own.py:2: .*OverflowError"),
        ("raise ValueError('two\\nlines \\udc80 [/b]')", r"own.py:3: .*ValueError: two lines \[/b\]"),
    ],
)
def test_a_reward_that_fails_is_one_samples_failure_with_its_line_and_row(
    num_workers: int, body: str, told: str, tmp_path: Path
) -> None:
    config = reward_file(tmp_path, body)
    with closing(RewardPool(config, num_workers)) as rewards:
        failure = rewards.submit(prompt_of(0), "x").result()
    assert isinstance(failure, Failure)
    assert re.search(told, str(failure))
    assert str(failure).isprintable()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_that_no_response_can_be_scored_on_is_refused(num_workers: int) -> None:
    prompt = replace(prompt_of(), ground_truth={"candidate_text": POOL, "gt": "Tenet"})
    with (
        closing(RewardPool(RewardFunctionConfig(), num_workers)) as rewards,
        pytest.raises(UserError, match="the positive 'Tenet' is not among"),
    ):
        rewards.submit(prompt, "x").result()


def test_a_signal_that_ends_the_driver_is_no_failure_of_the_reward(tmp_path: Path) -> None:
    config = reward_file(tmp_path, "os.kill(os.getpid(), 15); return 1.0")
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        with pytest.raises(Terminated):
            RewardPool(config).submit(prompt_of(), "x")
    finally:
        signal.signal(signal.SIGTERM, before)


BAD = {
    "exits": ("os._exit(3)", r"own.py:2: .*its process died \(exit code 3\)"),
    "is killed": ("os.kill(os.getpid(), 9)", r"own.py:2: .*its process died \(exit code -9\)"),
    "hangs": ("time.sleep(1e6)", r"own.py:3: .*no answer within reward.timeout=2 s"),
    "hangs in another": ("subprocess.run(['sleep', '1000000'])", r"own.py:3: .*no answer within reward.timeout=2 s"),
    "takes no signal": (
        "(signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()), time.sleep(1e6))",
        r"own.py:2: .*no answer within reward.timeout=2 s",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_process_that_dies_or_hangs_costs_its_sample_and_nothing_else(case: str, tmp_path: Path) -> None:
    body, told = BAD[case]
    config = reward_file(tmp_path, f"return float(os.getpid()) if extra_info['index'] != 2 else {body}")
    with closing(RewardPool(config, 2, timeout=2.0)) as rewards:
        found = [pending.result() for pending in [rewards.submit(prompt_of(row), "x") for row in range(6)]]
    failure = found.pop(2)
    assert isinstance(failure, Failure)
    assert re.search(told, str(failure))
    processes = {parts["score"] for parts in found if not isinstance(parts, Failure)}
    assert len(processes) <= 3  # two, and the one in the place of that which is gone
    assert not any(_runs(int(process)) for process in processes)


def test_a_reward_that_kills_its_process_while_it_is_loaded_ends_the_run_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import multiprocessing, os\nif multiprocessing.parent_process(): os._exit(5)\ndef own(*_): return 1\n"
    )
    with (
        closing(RewardPool(RewardFunctionConfig(str(file), "own"), 1)) as rewards,
        pytest.raises(RunError, match=r"died while it loaded the reward \(exit code 5\)"),
    ):
        rewards.submit(prompt_of(), "x").result()


def test_a_reward_that_hangs_while_a_process_loads_it_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import multiprocessing, time\nif multiprocessing.parent_process(): time.sleep(1e6)\ndef own(*_): return 1\n"
    )
    monkeypatch.setattr(reward_process, "LOADING", 2.0)
    with (
        closing(RewardPool(RewardFunctionConfig(str(file), "own"), 1)) as rewards,
        pytest.raises(
            RunError, match=r"own.py: the reward was not loaded within 2 s in a process of reward.num_workers"
        ),
    ):
        rewards.submit(prompt_of(), "x").result()


def test_a_pool_is_closed_while_a_reward_hangs(tmp_path: Path) -> None:
    config = reward_file(tmp_path, "print(os.getpid(), file=open(solution_str, 'w')); time.sleep(1e6)")
    with closing(RewardPool(config, 1)) as rewards:
        rewards.submit(prompt_of(), str(tmp_path / "pid"))
        never = rewards.submit(prompt_of(), "x")
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.05)
    assert never.cancelled()
    assert not _runs(int((tmp_path / "pid").read_text()))


DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from test_reward_pool import RewardPool, prompt_of, reward_file
    rewards = RewardPool(reward_file(Path(sys.argv[2]), "return float(os.getpid())"), 1)
    print(int(rewards.submit(prompt_of(), "x").result()["score"]), flush=True)
    time.sleep(60)
"""


def test_a_driver_that_is_killed_leaves_no_process_of_the_pool(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    of_pool = int(driver.stdout.readline())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    for _ in range(600):
        if not _runs(of_pool):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {of_pool} still runs")


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("num_workers", [0, 1])
def test_trajectories_do_not_hang_on_the_order_in_which_responses_are_complete(num_workers: int) -> None:
    words = ["</answer>", "Alien\n", "Heat\n", "Ran\n"]
    tokenizer: Any = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(words[token] for token in ids))
    prompts = [prompt_of(row) for row in range(3)]
    responses = {
        place: [Completion([1 + (place + k) % 3, 2, 0], [-0.5, -place, -k], "length") for k in range(2)]
        for place in range(3)
    }

    def arriving(order: tuple[int, ...]) -> Iterator[tuple[int, list[Turn]]]:
        yield from ((place, as_turns(prompts[place], responses[place])) for place in order)

    found = []
    with closing(RewardPool(RewardFunctionConfig(), num_workers)) as rewards:
        for order in itertools.permutations(range(3)):
            sampling = SampledBatch(prompts, arriving(order), tokenizer, rewards, policy_version=7)
            sampling.receive({})
            trajectories, metrics = sampling.trajectories({})
            found.append(
                (
                    metrics,
                    [
                        (one.group_id, one.prompt_ids, one.response_ids, one.rollout_logprobs.tolist(), one.score)
                        for one in trajectories
                    ],
                )
            )
            assert all(one.policy_version == 7 for one in trajectories)
    assert all(one == found[0] for one in found)
    assert [group for group, *_ in found[0][1]] == [0, 0, 1, 1, 2, 2]
    assert len({score for *_, score in found[0][1]}) > 1


def sampled(body: str, directory: Path, max_failure_rate: float, scores: list[list[float]]) -> SampledBatch:
    """A batch whose responses are their scores in words, those of a prompt a list; the reward is `body`."""
    tokenizer: Any = SimpleNamespace(decode=lambda ids, skip_special_tokens: str(ids[0]))
    prompts = [prompt_of(row) for row in range(len(scores))]
    arriving = (
        (
            place,
            as_turns(prompts[place], [Completion([score, 0], [-0.5, -0.5], "length") for score in own]),  # type: ignore[list-item]
        )
        for place, own in enumerate(scores)
    )
    rewards = RewardPool(reward_file(directory, body))
    return SampledBatch(prompts, arriving, tokenizer, rewards, 0, max_failure_rate)


FAILS_BELOW_ZERO = "return float(solution_str) if float(solution_str) >= 0 else [][0]"


def test_a_sample_whose_reward_failed_takes_no_part_and_its_group_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    sampling = sampled(FAILS_BELOW_ZERO, tmp_path, 0.5, [[1, 0, -1, 2], [-1, 5, -1, -1], [3, 4, 8, 9]])
    sampling.receive({})
    trajectories, metrics = sampling.trajectories({})
    assert [(one.group_id, one.score) for one in trajectories] == [
        (0, 1), (0, 0), (0, 2), (1, 5), (2, 3), (2, 4), (2, 8), (2, 9),
    ]  # fmt: skip
    assert metrics["reward/failure_rate"] == pytest.approx(4 / 12)
    assert metrics["reward/score/mean"] == 4
    assign_advantages(trajectories, AlgorithmConfig("grpo"), KLController(0.0))
    advantages = [one.advantages[0] for one in trajectories if one.advantages is not None]
    assert advantages[:3] == pytest.approx([0, -1, 1], abs=1e-5)
    assert advantages[3] == 0  # alone in its group
    (line,) = report_failures(sampling.failures, 12)
    assert "own.py:3: the reward failed on direct_ranking row 0: IndexError" in line
    assert "4 of 12 responses" in line


def test_too_many_failures_end_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"own.py:3: the reward failed on .* row 1: .* \(3 of 12 resp.*failure_rate is 0.2"
    ):
        sampled(FAILS_BELOW_ZERO, tmp_path, 0.2, [[1, 0, 0, 2], [-1, -1, -1, 5], [3, 4, 8, 9]]).receive({})
    sampling = sampled(FAILS_BELOW_ZERO, tmp_path, 0.25, [[1, 0, 0, 2], [-1, -1, -1, 5], [3, 4, 8, 9]])
    sampling.receive({})
    assert len(sampling.outcomes({})) == 12
    with pytest.raises(UserError, match=r"1 of 2 responses; reward.max_failure_rate is 0"):
        sampled(FAILS_BELOW_ZERO, tmp_path, 0.0, [[-1, 1]]).receive({})
