"""What several end-to-end tests do: train for a step or two, run a command, draw requests, sample from a cluster."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from r1ranker.cli import main
from r1ranker.data.loader import load_prompts
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Completion, Request
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.fit import fit
from r1ranker.trainer.workers import hosts
from r1ranker.trainer.workers.process import Process, RolloutProcess

SMALL = (
    "data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.n=2",
    "trainer.total_training_steps=6", "trainer.save_freq=1", "trainer.val_before_train=false",
)  # fmt: skip
PPO = (
    "algorithm.adv_estimator=gae", "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive", "trainer.critic_warmup=1",
    "actor_rollout_ref.actor.optim.lr=1e-2",
)  # fmt: skip


def hold(monkeypatch: pytest.MonkeyPatch, kind: type[Process]) -> None:
    """Have Ray's processes hold another kind of worker, or of rollout process."""

    class Holding(hosts.Host):
        def __init__(self) -> None:
            self._kind = kind

    of_rollout = issubclass(kind, RolloutProcess)
    monkeypatch.setattr(hosts, "RolloutHost" if of_rollout else "TrainerHost", Holding)


def config_of(model: str, *overrides: str) -> Config:
    """`quickstart` for `model`, of whose data nothing is read."""
    named = ["data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={model}"]
    return load_config("quickstart", [*named, *overrides])


def train(toy: Path, model: str, output: Path, *overrides: str, mode: str = "iterative") -> tuple[str, list[dict]]:
    """Run `quickstart` with overrides; returns the actor's directory and the lines of metrics.jsonl."""
    config = load_config(
        "quickstart",
        [
            f"data.train_files={toy}/{mode}_ranking/train.parquet",
            f"data.val_files={toy}/{mode}_ranking/test.parquet",
            f"actor_rollout_ref.model.path={model}",
            f"critic.model.path={model}",
            f"trainer.default_local_dir={output}",
            "data.train_batch_size=8",
            "actor_rollout_ref.actor.ppo_mini_batch_size=8",
            "actor_rollout_ref.rollout.n=4",
            "data.val_max_samples=9",
            "trainer.total_training_steps=2",
            *overrides,
        ],
    )
    actor = fit(config)
    return actor, [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def run_command(*arguments: str, code: int = 0) -> tuple[str, str]:
    """`r1ranker` with `arguments` in this process, as its script runs it: what it printed and what it said to stderr."""
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as said:
        try:
            with patch.object(sys, "argv", ["r1ranker", *arguments]):
                main()
            ended: object = 0
        except SystemExit as exiting:
            ended = exiting.code or 0
    assert ended == code, printed.getvalue() + said.getvalue()
    return printed.getvalue(), said.getvalue()


def requests_of(
    tokenizer: PreTrainedTokenizerBase, toy: Path, count: int = 6, constrain: bool = True, mode: str = "direct"
) -> list[Request]:
    """Requests for `count` prompts of the test rows, evenly spread, each with its own seed."""
    prompts, _ = load_prompts([str(toy / f"{mode}_ranking" / "test.parquet")], tokenizer, 2000)
    chosen = prompts[:: max(1, len(prompts) // count)][:count]
    return [
        Request(
            prompt.token_ids,
            seed,
            build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format) if constrain else None,
        )
        for seed, prompt in enumerate(chosen)
    ]


def trajectories_of(requests: list[Request], completions: list[list[Completion]]) -> list[Trajectory]:
    """Trajectories of completions, ready for an update with equal advantages."""
    return [
        Trajectory(
            prompt_ids=list(request.token_ids),
            response_ids=sample.token_ids,
            rollout_logprobs=np.array(sample.logprobs),
            finish_reason=sample.finish_reason,
            group_id=group,
            allowed=sample.allowed,
            advantages=np.ones(len(sample.token_ids)),
            weights=np.full(len(sample.token_ids), 0.01),
        )
        for group, (request, samples) in enumerate(zip(requests, completions, strict=True))
        for sample in samples
    ]


def overrides_of(toy: Path, model: str, output: Path, *more: str) -> list[str]:
    return [
        f"data.train_files={toy}/iterative_ranking/train.parquet", f"data.val_files={toy}/iterative_ranking/test.parquet",
        f"actor_rollout_ref.model.path={model}", f"critic.model.path={model}", f"trainer.default_local_dir={output}",
        "data.val_max_samples=9", *SMALL, *more,
    ]  # fmt: skip


def weights(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def figures(directory: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without clocks."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("timing", "perf"))} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    assert figures(found) == figures(expected)
    for name, value in weights(expected / "actor").items():
        np.testing.assert_array_equal(weights(found / "actor")[name], value)
