"""The widths of a decoder, as its config states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Widths:
    """Sizes of the blocks and of the embeddings around them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    """of the feed-forward layer; of all experts that a token meets, where the config states no other"""
    vocabulary: int

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Widths:
        """Those of the text model; raises KeyError for a config that does not state them."""
        text = config.get_text_config()
        stated = text.to_dict()

        def read(name: str) -> Any:
            try:
                return getattr(text, name)  # by its other names as well
            except (AttributeError, RuntimeError):  # RuntimeError: it differs from layer to layer
                return stated.get(name)

        def size(name: str) -> int:
            if not (found := read(name)):
                raise KeyError(name)
            return int(found)

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        experts = (read("moe_intermediate_size") or 0) * (read("num_experts_per_tok") or 1)
        return cls(
            hidden=hidden,
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=read("num_key_value_heads") or heads,
            head_width=read("head_dim") or hidden // heads,
            intermediate=read("intermediate_size") or experts,
            vocabulary=size("vocab_size"),
        )
