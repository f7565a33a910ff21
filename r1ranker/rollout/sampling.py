"""Choosing the next token of each row, with log-probabilities of the distribution it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from r1ranker.errors import RunError
from r1ranker.rollout.engine import SamplingParams

_BLOCK = 128
"""tokens whose weights are summed before the place is looked for inside: a running sum over a whole vocabulary is slow"""
_BELOW_ONE = 1 - 1e-12


def uniform_stream(seed: int, sample: int, length: int) -> np.ndarray:
    """`length` numbers in [0, 1) that depend on (seed, sample) alone, so that a batch's make-up changes no response."""
    key = np.array([seed % 2**64, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)


def pad_allowed(allowed: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows that are constrained [C] and their allowed ids [C, K], padded with -1."""
    rows = [row for row, ids in enumerate(allowed) if ids]
    width = max((len(allowed[row]) for row in rows), default=1)
    padded = [[*allowed[row], *[-1] * (width - len(allowed[row]))] for row in rows]
    return torch.tensor(rows, dtype=torch.long), torch.tensor(padded, dtype=torch.long).view(len(rows), width)


def sample_tokens(
    logits: Tensor, uniforms: Tensor, allowed: Sequence[Sequence[int]], params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """Next tokens [B] and their log-probabilities [B] from logits [B, V], by inverting the cumulative distribution.

    `uniforms` [B] in [0, 1); `allowed` holds for each row the ids that may be chosen, empty for any. Log-probabilities
    are those after temperature and constraint and before top_p and top_k (at temperature 0: of temperature 1).
    Raises RunError for logits that are no numbers.
    """
    logits = logits.float()
    if params.temperature not in (0, 1):
        logits = logits / params.temperature
    if not any(allowed):
        return _choose_free(logits, uniforms, params)
    tokens = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    logprobs = torch.zeros(logits.shape[0], device=logits.device)
    constrained, ids = pad_allowed(allowed)
    constrained, ids = constrained.to(logits.device), ids.to(logits.device)
    scores = logits[constrained[:, None], ids.clamp_min(0)].masked_fill(ids < 0, -torch.inf)
    place, logprobs[constrained] = _choose_free(scores, uniforms[constrained], params)
    tokens[constrained] = ids.gather(1, place[:, None])[:, 0]
    free = torch.tensor([row for row, some in enumerate(allowed) if not some], dtype=torch.long, device=logits.device)
    if len(free):
        tokens[free], logprobs[free] = _choose_free(logits[free], uniforms[free], params)
    return tokens, logprobs


def weigh_tokens(logits: Tensor, allowed: Sequence[int], params: SamplingParams) -> list[float]:
    """Log-probabilities of the ids `allowed` [K] among themselves, from logits [V], after temperature; none where all are allowed."""
    temperature = params.temperature or 1.0
    scores: list[float] = (logits[list(allowed)].float() / temperature).log_softmax(dim=-1).tolist() if allowed else []
    return scores


def _choose_free(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    weights = logits.softmax(dim=-1)
    if bool(weights[:, 0].isnan().any()):  # one logit that is no number makes all of its row's weights so
        raise RunError("the model's logits are not finite: its weights have diverged, or overflow in this precision")
    tokens = logits.argmax(dim=-1) if params.temperature == 0 else _draw(_filtered(weights, params), uniforms)
    return tokens, weights.gather(1, tokens[:, None])[:, 0].log()


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """For each row of weights [B, V] the first place whose running sum exceeds `uniforms` [B] of the whole."""
    size = min(_BLOCK, weights.shape[1])
    rest = -weights.shape[1] % size
    blocks = (pad(weights, (0, rest)) if rest else weights).unflatten(1, (-1, size))
    sums = blocks.sum(dim=-1).double().cumsum(dim=-1)
    threshold = uniforms.to(sums)[:, None] * sums[:, -1:]
    block, before = _first_above(sums, threshold)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(dim=-1)
    place, _ = _first_above(inside, threshold - before)
    return (block * size + place)[:, 0]


def _first_above(sums: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """First places [B, 1] of running sums [B, K] above `threshold` [B, 1], and the sums before them [B, 1]."""
    # held below the last sum, which rounding may reach, so that the place is always one of a weight above 0
    place = torch.searchsorted(sums, torch.minimum(threshold, sums[:, -1:] * _BELOW_ONE), right=True)
    return place, sums.gather(1, (place - 1).clamp_min(0)).masked_fill(place == 0, 0.0)


def _filtered(weights: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities with all but the top_k tokens, and all outside the nucleus of mass top_p, at 0."""
    if params.top_k > 0:
        threshold = weights.topk(min(params.top_k, weights.shape[-1]), dim=-1).values[:, -1:]
        weights = weights.masked_fill(weights < threshold, 0.0)
    if params.top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True)
        mass = ordered.cumsum(dim=-1)
        outside = torch.zeros_like(weights, dtype=torch.bool).scatter(
            1, order, mass - ordered >= params.top_p * mass[:, -1:]
        )
        weights = weights.masked_fill(outside, 0.0)
    return weights
