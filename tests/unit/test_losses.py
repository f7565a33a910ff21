"""Losses against loops in float64 written from the papers, their gradients by finite differences, and token shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.trainer.algorithm.kl import KLController, kl_estimate
from r1ranker.trainer.algorithm.losses import loss_weights, value_loss
from r1ranker.trainer.algorithm.policy_losses import ClipRange, TokenTerms, cispo, gspo, vanilla
from r1ranker.trainer.config.schema import LOSS_AGG_MODES

CLIP = ClipRange(low=0.2, high=0.28, dual=3.0)


def policy_loss_by_hand(new: float, old: float, advantage: float) -> float:
    ratio = math.exp(new - old)
    surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    if advantage < 0:
        surrogate = max(surrogate, 3.0 * advantage)
    return -surrogate


def terms_of(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: tuple[int, ...] | None = None
) -> TokenTerms:
    """Tokens of responses of so many each; of one response where no lengths are given."""
    of = torch.repeat_interleave(torch.tensor(lengths or (len(logprobs),)))
    return TokenTerms(logprobs, old, advantages, of, torch.ones(len(logprobs), dtype=torch.bool))


@given(st.floats(-4, 0), st.floats(-4, 0), st.floats(-3, 3))
def test_policy_loss_is_the_clipped_surrogate(new: float, old: float, advantage: float) -> None:
    tensors = [torch.tensor([x], dtype=torch.float64) for x in (new, old, advantage)]
    losses, _ = vanilla(terms_of(*tensors), CLIP)
    assert losses.item() == pytest.approx(policy_loss_by_hand(new, old, advantage), abs=1e-9)


def test_policy_loss_has_the_gradient_of_finite_differences() -> None:
    torch.manual_seed(0)
    new = torch.randn(40, dtype=torch.float64, requires_grad=True)
    old, advantages = new.detach() + 0.3 * torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: vanilla(terms_of(x, old, advantages), CLIP)[0], new)


def test_on_policy_the_gradient_is_reinforce() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.1], requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    losses, clipped = vanilla(terms_of(logprobs, logprobs.detach(), advantages), CLIP)
    losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)
    assert not clipped.any()


def spread(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, old ones and advantages of twelve tokens, in float64."""
    torch.manual_seed(seed)
    new = torch.randn(12, dtype=torch.float64) - 3
    return new, new + 0.4 * torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_gspo_weighs_a_response_by_the_mean_of_its_log_ratios(seed: int) -> None:
    new, old, advantages = spread(seed)
    lengths, start = (5, 1, 6), 0
    terms = terms_of(new.requires_grad_(), old, advantages, lengths)
    losses, clipped = gspo(terms, CLIP)
    losses.sum().backward()
    assert new.grad is not None
    for length in lengths:
        own = range(start, start + length)
        ratio = math.exp(math.fsum(float(new[at] - old[at]) for at in own) / length)
        for at in own:
            plain, bounded = -float(advantages[at]) * ratio, -float(advantages[at]) * min(max(ratio, 0.8), 1.28)
            assert float(losses[at]) == pytest.approx(max(plain, bounded), abs=1e-12)
            assert bool(clipped[at]) == (bounded > plain)
            # of the ratio the token's own log-probability alone moves; clipped, nothing does
            assert float(new.grad[at]) == pytest.approx(0.0 if bounded > plain else plain, abs=1e-12)
        start += length


@pytest.mark.parametrize("seed", range(5))
def test_cispo_bounds_the_weight_and_no_gradient_is_lost(seed: int) -> None:
    new, old, advantages = spread(seed)
    losses, clipped = cispo(terms_of(new.requires_grad_(), old, advantages), CLIP)
    losses.sum().backward()
    assert new.grad is not None
    for at in range(12):
        ratio = math.exp(float(new[at] - old[at]))
        weight = min(max(ratio, 0.8), 1.28)
        assert float(losses[at]) == pytest.approx(-weight * float(advantages[at]) * float(new[at]), abs=1e-12)
        assert float(new.grad[at]) == pytest.approx(-weight * float(advantages[at]), abs=1e-12)
        assert bool(clipped[at]) == (weight != ratio)


