"""Batches at the edge, with every estimator: equal rewards, no tokens, EOS alone, cut responses, groups of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from r1ranker.model.attention import PACKED
from r1ranker.model.loading import load_causal_lm
from r1ranker.model.policy_model import PolicyModel
from r1ranker.trainer.algorithm.estimation import assign_advantages, assign_loss_weights, drop_without_gradient
from r1ranker.trainer.algorithm.kl import KLController
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.packing import pack
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import ESTIMATORS, LOSS_AGG_MODES, ActorConfig, AlgorithmConfig
from r1ranker.trainer.learners.policy import PolicyLoss
from r1ranker.trainer.monitoring.metrics import batch_metrics

EOS = 2
MEAN_FREE = ("gae", "reinforce_plus_plus")


def batch_of(
    lengths: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], reason: str = "stop"
) -> list[Trajectory]:
    """Groups by the lengths of their responses, EOS included, and their scores."""
    random = np.random.default_rng(0)
    batch = []
    for group, (own, given) in enumerate(zip(lengths, scores, strict=True)):
        prompt = random.integers(5, 100, 9).tolist()
        for length, score in zip(own, given, strict=True):
            response = random.integers(5, 100, length).tolist()
            if response and reason == "stop":
                response[-1] = EOS
            batch.append(
                Trajectory(
                    list(prompt), response, random.normal(-5, 0.1, length), reason, group,  # type: ignore[arg-type]
                    score=score, values=random.normal(size=length),
                )
            )  # fmt: skip
    return batch


def learned(batch: list[Trajectory], estimator: str, mode: str, model: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Advantages put on `batch`, and the loss and gradients that it has, as an update computes them."""
    assign_advantages(batch, AlgorithmConfig(estimator), KLController(0.0))
    assign_loss_weights(batch, mode)
    language_model = load_causal_lm(model, dtype=torch.float32, attention=PACKED)
    row = pack(drop_without_gradient(batch, ActorConfig()))
    places = row.predicting, row.targets, row.constrained, row.allowed
    logprobs, entropy = PolicyModel(language_model)(*places, 1.0, True, False, **row.model_inputs())
    loss, sums = PolicyLoss(ClipRange())(row, logprobs, entropy)
    loss.backward()
    metrics = batch_metrics(batch, 1024, 64)
    assert all(np.isfinite(value) for value in (*sums.values(), *metrics.values()))
    return loss.item(), {n: p.grad for n, p in language_model.named_parameters() if p.grad is not None}


def assert_finite(loss: float, gradients: dict[str, torch.Tensor]) -> None:
    assert np.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def is_zero(gradients: dict[str, torch.Tensor]) -> bool:
    return not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_rewards_teach_nothing_but_a_critics_surprise(estimator: str, tiny_model: str) -> None:
    batch = batch_of([[4, 2, 3], [1, 5, 3]], [[0.4307] * 3] * 2)
    loss, gradients = learned(batch, estimator, "token-mean", tiny_model)
    assert_finite(loss, gradients)
    advantages = np.concatenate([one.advantages for one in batch if one.advantages is not None])
    if estimator == "gae":  # values differ from token to token, and so do the advantages
        assert advantages.std() == pytest.approx(1, abs=1e-3)
    else:
        assert not advantages.any()
        assert is_zero(gradients)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_empty_response_has_no_part_in_the_loss_and_its_score_is_still_its_groups(
    estimator: str, mode: str, tiny_model: str
) -> None:
    batch = batch_of([[0, 3, 2], [4, 0, 1]], [[1.0, 0.0, 0.5], [0.0, 2.0, 1.0]])
    loss, gradients = learned(batch, estimator, mode, tiny_model)
    assert_finite(loss, gradients)
    assert not is_zero(gradients)
    assert [len(one.advantages) for one in batch if one.advantages is not None] == [0, 3, 2, 4, 0, 1]
    assert sum(one.weights.sum() for one in batch if one.weights is not None) == pytest.approx(
        {"token-mean": 1, "seq-mean-token-sum": 10 / 4, "seq-mean-token-mean": 1, "seq-mean-token-sum-norm": 10 / 4}[
            mode
        ]
    )
    if estimator == "rloo":
        assert batch[1].advantages is not None
        assert batch[1].advantages[0] == pytest.approx(0.0 - (1.0 + 0.5) / 2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_batch_of_nothing_but_empty_responses_is_a_step_without_a_gradient(estimator: str, tiny_model: str) -> None:
    batch = batch_of([[0, 0], [0, 0]], [[1.0, 0.0], [0.0, 1.0]])
    loss, gradients = learned(batch, estimator, "token-mean", tiny_model)
    assert loss == 0
    assert is_zero(gradients)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_response_of_eos_alone_is_learned_from(estimator: str, tiny_model: str) -> None:
    batch = batch_of([[1, 1, 4], [1, 1, 1]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    assert batch[0].response_ids == [EOS]
    loss, gradients = learned(batch, estimator, "token-mean", tiny_model)
    assert_finite(loss, gradients)
    assert not is_zero(gradients)
    for one in (batch[0], batch[1]):
        assert one.advantages is not None
        assert one.weights is not None
        assert one.advantages[0] != 0
        assert one.weights[0] == pytest.approx(1 / 9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_response_cut_at_the_limit_is_learned_from_as_any_other(estimator: str, tiny_model: str) -> None:
    lengths, scores = [[6, 6], [6, 6]], [[-1.0, 0.5], [0.5, -1.0]]
    cut, ended = (batch_of(lengths, scores, reason) for reason in ("length", "stop"))
    loss, gradients = learned(cut, estimator, "token-mean", tiny_model)
    assert_finite(loss, gradients)
    assert not is_zero(gradients)
    learned(ended, estimator, "token-mean", tiny_model)
    for one, other in zip(cut, ended, strict=True):
        np.testing.assert_array_equal(one.advantages, other.advantages)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.weights, other.weights)  # type: ignore[arg-type]
    assert batch_metrics(cut, 1024, 6)["response_length/clip_ratio"] == 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_of_one_is_compared_with_the_batch_or_with_nothing(estimator: str, tiny_model: str) -> None:
    batch = batch_of([[3], [2], [4]], [[1.0], [0.0], [0.5]])
    loss, gradients = learned(batch, estimator, "token-mean", tiny_model)
    assert_finite(loss, gradients)
    assert is_zero(gradients) == (estimator not in MEAN_FREE)
    advantages = np.concatenate([one.advantages for one in batch if one.advantages is not None])
    assert advantages.any() == (estimator in MEAN_FREE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_token_without_a_log_probability_takes_no_part(estimator: str, tiny_model: str) -> None:
    batch = batch_of([[3, 2], [4, 1]], [[1.0, 0.0], [0.0, 1.0]])
    batch[0].rollout_logprobs[1] = np.nan
    batch[3].rollout_logprobs[0] = -np.inf
    loss, gradients = learned(batch, estimator, "seq-mean-token-mean", tiny_model)
    assert_finite(loss, gradients)
    assert not is_zero(gradients)
    assert batch[0].weights is not None
    assert batch[3].weights is not None
    assert batch[0].weights.tolist() == pytest.approx([1 / 6, 0, 1 / 6])
    assert batch[3].weights.tolist() == [0]
