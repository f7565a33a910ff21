"""The critic: a language model's trunk with a value head on every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ValueModel(nn.Module):
    """Values of states, from the hidden states of a causal language model whose output embedding is dropped."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.trunk: Any = language_model.base_model
        self.head = nn.Linear(language_model.config.hidden_size, 1, bias=True, dtype=torch.float32)
        # zero: the first values are 0 everywhere, so that advantages start as plain returns
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, positions_of_interest: Tensor, **inputs: Any) -> Tensor:
        """Values [R] in float32 at the given places of the packed row `input_ids` [1, T]."""
        hidden = self.trunk(use_cache=False, **inputs).last_hidden_state[0]
        # a copy: FSDP hangs a hook on what is returned, which a view would lose
        return self.head(hidden[positions_of_interest])[:, 0].float().clone()

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer blocks, the units of sharding."""
        layers: nn.ModuleList = self.trunk.layers
        return layers
