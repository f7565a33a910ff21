"""Log-probabilities and entropies of response tokens from logits, under the same temperature and constraint as sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from r1ranker.model.blocks import split_rows

BLOCK_NUMBERS = 2**24
"""of the float32 arrays that logits are turned into: 64 MiB each"""
CPU_BLOCK_NUMBERS = 2**20
"""of those on a CPU: 4 MiB"""


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    constrained: Tensor,
    allowed: Tensor,
    with_entropy: bool,
    entropy_requires_grad: bool = True,
    reads: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [R] of `targets` [R] in the distributions of `logits` [R, V], and their entropies [R] in nats.

    Rows listed in `constrained` [C] are distributions over the ids in `allowed` [C, K] alone (padded with -1).
    With `reads` [R] target r is of the distribution of row reads[r] of logits [P, V]; all are constrained then.
    Without `entropy_requires_grad` the entropies carry no gradient, whose buffers would be three times those of the rest.
    """
    rows = len(targets)
    if rows == 0:  # still a function of the model, so that a process without work can take part in the backward pass
        nothing = logits.float().sum(dim=1)
        return nothing, nothing if with_entropy else None
    scale = temperature or 1.0
    logprobs = logits.new_zeros(rows, dtype=torch.float32)
    entropy = logits.new_zeros(rows, dtype=torch.float32) if with_entropy else None
    if len(constrained):
        scores = _scores_of(logits, constrained if reads is None else reads, allowed)
        chosen = (allowed == targets[constrained][:, None]).float().argmax(dim=1)
        of_tokens, of_rows = _from_scores(scores, chosen, with_entropy, entropy_requires_grad, scale)
        logprobs = logprobs.index_put((constrained,), of_tokens)
        if entropy is not None and of_rows is not None:
            entropy = entropy.index_put((constrained,), of_rows)
    if len(constrained) < rows:
        is_free = torch.ones(rows, dtype=torch.bool, device=logits.device)
        is_free[constrained] = False
        free = is_free.nonzero()[:, 0]
        some = None if len(free) == rows else free
        of_tokens, of_rows = _from_scores(logits, targets[free], with_entropy, entropy_requires_grad, scale, some)
        logprobs = logprobs.index_put((free,), of_tokens)
        if entropy is not None and of_rows is not None:
            entropy = entropy.index_put((free,), of_rows)
    return logprobs, entropy


def _scores_of(logits: Tensor, rows: Tensor, allowed: Tensor) -> Tensor:
    """Logits [C, K] of the ids `allowed` [C, K] in `rows` [C] of logits [P, V], -inf for padding."""
    # a flat index: no copy of whole rows, and on the CPU a gradient summed in a fixed order where rows are read repeatedly
    places = rows[:, None] * logits.shape[1] + allowed.clamp_min(0)
    scores = logits.flatten().index_select(0, places.flatten()).view(allowed.shape).float()
    return scores.masked_fill(allowed < 0, -torch.inf)


def _from_scores(
    scores: Tensor,
    chosen: Tensor,
    with_entropy: bool,
    entropy_requires_grad: bool,
    scale: float,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [R] of the columns `chosen` [R] of scores / scale, and entropies [R]; of `rows` [R] of the scores, or of all."""
    if with_entropy and entropy_requires_grad:
        scores = scores if rows is None else scores[rows]
        # large scores less their logsumexp would lose the digits that matter
        every = _scaled(scores, scale).log_softmax(dim=1)
        # -inf scores have probability 0 and no part in the expectation: 0 * -inf would be NaN
        expected = (every.exp() * every.masked_fill(scores == -torch.inf, 0.0)).sum(dim=1)
        return every.gather(1, chosen[:, None])[:, 0], -expected
    logprobs, entropy = _ChosenLogprobs.apply(scores, chosen, with_entropy, scale, rows)
    return logprobs, entropy if with_entropy else None


def _scaled(scores: Tensor, scale: float) -> Tensor:
    wide = scores.float()
    return wide if scale == 1.0 else wide / scale


class _ChosenLogprobs(torch.autograd.Function):
    """Log-probabilities [R] of the chosen columns of scores / scale, and entropies [R] without gradient (zeros if not asked for).

    Of the scores [R, V], or of `rows` [R] of them. The scores alone are kept. What is computed in float32 comes in blocks of rows,
    and once more in the backward pass; on a CPU a block stays in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, chosen: Tensor, with_entropy: bool, scale: float, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logprobs = scores.new_empty(len(chosen), dtype=torch.float32)
        entropy = torch.zeros_like(logprobs)
        for block, places in _blocks(scores, len(chosen), rows):
            every = _scaled(scores[places], scale).log_softmax(dim=1)
            logprobs[block] = every.gather(1, chosen[block, None])[:, 0]
            if with_entropy:
                probabilities = every.exp()
                # a score of -inf has probability 0 and no part in the expectation: the bound keeps 0 * -inf from being NaN
                every.clamp_min_(torch.finfo(every.dtype).min)
                entropy[block] = -torch.linalg.vecdot(probabilities, every)
        ctx.save_for_backward(scores, chosen, rows)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        scores, chosen, rows = ctx.saved_tensors
        of_scores = torch.empty_like(scores) if rows is None else torch.zeros_like(scores)
        for block, places in _blocks(scores, len(chosen), rows):
            own = gradients[0][block, None]
            of_block = _scaled(scores[places], ctx.scale).softmax(dim=1).mul_(-own)
            of_block.scatter_add_(1, chosen[block, None], own)
            if ctx.scale != 1.0:
                of_block.div_(ctx.scale)
            of_scores[places] = of_block.to(scores.dtype)
        return of_scores, None, None, None, None


def _blocks(scores: Tensor, count: int, rows: Tensor | None) -> Iterator[tuple[slice, slice | Tensor]]:
    """Blocks of `count` log-probabilities, each with its places in the scores: those of `rows`, or the same."""
    for block in split_rows(count, scores.shape[1], CPU_BLOCK_NUMBERS if scores.is_cpu else BLOCK_NUMBERS):
        yield block, block if rows is None else rows[block]
