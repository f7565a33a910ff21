"""Log-probabilities and entropies of response tokens from logits, under the same temperature and constraint as sampling."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    constrained: Tensor,
    allowed: Tensor,
    with_entropy: bool,
    entropy_learns: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [R] of `targets` [R] in the distributions of `logits` [R, V], and their entropies [R] in nats.

    Rows listed in `constrained` [C] are distributions over the ids in `allowed` [C, K] alone (padded with -1).
    Without `entropy_learns` the entropies carry no gradient, whose buffers would be three times those of the rest.
    """
    rows = len(targets)
    if rows == 0:  # still a function of the model, so that a process without work can take part in the backward pass
        nothing = logits.float().sum(dim=1)
        return nothing, nothing if with_entropy else None
    scale = temperature or 1.0
    logprobs = logits.new_zeros(rows, dtype=torch.float32)
    entropy = logits.new_zeros(rows, dtype=torch.float32) if with_entropy else None
    if len(constrained):
        scores = logits[constrained].gather(1, allowed.clamp_min(0)).float() / scale
        scores = scores.masked_fill(allowed < 0, -torch.inf)
        chosen = (allowed == targets[constrained][:, None]).float().argmax(dim=1)
        of_tokens, of_rows = _from_scores(scores, chosen, with_entropy, entropy_learns)
        logprobs = logprobs.index_put((constrained,), of_tokens)
        if entropy is not None and of_rows is not None:
            entropy = entropy.index_put((constrained,), of_rows)
    if len(constrained) < rows:
        is_free = torch.ones(rows, dtype=torch.bool, device=logits.device)
        is_free[constrained] = False
        free = is_free.nonzero()[:, 0]
        scores = (logits if len(free) == rows else logits[free]).float() / scale
        of_tokens, of_rows = _from_scores(scores, targets[free], with_entropy, entropy_learns)
        logprobs = logprobs.index_put((free,), of_tokens)
        if entropy is not None and of_rows is not None:
            entropy = entropy.index_put((free,), of_rows)
    return logprobs, entropy


def _from_scores(
    scores: Tensor, chosen: Tensor, with_entropy: bool, entropy_learns: bool
) -> tuple[Tensor, Tensor | None]:
    normaliser = scores.logsumexp(dim=1)
    logprobs = scores.gather(1, chosen[:, None])[:, 0] - normaliser
    if not with_entropy:
        return logprobs, None
    with torch.set_grad_enabled(entropy_learns and torch.is_grad_enabled()):
        probabilities = (scores - normaliser[:, None]).exp()
        # -inf scores have probability 0 and no part in the expectation: 0 * -inf would be NaN
        expected = (probabilities * scores.masked_fill(scores == -torch.inf, 0.0)).sum(dim=1)
        return logprobs, normaliser - expected
