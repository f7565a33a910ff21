"""Log-probabilities and entropies of response tokens from logits, under the same temperature and constraint as sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        scores = _scores_of(logits, constrained if reads is None else reads, allowed) / scale
        chosen = (allowed == targets[constrained][:, None]).float().argmax(dim=1)
        of_tokens, of_rows = _from_scores(scores, chosen, with_entropy, entropy_requires_grad)
        logprobs = logprobs.index_put((constrained,), of_tokens)
        if entropy is not None and of_rows is not None:
            entropy = entropy.index_put((constrained,), of_rows)
    if len(constrained) < rows:
        is_free = torch.ones(rows, dtype=torch.bool, device=logits.device)
        is_free[constrained] = False
        free = is_free.nonzero()[:, 0]
        scores = (logits if len(free) == rows else logits[free]).float()
        if scale != 1.0:
            scores = scores / scale
        of_tokens, of_rows = _from_scores(scores, targets[free], with_entropy, entropy_requires_grad)
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
    scores: Tensor, chosen: Tensor, with_entropy: bool, entropy_requires_grad: bool
) -> tuple[Tensor, Tensor | None]:
    if with_entropy and entropy_requires_grad:
        every = scores.log_softmax(dim=1)  # large scores less their logsumexp would lose the digits that matter
        # -inf scores have probability 0 and no part in the expectation: 0 * -inf would be NaN
        expected = (every.exp() * every.masked_fill(scores == -torch.inf, 0.0)).sum(dim=1)
        return every.gather(1, chosen[:, None])[:, 0], -expected
    logprobs, entropy = _ChosenLogprobs.apply(scores, chosen, with_entropy)
    return logprobs, entropy if with_entropy else None


class _ChosenLogprobs(torch.autograd.Function):
    """Log-probabilities [R] of the chosen columns of scores [R, V], and entropies [R] without gradient (zeros if not asked for).

    One buffer of the size of the scores is kept, and turned into their gradient in place.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, chosen: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        every = scores.log_softmax(dim=1)
        logprobs = every.gather(1, chosen[:, None])[:, 0]
        entropy = torch.zeros_like(logprobs)
        if with_entropy:
            probabilities = every.exp()
            # a score of -inf has probability 0 and no part in the expectation: the bound keeps 0 * -inf from being NaN
            entropy = -torch.linalg.vecdot(probabilities, every.clamp_min_(torch.finfo(every.dtype).min))
            every = probabilities
        ctx.save_for_backward(every, chosen)
        ctx.holds_probabilities = with_entropy
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        every, chosen = ctx.saved_tensors
        probabilities = every if ctx.holds_probabilities else every.exp_()
        of_scores = probabilities.mul_(-gradients[0][:, None])
        return of_scores.scatter_add_(1, chosen[:, None], gradients[0][:, None]), None, None
