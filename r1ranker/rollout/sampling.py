"""Choosing the next token of each row, with log-probabilities of the distribution it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from r1ranker.rollout.engine import SamplingParams


def uniform_stream(seed: int, sample: int, length: int) -> np.ndarray:
    """`length` numbers in [0, 1) that depend on (seed, sample) alone, so that a batch's make-up changes no response."""
    key = np.array([seed % 2**64, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)


def pad_allowed(allowed: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows that are constrained [C] and their allowed ids [C, K], padded with -1."""
    rows = [row for row, ids in enumerate(allowed) if ids]
    width = max((len(allowed[row]) for row in rows), default=1)
    ids = torch.full((len(rows), width), -1, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(allowed[row])] = torch.tensor(allowed[row], dtype=torch.long)
    return torch.tensor(rows, dtype=torch.long), ids


def choose(
    logits: Tensor, uniforms: Tensor, allowed: Sequence[Sequence[int]], params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """Next tokens [B] and their log-probabilities [B] from logits [B, V], by inverting the cumulative distribution.

    `uniforms` [B] in [0, 1); `allowed` holds for each row the ids that may be chosen, empty for any. Log-probabilities
    are those after temperature and constraint and before top_p and top_k (at temperature 0: of temperature 1).
    """
    logits = logits.float() / (params.temperature or 1.0)
    tokens = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    logprobs = torch.zeros(logits.shape[0], device=logits.device)
    constrained, ids = pad_allowed(allowed)
    constrained, ids = constrained.to(logits.device), ids.to(logits.device)
    if len(constrained):
        scores = logits[constrained].gather(1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf)
        place, tokens_logprobs = _choose_free(scores, uniforms[constrained], params)
        tokens[constrained] = ids.gather(1, place[:, None])[:, 0]
        logprobs[constrained] = tokens_logprobs
    free = torch.tensor([row for row, some in enumerate(allowed) if not some], dtype=torch.long, device=logits.device)
    if len(free):
        rows = logits if len(free) == len(logits) else logits[free]
        tokens[free], logprobs[free] = _choose_free(rows, uniforms[free], params)
    return tokens, logprobs


def _choose_free(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(logits, dim=-1)
    if params.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        weights = _filtered(logprobs, params).double().exp()
        cumulative = weights.cumsum(dim=-1)
        threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
        # right=True: the first place whose cumulative weight exceeds the threshold, never one of weight 0
        tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _filtered(logprobs: Tensor, params: SamplingParams) -> Tensor:
    """Log-weights with all but the top_k tokens, and all outside the nucleus of mass top_p, at -inf."""
    if params.top_k > 0:
        threshold = logprobs.topk(min(params.top_k, logprobs.shape[-1]), dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < threshold, -torch.inf)
    if params.top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        mass_before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(1, order, mass_before >= params.top_p)
        logprobs = logprobs.masked_fill(outside, -torch.inf)
    return logprobs
