"""A decoding step's blocks in fewer calls of torch, with the bits of transformers' own: with few rows, calls take half of the time."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from r1ranker.model.norms import epsilon_of, is_root_mean_square, normalise
from r1ranker.rollout.hf_cache import Decode, layer_of
from r1ranker.rollout.hf_packed import PackedLinear

_KINDS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""of transformers' own: normalisation before attention and before the feed-forward layers, and nothing behind them"""


class _Block:
    """What a step reads of a block, gathered once: modules look their attributes up slowly."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer, self._scaling, self._width = layer_of(attention), attention.scaling, attention.head_dim
        self._heads, self._groups = (
            projection.out_features // self._width for projection in (attention.q_proj, attention.k_proj)
        )
        self._before, self._between = (
            (norm.weight, epsilon_of(norm)) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        rotated = slice(self._heads), slice(self._heads, self._heads + self._groups)
        self._of_heads = [
            (own, norm.weight, epsilon_of(norm)) for own, norm in zip(rotated, _head_norms(attention), strict=False)
        ]
        self._in, self._out = attention.q_proj.stack, attention.o_proj.stack
        self._up, self._down, self._activate = mlp.gate_proj.stack, mlp.down_proj.stack, mlp.act_fn.forward

    def decode(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Decode) -> Tensor:
        """The hidden states [B, F] behind the block, of those before it and the cosines and sines [1, B, D] of their positions."""
        count, heads, groups, width = len(hidden), self._heads, self._groups, self._width
        projected = self._in.multiply_all(normalise(hidden, *self._before)).view(count, -1, width)  # [B, H + 2 Hkv, D]
        for own, weight, eps in self._of_heads:
            projected[:, own] = normalise(projected[:, own], weight, eps)
        queries, keys, values = projected.split([heads, groups, groups], dim=1)
        _rotate(projected[:, : heads + groups], cos[0, :, None], sin[0, :, None])
        queries = queries.view(count, groups, -1, width)
        attended = attend.attend_rows(self._layer, queries, keys, values, self._scaling)
        hidden = self._out.multiply_all(attended.view(count, -1)).add_(hidden)
        gate, up = self._up.multiply_all(normalise(hidden, *self._between)).chunk(2, dim=-1)
        return self._down.multiply_all(self._activate(gate).mul_(up)).add_(hidden)


def use_fast_layers(model: nn.Module) -> None:
    """Have the blocks whose weights are packed compute decoding steps so."""
    for module in list(model.modules()):
        if _is_known(module):
            layer: Any = module
            layer.block = _Block(layer)
            kind: Any = type(layer)
            layer.__class__ = _fast(kind)


def _is_known(module: Any) -> bool:
    kind = type(module)
    if kind.__name__ not in _KINDS or not kind.__module__.startswith("transformers.models."):
        return False
    attention, mlp = module.self_attn, module.mlp
    stacks = [
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    ]
    norms = [module.input_layernorm, module.post_attention_layernorm, *_head_norms(attention)]
    kinds: list[Any] = [type(norm) for norm in norms]
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return (
        all(
            isinstance(layer, PackedLinear) and layer.stack is together[0].stack
            for together in stacks
            for layer in together
        )
        and all(is_root_mean_square(kind) for kind in kinds)
        and window is None
    )


def _head_norms(attention: Any) -> list[Any]:
    return [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []


@cache
def _fast(kind: type[Any]) -> type[Any]:
    def forward(self: Any, hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        attend = named.get("attend")
        if isinstance(attend, Decode):
            return self.block.decode(hidden_states[0], *named["position_embeddings"], attend)[None]
        return kind.forward(self, hidden_states, *others, **named)

    return type(kind.__name__, (kind,), {"forward": forward})


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of x [B, N, D] in place: pairs (i, i + D / 2), as transformers has them."""
    half = x.shape[-1] // 2
    turned = x.roll(half, dims=-1).mul_(sin)
    turned[..., :half].neg_()
    x.mul_(cos).add_(turned)
