"""Dynamic sampling: which groups stay, which are drawn in their place, and what a step is told of it; the penalty of long responses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from r1ranker.errors import UserError
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import (
    AlgorithmConfig,
    Config,
    DataConfig,
    FilterGroupsConfig,
    OverlongBufferConfig,
    RewardConfig,
)
from r1ranker.trainer.experience.filtering import fill_with_signal
from r1ranker.trainer.experience.scored import score, shape_overlong


def batch_of(*groups: tuple[float, ...], name: str = "a", episodes: bool = False) -> Any:
    """A sampled batch whose groups have these scores; of conversations each score is of another one's first turn."""
    trajectories, parts = [], []
    for group, scores in enumerate(groups):
        for value in scores:
            trajectories.append(
                Trajectory([1, 2], [3], np.zeros(1), "stop", group, score=value, episode=len(parts) if episodes else -1)
            )
            parts.append({"score": value, "task": abs(value)})
    metrics = {"reward/score/mean": float(np.mean([one["score"] for one in parts]))}
    return SimpleNamespace(
        prompts=[f"{name}{group}" for group in range(len(groups))], parts=parts, elimination_tokens=5,
        receive=lambda timing: None, trajectories=lambda timing: (trajectories, metrics),
    )  # fmt: skip


def config_of(**changes: Any) -> Config:
    return Config(algorithm=AlgorithmConfig(filter_groups=FilterGroupsConfig(enable=True, **changes)))


def test_groups_without_a_difference_are_replaced_in_their_order() -> None:
    first = batch_of((1.0, 1.0), (0.0, 1.0), (0.0, 0.0))
    further = [
        batch_of((1.0, 1.0), (0.5, 0.0), (0.0, 0.0), name="b"),
        batch_of((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), name="c"),
    ]
    drawn: list[int] = []

    def draw(number: int) -> Any:
        drawn.append(number)
        return further[number - 1]

    found = fill_with_signal(first, draw, config_of(), {})
    assert drawn == [1, 2]
    assert found.prompts == ["a1", "b1", "c0"]
    assert [one.group_id for one in found.trajectories] == [0, 0, 1, 1, 2, 2]
    assert [one.score for one in found.trajectories] == [0.0, 1.0, 0.5, 0.0, 0.0, 1.0]
    assert found.parts == [{"score": one.score, "task": abs(one.score)} for one in found.trajectories]
    assert found.metrics["filter_groups/num_gen_batches"] == 3
    assert found.metrics["filter_groups/kept"] == 3
    # all that was drawn, and not what was kept
    assert found.metrics["reward/score/mean"] == pytest.approx(np.mean([0.5, 0.5 / 1.2, 4 / 6]), abs=1e-9)
    # three batches' eliminations, and twelve responses of three tokens
    assert found.spent == 3 * 5 + 12 * 3


def test_after_the_last_batch_the_step_goes_on_with_fewer() -> None:
    alike = [batch_of((1.0, 1.0), (0.0, 0.0)) for _ in range(3)]
    found = fill_with_signal(
        batch_of((0.0, 1.0), (1.0, 1.0)), lambda number: alike[number], config_of(max_num_gen_batches=3), {}
    )
    assert found.prompts == ["a0"]
    assert (found.metrics["filter_groups/num_gen_batches"], found.metrics["filter_groups/kept"]) == (3, 1)


def test_where_nothing_differs_the_last_batch_is_taken_as_it_is() -> None:
    last = batch_of((1.0, 1.0), name="z")
    found = fill_with_signal(batch_of((0.0, 0.0)), lambda _: last, config_of(max_num_gen_batches=2), {})
    assert (found.prompts, found.metrics["filter_groups/kept"]) == (["z0"], 0)
    assert len(found.trajectories) == 2


def test_the_metric_is_a_part_of_the_reward() -> None:
    first = batch_of((-1.0, 1.0), (0.0, 1.0))
    found = fill_with_signal(first, lambda _: batch_of((0.0, 0.0)), config_of(metric="task", max_num_gen_batches=1), {})
    assert found.prompts == ["a1"]  # of the first one both are 1 apart from their sign
    with pytest.raises(UserError, match=r"gives no 'tusk' \(did you mean 'task'"):
        fill_with_signal(batch_of((0.0, 1.0)), lambda _: None, config_of(metric="tusk"), {})  # type: ignore[arg-type, return-value]


def test_turns_of_conversations_are_compared_turn_by_turn_and_keep_apart() -> None:
    first, second = (batch_of((0.0, 1.0), (1.0, 1.0), name=name, episodes=True) for name in "ab")
    for one in second.trajectories({})[0]:
        one.turn = one.episode % 2  # nobody is compared with anybody
    found = fill_with_signal(first, lambda _: second, config_of(max_num_gen_batches=2), {})
    assert found.prompts == ["a0"]
    third = batch_of((1.0, 0.0), name="c", episodes=True)
    found = fill_with_signal(batch_of((0.0, 1.0), (1.0, 1.0), episodes=True), lambda _: third, config_of(), {})
    assert found.prompts == ["a0", "c0"]
    assert len({one.episode for one in found.trajectories}) == 4


@pytest.mark.parametrize(("length", "expected"), [(1, 0.0), (6, 0.0), (7, -0.5), (8, -1.0), (10, -2.0)])
def test_long_responses_lose_in_proportion(length: int, expected: float) -> None:
    one = Trajectory([1], [2] * length, np.zeros(length), "length", 0, score=0.7)
    parts = [{"score": 0.7}]
    means = shape_overlong([one], parts, OverlongBufferConfig(True, 4, 2.0), 10)
    assert one.score == parts[0]["score"] == pytest.approx(0.7 + expected)
    assert means == {
        "reward/score/mean": pytest.approx(0.7 + expected),
        "reward/overlong/mean": pytest.approx(expected),
    }


def test_a_batch_without_a_turn_to_learn_from_is_told() -> None:
    nothing: Any = SimpleNamespace(prompts=["a0"], parts=[], elimination_tokens=0, trajectories=lambda timing: ([], {}))
    with pytest.raises(UserError, match=r"no conversation of a batch came to a turn that is learned from; a larger"):
        score(nothing, Config(), {})


def test_without_a_buffer_scores_stay() -> None:
    plain = score(batch_of((0.0, 1.0)), Config(), {})
    assert [one.score for one in plain.trajectories] == [0.0, 1.0]
    shaped = Config(
        data=DataConfig(max_response_length=1), reward=RewardConfig(overlong_buffer=OverlongBufferConfig(True, 1, 1.0))
    )
    assert [one.score for one in score(batch_of((0.0, 1.0)), shaped, {}).trajectories] == [-1.0, 0.0]
