"""Keys and values of the responses under way, and the attention that reads and writes them. Registered as 'grouped'.

A prompt's are kept once for all samples of it, a response's own beside them; a query attends to both, and the two parts
are brought together by the logarithms of their softmax's denominators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from r1ranker.model.attention import check_full_attention, packed_attention
from r1ranker.model.layout import RowLayout
from r1ranker.model.prefix_attention import flash_forward

GROUPED = "grouped"


class KVCache:
    """Keys and values of every layer in slots [N, H, T, D or E]; N, up to `most`, and T grow as they are needed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.length = 0
        """T"""
        self._count = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """of each layer: keys and values; none before the first pass"""

    def reserve(self, count: int, length: int) -> None:
        """Have room for `count` slots of `length` tokens; what is in the slots stays."""
        if count <= self._count and length <= self.length:
            return
        # doubled, so that requests that come one by one do not each have everything copied
        self._count = self._count if count <= self._count else max(count, min(2 * self._count, self.most))
        self.length = max(length, self.length)
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = (self._widened(keys), self._widened(values))

    def _widened(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self._count, old.shape[1], self.length, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def get_layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, made like `key` and `value` [1, H, _, D or E] where they are not there yet."""
        if layer not in self.layers:
            # zeros: what is masked is multiplied by a weight of 0, which only finite values turn into 0
            keys, values = (
                tensor.new_zeros(self._count, tensor.shape[1], self.length, tensor.shape[3]) for tensor in (key, value)
            )
            self.layers[layer] = (keys, values)
        return self.layers[layer]

    def fill(self, slot: int, layers: Mapping[int, tuple[Tensor, Tensor]], length: int) -> None:
        """Put the first `length` tokens of a sequence's keys and values [H, T, D or E] into a slot."""
        for layer, pair in layers.items():
            own = self.get_layer(layer, pair[0][None], pair[1][None])
            for stored, new in zip(own, pair, strict=True):
                stored[slot, :, :length] = new[:, :length]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of some slots into others."""
        for pair in self.layers.values():
            for tensor in pair:
                tensor[targets, :, :length] = tensor[sources, :, :length]


class Attend(Protocol):
    """What a forward pass does in place of a model's attention."""

    @property
    def max_seqlen(self) -> int:
        """tokens of the longest sequence, with those of this pass"""
        ...

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Keep key [1, Hkv, T, D] and value [1, Hkv, T, E]; the attention of query [1, H, T, D] as [1, T, H, E]."""
        ...


@dataclass(frozen=True)
class Prefill:
    """A packed row of whole prompts, each attending to itself, whose keys and values go into slots."""

    prompts: KVCache
    slots: Sequence[int]
    """of each prompt"""
    layout: RowLayout

    @property
    def max_seqlen(self) -> int:
        return self.layout.max_seqlen_k

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        for stored, new in zip(self.prompts.get_layer(layer_of(module), key, value), (key, value), strict=True):
            for slot, (start, end) in zip(self.slots, self.layout.spans, strict=True):
                stored[slot, :, : end - start] = new[0, :, start:end]
        return packed_attention(module, query, key, value, None, layout=self.layout, scaling=scaling, softcap=softcap)[
            0
        ]


@dataclass(frozen=True)
class Decode:
    """One token of each of B responses, attending to its prompt and to the response so far."""

    prompts: KVCache
    responses: KVCache
    members: Tensor
    """[G, M]: the responses of each prompt, filled up with any"""
    places: Tensor | None
    """[B]: where each response stands in the flattened members; none where they are the responses in order"""
    prompt_bias: Tensor
    """[G, P]: 0 for a prompt's tokens, -inf after them; in the type of the queries"""
    response_bias: Tensor | None
    """[B, T]: likewise of the responses, this token included; none where all are as long"""
    written: tuple[Any, ...]
    """index of the places that these tokens take in slots [N, H, T, _], as [B, H, _]"""
    length: int
    """T: tokens of the longest response, with this one"""
    max_seqlen: int

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        # the query heads that share keys are rows of one product, and so are all responses to a prompt
        queries = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        of_rows = key[0].transpose(0, 1), value[0].transpose(0, 1)
        return self.attend_rows(layer_of(module), queries, *of_rows, scaling, softcap)[None]

    def attend_rows(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None = None
    ) -> Tensor:
        """Keep keys [B, Hkv, D] and values [B, Hkv, E]; the attention of queries [B, Hkv, H / Hkv, D] as [B, H, E]."""
        count, (groups, longest_prompt) = len(queries), self.prompt_bias.shape
        own_keys, own_values = self.responses.get_layer(layer, keys[:, :, None], values[:, :, None])
        own_keys[self.written] = keys
        own_values[self.written] = values
        own_keys, own_values = own_keys[:count, :, : self.length], own_values[:count, :, : self.length]
        of_own, mass_of_own = _part(queries, own_keys, own_values, self.response_bias, scaling, softcap)

        grouped = queries if self.places is None else queries[self.members.flatten()]
        grouped = grouped.unflatten(0, (groups, -1)).transpose(1, 2)
        prompt_keys, prompt_values = self.prompts.layers[layer]
        prompt_keys, prompt_values = (
            prompt_keys[:groups, :, :longest_prompt],
            prompt_values[:groups, :, :longest_prompt],
        )
        of_prompt, mass_of_prompt = _part(
            grouped.flatten(2, 3), prompt_keys, prompt_values, self.prompt_bias, scaling, softcap
        )
        of_prompt = self._by_response(of_prompt, grouped.shape)
        mass_of_prompt = self._by_response(mass_of_prompt, grouped.shape)
        merged = torch.lerp(of_own, of_prompt, torch.sigmoid(mass_of_prompt - mass_of_own))
        return merged.to(queries.dtype).view(count, -1, merged.shape[-1])

    def _by_response(self, of_prompts: Tensor, shape: torch.Size) -> Tensor:
        """[B, Hkv, H / Hkv, E or 1] of [G, Hkv, M H / Hkv, E or 1], where `shape` begins with G, Hkv, M, H / Hkv."""
        by_place = of_prompts.view(*shape[:4], -1).transpose(1, 2).flatten(0, 1)
        return by_place if self.places is None else by_place[self.places]


def _part(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention of queries [N, H, R, D] over keys [N, H, T, D] and values [N, H, T, E], in float32; a bias [N, T] is added to the scores.

    Returns it [N, H, R, E] and the logarithm of the softmax's denominator [N, H, R, 1]. On the CPU it is one kernel of torch's, which takes
    an eighth of the time of the steps below where few queries meet a long prompt, and no more with many.
    """
    added = None if bias is None else bias[:, None, None]
    if query.is_cpu and not softcap and values.shape[3] == query.shape[3]:
        out, mass = flash_forward(query, keys, values, 0.0, False, attn_mask=added, scale=scaling)
        return out.float(), mass[..., None]
    shape = (*query.shape[:3], keys.shape[2])
    scores = torch.bmm((query * scaling).flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).float().view(shape)
    if softcap:
        scores.div_(softcap).tanh_().mul_(softcap)
    if added is not None:
        scores.add_(added)
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    summed = torch.bmm(weights.flatten(0, 1).to(values.dtype), values.flatten(0, 1)).view(*query.shape[:3], -1)
    return summed / total, highest + total.log()


def layer_of(module: nn.Module) -> int:
    """The number of the block that an attention module is in."""
    layer: Any = module.layer_idx
    return int(layer)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attend: Attend,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, H, T, D] over key [1, Hkv, T, D], value [1, Hkv, T, E] and what `attend` keeps; [1, T, H, E].

    Raises UserError as check_full_attention does.
    """
    check_full_attention(attention_mask, dropout, sliding_window, others, attend.max_seqlen)
    return attend(module, query, key, value, scaling, softcap), None


def register_grouped() -> None:
    """Make `attn_implementation="grouped"` known to transformers."""
    AttentionInterface.register(GROUPED, grouped_attention)
