"""Advantages against loops written from the papers' formulas, and the ways in which they are known to go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.trainer.algorithm import advantages as adv
from r1ranker.trainer.algorithm import statistics


def grpo_by_hand(scores: list[float], groups: list[int], norm: bool) -> list[float]:
    result = []
    for score, group in zip(scores, groups, strict=True):
        own = [s for s, g in zip(scores, groups, strict=True) if g == group]
        mean = math.fsum(own) / len(own)
        if len(own) < 2 or max(own) - min(own) < 1e-6:
            result.append(0.0)
            continue
        variance = math.fsum((s - mean) ** 2 for s in own) / (len(own) - 1)
        result.append((score - mean) / (math.sqrt(variance) + 1e-6) if norm else score - mean)
    return result


scored_groups = st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 4)), min_size=1, max_size=30)


@given(scored_groups, st.booleans())
def test_grpo_is_the_papers_formula(pairs: list[tuple[float, int]], norm: bool) -> None:
    scores, groups = [list(column) for column in zip(*pairs, strict=True)]
    np.testing.assert_allclose(adv.grpo(scores, groups, norm), grpo_by_hand(scores, groups, norm), atol=1e-9)


@given(scored_groups)
def test_rloo_leaves_each_sample_out_of_its_own_baseline(pairs: list[tuple[float, int]]) -> None:
    scores, groups = [list(column) for column in zip(*pairs, strict=True)]
    for index, value in enumerate(adv.rloo(scores, groups)):
        others = [s for i, (s, g) in enumerate(zip(scores, groups, strict=True)) if g == groups[index] and i != index]
        spread = max([*others, scores[index]]) - min([*others, scores[index]])
        expected = scores[index] - math.fsum(others) / len(others) if others and spread >= 1e-6 else 0.0
        assert value == pytest.approx(expected, abs=1e-9)


def test_maxrl_follows_the_log_likelihood_of_success() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=6)
    policy = np.exp(logits) / np.exp(logits).sum()
    success = np.array([1, 0, 0, 1, 0, 0])
    p = float(policy @ success)
    # d log p / d logits of a softmax policy: pi (R / p - 1)
    expected = policy * (success / p - 1)
    samples, size = 40_000, 64
    actions = rng.choice(6, size=(samples // size, size), p=policy)
    scores = success[actions].astype(float)
    advantages = adv.maxrl(scores.ravel().tolist(), np.repeat(np.arange(len(actions)), size).tolist())
    score_function = np.eye(6)[actions.ravel()] - policy
    np.testing.assert_allclose((advantages[:, None] * score_function).mean(axis=0), expected, atol=0.02)
    plain = adv.grpo(scores.ravel().tolist(), np.repeat(np.arange(len(actions)), size).tolist(), norm_by_std=False)
    np.testing.assert_allclose((plain[:, None] * score_function).mean(axis=0), expected * p, atol=0.02)


@pytest.mark.parametrize(("scale", "estimator"), [("std", "grpo"), ("none", "grpo"), ("mean", "maxrl")])
def test_groups_of_every_response_have_the_advantages_that_many_samples_approach(scale: str, estimator: str) -> None:
    rng = np.random.default_rng(0)
    policy, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([1.0, 0.0, 0.6, 1.0])
    found = adv.exact_advantages(rewards.tolist(), [3] * 4, policy.tolist(), scale)
    drawn = rng.choice(4, size=200_000, p=policy)
    sampled = rewards[drawn].tolist()
    if estimator == "maxrl":
        expected = adv.maxrl(sampled, [0] * len(sampled))
    else:
        expected = adv.grpo(sampled, [0] * len(sampled), norm_by_std=scale == "std")
    for action in range(4):
        np.testing.assert_allclose(expected[drawn == action], found[action], atol=0.02)
    assert policy @ found == pytest.approx(0.0, abs=1e-9)
    # weights need not sum to 1, and groups do not mix
    both = adv.exact_advantages([*rewards, 1.0, 1.0], [3, 3, 3, 3, 1, 1], [*(4 * policy), 0.2, 0.8], scale)
    np.testing.assert_allclose(both, [*found, 0.0, 0.0], atol=1e-5)


def test_maxrl_is_silent_where_nothing_succeeds_or_all_is_equal() -> None:
    assert adv.maxrl([0.0, 0.0, 1.0, 1.0, -1.0, 0.0], [0, 0, 1, 1, 2, 2]).tolist() == [0.0] * 6
    assert adv.maxrl([1.0, 0.0, 0.0, 0.0], [0] * 4).tolist() == [3.0, -1.0, -1.0, -1.0]
    assert adv.maxrl([1.0, 0.0], [0, 1]).tolist() == [0.0, 0.0]
    # penalties do not make the divisor small
    assert adv.maxrl([1.0, -0.5, -0.5, 0.1], [0] * 4) == pytest.approx(np.array([0.975, -0.525, -0.525, 0.075]) / 0.275)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16])
def test_groups_of_equal_graded_rewards_have_no_advantage_at_all(size: int) -> None:
    for rank in range(1, 21):
        reward = float(np.float32(1 / math.log2(rank + 1)))  # what a float32 trip makes of it
        assert not adv.grpo([reward] * size, [0] * size).any()
        assert not adv.rloo([reward] * size, [0] * size).any()


def test_a_group_of_one_has_no_advantage() -> None:
    assert not adv.grpo([1.0, 0.0], [0, 1]).any()
    assert not adv.rloo([1.0, 0.0], [0, 1]).any()


def test_groups_go_by_identity_not_by_position() -> None:
    shuffled = adv.grpo([1.0, 5.0, 0.0, 7.0], [0, 1, 0, 1])
    sorted_ = adv.grpo([1.0, 0.0, 5.0, 7.0], [0, 0, 1, 1])
    np.testing.assert_array_equal(shuffled, sorted_[[0, 2, 1, 3]])
    missing = adv.grpo([1.0, 0.0, 7.0], [0, 0, 1])  # one sample of group 1 never came back
    np.testing.assert_array_equal(missing[:2], sorted_[:2])


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1)
)
def test_gae_is_the_discounted_sum_of_temporal_differences(
    steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = [np.array(column) for column in zip(*steps, strict=True)]
    advantages, returns = adv.gae([rewards], [values], gamma, lam)
    following = np.append(values[1:], 0.0)
    deltas = rewards + gamma * following - values
    expected = [
        sum((gamma * lam) ** (later - now) * deltas[later] for later in range(now, len(deltas)))
        for now in range(len(deltas))
    ]
    np.testing.assert_allclose(advantages[0], expected, atol=1e-9)
    np.testing.assert_allclose(returns[0], np.array(expected) + values, atol=1e-9)


def test_the_score_of_an_empty_response_lands_nowhere() -> None:
    assert adv.reward_on_last_token(1.0, 0).shape == (0,)
    np.testing.assert_array_equal(adv.reward_on_last_token(2.0, 3), [0, 0, 2])
    advantages, _ = adv.gae([np.zeros(0), np.array([1.0])], [np.zeros(0), np.array([0.5])], 1.0, 1.0)
    assert [len(one) for one in advantages] == [0, 1]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=6), st.randoms())
def test_whitening_looks_at_valid_tokens_only(rows: list[list[float]], random: object) -> None:
    arrays = [np.array(row) for row in rows]
    valid = [np.array([random.random() < 0.7 for _ in row]) for row in rows]  # type: ignore[attr-defined]
    poisoned = [np.where(mask, array, 1e6) for array, mask in zip(arrays, valid, strict=True)]
    result = adv.whiten(poisoned, valid)
    kept = np.concatenate([one[mask] for one, mask in zip(result, valid, strict=True)])
    before = np.concatenate([one[mask] for one, mask in zip(arrays, valid, strict=True)])
    assert all(not one[~mask].any() for one, mask in zip(result, valid, strict=True))
    if len(kept) and np.ptp(before) > 1e-2:
        assert kept.mean() == pytest.approx(0, abs=1e-9)
        assert kept.var() == pytest.approx(1, abs=1e-2)


def test_explained_variance_is_scikit_learns() -> None:
    from sklearn.metrics import explained_variance_score

    random = np.random.default_rng(0)
    values, returns = random.normal(size=50), random.normal(size=50)
    assert statistics.explained_variance(values, returns) == pytest.approx(explained_variance_score(returns, values))


@pytest.mark.parametrize("best", [1e-3, 1e-7, 1e-11])
def test_maxrl_teaches_a_policy_that_is_sure_of_the_wrong_answer_as_the_log_likelihood_does(best: float) -> None:
    shares = np.array([best, 1 - best])
    found = adv.exact_advantages([1.0, 0.0], [0, 0], shares.tolist(), "mean")
    # d log p(best) / d logits of a softmax: one-hot less the shares
    np.testing.assert_allclose(shares * found, [1 - best, -(1 - best)], rtol=1e-9)
    assert np.isfinite(adv.exact_advantages([1.0, 0.0], [0, 0], [0.0, 1.0], "mean").astype(np.float32)).all()
