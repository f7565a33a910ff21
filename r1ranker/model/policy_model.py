"""A causal language model that gives the log-probabilities of sampled tokens, and never holds more than some rows of logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from r1ranker.model.logprobs import token_logprobs

LOGITS_BYTES = 2**28
"""of the logits that are there at once; more tokens are computed in chunks, and once more in the backward pass"""
CPU_CHUNK_BYTES = 2**26
"""of such a chunk on a CPU, which computes small ones as fast"""


def bound_rows(rows: int, of_row: int, on_cpu: bool) -> int:
    """Of `rows` of logits with `of_row` bytes each, how many are there at once; at least 1."""
    most = LOGITS_BYTES
    if on_cpu and rows * of_row > most:
        most = min(most, CPU_CHUNK_BYTES)
    return max(1, min(rows, most // of_row))


class PolicyModel(nn.Module):
    """Log-probabilities and entropies at given places of a packed row; `language_model` is the model itself."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.language_model: Any = language_model

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer blocks, the units of sharding."""
        layers: nn.ModuleList = self.language_model.base_model.layers
        return layers

    def forward(
        self,
        predicting: Tensor,
        targets: Tensor,
        constrained: Tensor,
        allowed: Tensor,
        temperature: float,
        with_entropy: bool,
        entropy_requires_grad: bool,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [R] of `targets` [R] at the places `predicting` [R] of the row, and their entropies [R] if asked for.

        `constrained` [C] and `allowed` [C, K] are those of token_logprobs; `inputs` go to the model's trunk.
        """
        hidden = self.language_model.base_model(use_cache=False, **inputs).last_hidden_state[0]
        reads: Tensor | None = None
        head = self.language_model.get_output_embeddings()
        width = self.language_model.config.vocab_size
        if 0 < len(targets) == len(constrained):
            # the logits of a place are computed once for all the samples there, and of the tokens that some place allows alone
            predicting, reads = predicting.unique(return_inverse=True)
            ids = allowed[allowed >= 0].unique()
            width = len(ids)
            weight, bias = (
                head.weight.index_select(0, ids),
                None if head.bias is None else head.bias.index_select(0, ids),
            )
            head = partial(functional.linear, weight=weight, bias=bias)
            targets = torch.searchsorted(ids, targets)
            allowed = torch.where(allowed < 0, allowed, torch.searchsorted(ids, allowed))
        states = hidden[predicting]

        def of_rows(states: Tensor, *chunk: Tensor, reads: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            logits = self._scaled(head(states))
            return token_logprobs(
                logits, chunk[0], temperature, chunk[1], chunk[2], with_entropy, entropy_requires_grad, reads
            )

        # an entropy that learns has all of them in float32
        itemsize = torch.float32.itemsize if with_entropy and entropy_requires_grad else states.itemsize
        rows = bound_rows(len(states), itemsize * width, states.is_cpu)
        if len(states) <= rows:
            logprobs, entropy = of_rows(states, targets, constrained, allowed, reads=reads)
            # copies: FSDP hangs a hook on what is returned, which a view would lose
            return logprobs.clone(), entropy
        states = states if reads is None else states[reads]
        parts = []
        for start in range(0, len(states), rows):
            own = (constrained >= start) & (constrained < start + rows)
            chunk = targets[start : start + rows], constrained[own] - start, allowed[own]
            if torch.is_grad_enabled():
                parts.append(checkpoint(of_rows, states[start : start + rows], *chunk, use_reentrant=False))
            else:
                parts.append(of_rows(states[start : start + rows], *chunk))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]) if with_entropy else None

    def _scaled(self, logits: Tensor) -> Tensor:
        """Logits [R, V] as the model's own forward pass makes them of its output layer's."""
        config = self.language_model.config
        if getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        bound = getattr(config, "final_logit_softcapping", None)  # Gemma
        return bound * torch.tanh(logits / bound) if bound else logits
