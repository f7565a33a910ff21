"""Keys and values of sequences that may be gone on with: what a prompt shares with the one before it is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from r1ranker.model.attention import attend_at_end
from r1ranker.model.layout import RowLayout
from r1ranker.rollout.hf_cache import KVCache, layer_of

KEPT_TOKENS = 2**15
"""of all sequences that are kept: half of what prompts under way may have"""


class Kept(NamedTuple):
    """A sequence that was computed."""

    ids: tuple[int, ...]
    layers: dict[int, tuple[Tensor, Tensor]]
    """of each layer: keys and values [H, len(ids), D or E]"""

    def shared_with(self, prompt: Sequence[int]) -> int:
        """Tokens that `prompt` begins with as this does; fewer than it has, since its last one has to be computed."""
        most = min(len(self.ids), len(prompt) - 1)
        return next((place for place in range(most) if self.ids[place] != prompt[place]), most)


class KeptSequences:
    """What was computed last under each key, as long as there is room: what came first stays."""

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self._tokens = 0

    def has_room(self, tokens: int) -> bool:
        """Whether a sequence of so many can be kept beside the others."""
        return self._tokens + tokens <= KEPT_TOKENS

    def put(self, key: int, sequence: Kept) -> None:
        """Keep a sequence, for which there is room, until it is taken."""
        self.take(key)
        self._kept[key] = sequence
        self._tokens += len(sequence.ids)

    def take(self, key: int) -> Kept | None:
        """What is kept under a key, and is not any more."""
        found = self._kept.pop(key, None)
        self._tokens -= len(found.ids) if found else 0
        return found


def copy_sequence(
    ids: Sequence[int], prompts: KVCache, slot: int, prompt_length: int, responses: KVCache, row: int
) -> Kept:
    """A prompt of `prompt_length` tokens in its slot, and what was computed of a response in its row."""
    written = len(ids) - prompt_length

    def whole(layer: int, which: int) -> Tensor:
        of_prompt = prompts.layers[layer][which][slot, :, :prompt_length]
        if not written:
            return of_prompt.clone()
        return torch.cat([of_prompt, responses.layers[layer][which][row, :, :written]], dim=1)

    return Kept(tuple(ids), {layer: (whole(layer, 0), whole(layer, 1)) for layer in prompts.layers})


@dataclass(frozen=True)
class Extend:
    """A packed row of what comes behind the first tokens of each prompt, whose keys and values are in its slot."""

    prompts: KVCache
    slots: Sequence[int]
    """of each prompt"""
    starts: Sequence[int]
    """tokens of each that are in its slot"""
    layout: RowLayout
    """of what comes behind them"""

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest prompt."""
        return max(start + length for start, length in zip(self.starts, self.layout.lengths, strict=True))

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        keys, values = self.prompts.get_layer(layer_of(module), key, value)
        parts = []
        for slot, start, (first, end) in zip(self.slots, self.starts, self.layout.spans, strict=True):
            whole = start + end - first
            keys[slot, :, start:whole] = key[0, :, first:end]
            values[slot, :, start:whole] = value[0, :, first:end]
            parts.append(
                attend_at_end(
                    query[:, :, first:end], keys[slot, None, :, :whole], values[slot, None, :, :whole], scaling, softcap
                )
            )
        return torch.cat(parts, dim=2)[0].transpose(0, 1)
