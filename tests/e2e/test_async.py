"""Generation beside the update, and rewards beside generation: exact, repeatable, and told where they break."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import hold, train
from shared_ray import SharedRay

from r1ranker.errors import RunError, UserError
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.prepare import prepare
from r1ranker.trainer.workers.process import RolloutProcess

pytestmark = pytest.mark.usefixtures("one_ray")

SEPARATE = ("trainer.executor=ray", "actor_rollout_ref.rollout.placement=separate", "trainer.total_training_steps=3")
FAST = "actor_rollout_ref.actor.optim.lr=1e-2"


def figures(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """The metrics that hang on nothing but the run itself."""
    return [{k: v for k, v in line.items() if not k.startswith(("timing", "perf"))} for line in lines]


@pytest.fixture(scope="module")
def ahead(
    shared_ray: SharedRay, toy: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, float]]:
    """Metrics of three steps, the second and third of them sampled ahead."""
    shared_ray.start()
    _, lines = train(toy, tiny_model, tmp_path_factory.mktemp("ahead"), *SEPARATE, FAST, "trainer.async_steps=1")
    return lines


def test_a_batch_sampled_ahead_is_one_step_old_and_weighed_by_its_ratio(ahead: list[dict[str, float]]) -> None:
    assert [line.get("training/policy_lag") for line in ahead] == [None, 0, 1, 1]
    assert ahead[1]["actor/ppo_kl"] == 0
    assert all(line["actor/ppo_kl"] != 0 for line in ahead[2:])
    assert [line["training/epoch"] for line in ahead[1:]] == [0, 0, 0]


def test_a_run_that_samples_ahead_repeats_itself(
    ahead: list[dict[str, float]], toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    _, again = train(toy, tiny_model, tmp_path, *SEPARATE, FAST, "trainer.async_steps=1", "reward.num_workers=1")
    assert figures(again) == figures(ahead)


def test_conversations_sampled_ahead_go_on_where_the_run_was_left(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    more = (
        *SEPARATE, FAST, "trainer.async_steps=1", "data.rounds=conversation", "data.think=false", "data.answer_style=label",
        "trainer.save_freq=1", "trainer.val_before_train=false",
    )  # fmt: skip
    _, whole = train(toy, tiny_model, tmp_path / "whole", *more)
    assert [line["training/policy_lag"] for line in whole] == [0, 1, 1]
    assert all(line["conversation/turns/max"] > 4 for line in whole)
    train(toy, tiny_model, tmp_path / "parts", *more, "trainer.total_training_steps=4")
    shutil.rmtree(tmp_path / "parts" / "state" / "step_4")
    shutil.rmtree(tmp_path / "parts" / "actor")
    # the state after the third step holds the episodes of the fourth, whole
    _, again = train(toy, tiny_model, tmp_path / "parts", *more, "trainer.total_training_steps=4")
    _, alone = train(toy, tiny_model, tmp_path / "alone", *more, "trainer.total_training_steps=4")
    assert figures(again) == figures(alone)


def test_without_it_every_batch_is_of_the_policy_that_is_trained(
    ahead: list[dict[str, float]], toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    _, lines = train(toy, tiny_model, tmp_path / "apart", *SEPARATE, FAST, "trainer.test_freq=1")
    assert [line["training/policy_lag"] for line in lines[1:]] == [0, 0, 0]
    assert all(line["actor/ppo_kl"] == 0 for line in lines[1:])
    # the first step is the same either way but for the engine's rounding, whose log-probabilities are the old ones of a batch
    # that may be stale; and what is validated are the weights after the update
    assert lines[1]["actor/grad_norm"] == pytest.approx(ahead[1]["actor/grad_norm"], rel=1e-6)
    _, validated = train(
        toy, tiny_model, tmp_path / "ahead", *SEPARATE, FAST, "trainer.test_freq=1", "trainer.async_steps=1",
    )  # fmt: skip
    scores = [{k: v for k, v in line.items() if k.startswith("val-")} for line in (lines[1], validated[1])]
    assert scores[0] == scores[1] != {}
    assert figures(validated)[-1]["actor/grad_norm"] == ahead[-1]["actor/grad_norm"]  # validation disturbs nothing


def test_a_correction_carries_the_difference_of_a_stale_batch(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    _, lines = train(
        toy, tiny_model, tmp_path, *SEPARATE, FAST, "trainer.async_steps=1", "algorithm.rollout_correction.rollout_is=sequence",
    )  # fmt: skip
    assert lines[1]["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=1e-4)
    for line in lines[2:]:
        assert abs(line["rollout_corr/rollout_is_max"] - 1) > 1e-3
        assert line["actor/ppo_kl"] == pytest.approx(0, abs=1e-5)


def test_old_log_probabilities_of_stale_trajectories_are_the_engines(toy: Path, tiny_model: str) -> None:
    files = [f"data.{split}_files={toy}/iterative_ranking/{name}.parquet" for split, name in (("train", "train"), ("val", "test"))]  # fmt: skip
    config = load_config("quickstart", [*files, f"actor_rollout_ref.model.path={tiny_model}"])

    def prepared(version: int) -> Trajectory:
        one = Trajectory([1, 2], [3, 4], np.array([-0.25, -1.5]), "stop", group_id=0, policy_version=version)
        cluster: Any = None  # nothing is computed for it
        prepare(cluster, config, [one], 3, {})
        return one

    assert prepared(3).old_logprobs is None
    np.testing.assert_array_equal(prepared(2).old_logprobs, [-0.25, -1.5])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["trainer.async_steps=2"], "trainer.async_steps: found 2; 0 or 1"),
        (["trainer.async_steps=-1"], "trainer.async_steps: found -1; 0 or 1"),
        (["trainer.async_steps=1"], "placement=separate and trainer.executor=ray"),
        (["trainer.async_steps=1", "trainer.executor=ray"], "placement=separate and trainer.executor=ray"),
        (
            ["trainer.async_steps=1", *SEPARATE, "actor_rollout_ref.actor.recompute_old_log_probs=true"],
            "recompute_old_log_probs: true takes",
        ),
        (["reward.num_workers=-1"], "reward.num_workers: found -1; at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_a_line(
    overrides: list[str], wanted: str, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=wanted) as told:
        train(toy, tiny_model, tmp_path, *overrides)
    assert "\n" not in str(told.value)


def test_rewards_of_a_pool_make_the_same_run(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    runs = [
        train(toy, tiny_model, tmp_path / str(workers), f"reward.num_workers={workers}", "trainer.test_freq=1")[1]
        for workers in (0, 2)
    ]
    assert figures(runs[0]) == figures(runs[1])


def test_an_engine_that_dies_or_fails_while_it_hands_over_ends_the_run_with_its_cause(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(RolloutProcess):
        def generate(self, *arguments: Any) -> Iterator[Any]:
            yield from ()
            os._exit(1)

    hold(monkeypatch, Dying)
    with pytest.raises(RunError, match=r"step 1: a process of the run died.*no actor was saved"):
        train(
            toy, tiny_model, tmp_path, *SEPARATE, "trainer.async_steps=1", "trainer.val_before_train=false", "trainer.max_restarts=0",
        )  # fmt: skip

    class Failing(RolloutProcess):
        def start_engine(self) -> None:
            super().start_engine()
            assert self.engine is not None
            session, calls = self.engine.session, iter(range(100))

            def failing() -> Any:
                if next(calls) == 2:  # of the third step, begun in the second
                    raise ArithmeticError("no such block")
                return session()

            self.engine.session = failing  # type: ignore[method-assign]

    hold(monkeypatch, Failing)
    with pytest.raises(
        RunError, match=r"step 2: the rollout failed.*ArithmeticError: no such.*holds the actor of step 1"
    ):
        train(
            toy, tiny_model, tmp_path, *SEPARATE, "trainer.async_steps=1", "trainer.val_before_train=false", "trainer.save_freq=1",
        )  # fmt: skip
