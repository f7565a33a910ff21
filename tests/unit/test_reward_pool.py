"""Rewards in the driver and in processes of their own: the same numbers, the same errors, nothing left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1ranker.data.prompts import Prompt
from r1ranker.errors import RunError, UserError
from r1ranker.rewards import compute_score
from r1ranker.rollout.engine import Completion
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.trainer.collect import Sampling
from r1ranker.trainer.config import RewardFunctionConfig
from r1ranker.trainer.reward_pool import RewardPool

POOL = ["Alien", "Heat", "Ran"]


def prompt_of(row: int = 0) -> Prompt:
    truth = {"candidate_text": POOL, "gt": POOL[row % len(POOL)]}
    extra = {"index": row, "task_name": "Rec-Movie"}
    return Prompt([1, 2, row], "direct_ranking", truth, extra, "direct", AnswerFormat("name", think=False))


def reward_file(directory: Path, body: str) -> RewardFunctionConfig:
    file = directory / "own.py"
    file.write_text(f"import os, sys\ndef own(data_source, solution_str, ground_truth, extra_info=None):\n    {body}\n")
    return RewardFunctionConfig(str(file), "own")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rewards_are_those_of_the_function_in_whatever_order_they_are_asked_for(num_workers: int) -> None:
    answers = ["Heat\nAlien\nRan</answer>", "Alien", "Ran</answer>", "Heat\nheat</answer>"]
    calls = [(prompt_of(row), text) for row in range(3) for text in answers]
    with closing(RewardPool(RewardFunctionConfig(), num_workers)) as rewards:
        pending = [rewards.submit(prompt, text) for prompt, text in calls]
        found = [wait() for wait in reversed(pending)][::-1]
    for (prompt, text), parts in zip(calls, found, strict=True):
        assert parts == compute_score(
            prompt.data_source, text, prompt.ground_truth, {"think": False, "answer_style": "name"}
        )


def test_processes_of_the_pool_are_others_and_know_no_torch(tmp_path: Path) -> None:
    config = reward_file(tmp_path, "return {'score': float('torch' in sys.modules), 'process': os.getpid()}")
    with closing(RewardPool(config, 1)) as rewards:
        parts = rewards.submit(prompt_of(), "x")()
    assert parts["process"] != os.getpid()
    assert parts["score"] == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_reward_that_fails_is_named_with_its_line_and_row(num_workers: int, tmp_path: Path) -> None:
    config = reward_file(tmp_path, "return 1 / extra_info['index']")
    with (
        closing(RewardPool(config, num_workers)) as rewards,
        pytest.raises(
            UserError, match=r"own.py:3: the reward failed on direct_ranking row 0: ZeroDivisionError"
        ) as told,
    ):
        rewards.submit(prompt_of(0), "x")()
    assert "\n" not in str(told.value)


def test_a_process_of_the_pool_that_dies_is_told_in_one_line(tmp_path: Path) -> None:
    config = reward_file(tmp_path, "os._exit(3)")
    with closing(RewardPool(config, 2)) as rewards:
        pending = rewards.submit(prompt_of(), "x")
        with pytest.raises(RunError, match=r"reward.num_workers died"):
            pending()
        with pytest.raises(RunError, match=r"reward.num_workers died"):
            rewards.submit(prompt_of(), "x")


DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from test_reward_pool import RewardPool, prompt_of, reward_file
    rewards = RewardPool(reward_file(Path(sys.argv[2]), "return float(os.getpid())"), 1)
    print(int(rewards.submit(prompt_of(), "x")()["score"]), flush=True)
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

    def arriving(order: tuple[int, ...]) -> Iterator[tuple[int, list[Completion]]]:
        yield from ((place, responses[place]) for place in order)

    found = []
    with closing(RewardPool(RewardFunctionConfig(), num_workers)) as rewards:
        for order in itertools.permutations(range(3)):
            sampling = Sampling(prompts, arriving(order), tokenizer, rewards, policy_version=7)
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
