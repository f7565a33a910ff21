"""Sampling: the distribution that is asked for, log-probabilities of that distribution, streams of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1ranker.errors import RunError
from r1ranker.model.logprobs import token_logprobs
from r1ranker.rollout.engine import SamplingParams
from r1ranker.rollout.sampling import pad_allowed, sample_tokens, uniform_stream


def draw(logits: torch.Tensor, params: SamplingParams, allowed: list[int], count: int = 20000) -> np.ndarray:
    uniforms = torch.from_numpy(uniform_stream(7, 0, count))
    tokens, _ = sample_tokens(logits.expand(count, -1), uniforms, [allowed] * count, params)
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1]) / count


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    expected = (logits[0] / 0.7).softmax(0).numpy()
    np.testing.assert_allclose(draw(logits, SamplingParams(temperature=0.7), []), expected, atol=0.01)


def test_a_constraint_renormalises_over_what_is_allowed() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    expected = np.zeros(4)
    expected[[0, 3]] = logits[0, [0, 3]].softmax(0).numpy()
    np.testing.assert_allclose(draw(logits, SamplingParams(), [0, 3]), expected, atol=0.01)


def test_top_k_and_top_p_leave_the_rest_out() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    assert (draw(logits, SamplingParams(top_k=2), []) > 0).tolist() == [False, True, True, False]
    # probabilities .09 .24 .64 .03: the nucleus of 0.7 is the smallest set of at least that mass
    assert (draw(logits, SamplingParams(top_p=0.7), []) > 0).tolist() == [False, True, True, False]
    assert (draw(logits, SamplingParams(top_p=0.6), []) > 0).tolist() == [False, False, True, False]


def test_temperature_zero_takes_the_best_allowed() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [0.0, 1.0, 2.0, -1.0]])
    tokens, _ = sample_tokens(logits, torch.zeros(2), [[], [0, 3]], SamplingParams(temperature=0))
    assert tokens.tolist() == [2, 0]


@pytest.mark.parametrize("size", [3, 128, 1000, 1024])
def test_the_token_is_the_first_whose_running_sum_exceeds_the_number_drawn(size: int) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(500, size)
    logits[:, 1::3] = -torch.inf  # never chosen
    uniforms = torch.rand(500, dtype=torch.float64)
    uniforms[:4] = torch.tensor([0.0, 1 - 2**-53, 1e-300, 0.5])
    tokens, logprobs = sample_tokens(logits, uniforms, [[]] * 500, SamplingParams())
    sums = logits.double().softmax(-1).cumsum(-1)
    # within what float32 weights can tell apart
    assert (sums.gather(1, tokens[:, None])[:, 0] > uniforms - 1e-6).all()
    before = sums.gather(1, (tokens - 1).clamp_min(0)[:, None])[:, 0].masked_fill(tokens == 0, 0.0)
    assert (before < uniforms + 1e-6).all()
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)


def test_reported_log_probabilities_are_those_the_trainer_computes() -> None:
    torch.manual_seed(0)
    logits, allowed = 3 * torch.randn(6, 50), [[], [3, 9, 40], [], [7], [0, 49], []]
    tokens, logprobs = sample_tokens(
        logits, torch.rand(6, dtype=torch.float64), allowed, SamplingParams(temperature=0.8)
    )
    rows, ids = pad_allowed(allowed)
    again, entropy = token_logprobs(logits, tokens, 0.8, rows, ids, with_entropy=True)
    torch.testing.assert_close(logprobs, again, atol=1e-6, rtol=0)
    for row, ids_of_row in enumerate(allowed):
        scores = logits[row].double() / 0.8
        scores = scores[ids_of_row] if ids_of_row else scores
        assert entropy is not None
        torch.testing.assert_close(
            entropy[row].double(), torch.distributions.Categorical(logits=scores).entropy(), atol=1e-5, rtol=0
        )


def test_entropy_and_log_probability_have_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    rows, ids = pad_allowed([[], [0, 4], []])
    targets = torch.tensor([1, 4, 2])

    def both(values: torch.Tensor) -> torch.Tensor:
        logprobs, entropy = token_logprobs(values, targets, 0.9, rows, ids, with_entropy=True)
        assert entropy is not None
        return torch.cat([logprobs, entropy])

    # computed in float32 inside, hence the wide step and tolerance
    assert torch.autograd.gradcheck(both, logits, eps=1e-2, atol=1e-2, rtol=1e-2)


def test_each_sample_has_a_stream_of_its_own_whatever_the_batch() -> None:
    assert not np.array_equal(uniform_stream(1, 0, 8), uniform_stream(1, 1, 8))
    assert not np.array_equal(uniform_stream(1, 0, 8), uniform_stream(2, 0, 8))
    np.testing.assert_array_equal(uniform_stream(1, 0, 8), uniform_stream(1, 0, 16)[:8])


@pytest.mark.parametrize("allowed", [[], [1, 3]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(allowed: list[int], temperature: float) -> None:
    for bad in (torch.nan, torch.inf):
        logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, bad]])
        with pytest.raises(RunError, match="logits are not finite"):
            sample_tokens(logits, torch.full((2,), 0.5), [allowed] * 2, SamplingParams(temperature=temperature))