def test_tokens_that_take_no_part_are_not_in_a_responses_ratio() -> None:
    new, old, advantages = spread(1)
    whole = gspo(terms_of(new[:9], old[:9], advantages[:9], (4, 5)), CLIP)[0]
    learned = torch.ones(12, dtype=torch.bool)
    learned[9:] = False
    of = torch.repeat_interleave(torch.tensor((4, 8)))
    unknown = torch.where(learned, old, torch.nan)
    found = gspo(TokenTerms(new, unknown, advantages, of, learned), CLIP)[0]
    torch.testing.assert_close(found[:9], whole)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind: str) -> None:
    torch.manual_seed(0)
    p, q = torch.randn(6, dtype=torch.float64).softmax(0), torch.randn(6, dtype=torch.float64).softmax(0)
    expected = (p * kl_estimate(p.log(), q.log(), kind)).sum()
    assert expected.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-12)


def test_kl_estimates_are_their_formulas_and_k3_is_never_negative() -> None:
    policy, reference = torch.linspace(-5, 0, 20, dtype=torch.float64), torch.linspace(0, -5, 20, dtype=torch.float64)
    difference = (policy - reference).numpy()
    np.testing.assert_allclose(kl_estimate(policy, reference, "k1"), difference)
    np.testing.assert_allclose(kl_estimate(policy, reference, "k2"), difference**2 / 2)
    np.testing.assert_allclose(
        kl_estimate(policy, reference, "k3"), np.minimum(np.exp(-difference) + difference - 1, 10)
    )
    assert (kl_estimate(policy, reference, "k3") >= 0).all()


def test_value_loss_takes_the_worse_of_clipped_and_plain() -> None:
    values = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    old, returns = (
        torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64),
        torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64),
    )
    losses, clipped = value_loss(values, old, returns, 0.5)
    np.testing.assert_allclose(losses.detach(), [0.5, 0.5 * max(1.0, 0.25), 0.5 * max(9.0, 6.25)])
    assert clipped.tolist() == [0, 0, 0]
    losses, clipped = value_loss(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([2.0]), 0.5)
    assert (losses.item(), clipped.item()) == (0.5 * 1.5**2, 1)
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old + 0.1, returns, 0.3)[0], values)


masks = st.lists(st.lists(st.booleans(), max_size=6).map(lambda row: np.array(row, dtype=bool)), min_size=1, max_size=6)


@given(masks, st.sampled_from(LOSS_AGG_MODES))
def test_shares_are_the_modes_means(valid: list[np.ndarray], mode: str) -> None:
    random = np.random.default_rng(0)
    losses = [random.normal(size=len(mask)) for mask in valid]
    total = sum(float((share * loss).sum()) for share, loss in zip(loss_weights(valid, mode, 50), losses, strict=True))
    responses = [loss[mask] for loss, mask in zip(losses, valid, strict=True) if mask.any()]
    if not responses:
        assert total == 0
        return
    expected = {
        "token-mean": np.concatenate(responses).mean(),
        "seq-mean-token-sum": np.mean([one.sum() for one in responses]),
        "seq-mean-token-mean": np.mean([one.mean() for one in responses]),
        "seq-mean-token-sum-norm": np.mean([one.sum() for one in responses]) / 50,
    }[mode]
    assert total == pytest.approx(expected, abs=1e-12)


def test_the_adaptive_kl_coefficient_moves_towards_its_target_and_no_faster_than_a_fifth() -> None:
    control = KLController(0.1, target=1.0, horizon=100)
    control.update(kl=5.0, samples=100)
    assert control.value == pytest.approx(0.12)
    control.update(kl=0.95, samples=100)
    assert control.value == pytest.approx(0.12 * 0.95)
    fixed = KLController(0.1)
    fixed.update(kl=5.0, samples=100)
    assert fixed.value == 0.1
