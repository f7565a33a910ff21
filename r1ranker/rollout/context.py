"""How many tokens of prompt and response a model holds, and whether what is asked for fits."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig

from r1ranker.errors import UserError
from r1ranker.pretrained import load_model_config

_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""what configs call the number of positions; the smallest counts"""
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""kinds of rotary embeddings whose number of positions has the factor in it already"""


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for, as vLLM derives them from its config; None: it has no bound.

    Linear and dynamic scaling of rotary embeddings multiplies the positions; Gemma 3 states them scaled.
    """
    text = config.get_text_config()
    found = getattr(text, "model_max_length", None) or min(
        (value for key in _KEYS if (value := getattr(text, key, None)) is not None), default=None
    )
    if found is None or "gemma3" in text.model_type:
        return found
    factors = [rope.get("factor") for rope in _rope_parameters(text) if rope.get("rope_type") not in _SCALED]
    return int(found * next((factor for factor in reversed(factors) if factor), 1.0))


def attention_window(config: PretrainedConfig) -> int | None:
    """Tokens that a model's layers look back over, where some look back over no more; None: all over everything."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def steady_positions(config: PretrainedConfig) -> int | None:
    """Positions up to which a sequence's rotary embeddings do not depend on the others of its row; None: at any.

    transformers takes those of the longest sequence for a whole row, beyond what a model with LongRoPE or dynamic scaling
    was first trained with.
    """
    text = config.get_text_config()
    limits: list[int | None] = []
    for rope in _rope_parameters(text):
        kind = str(rope.get("rope_type") or rope.get("type"))
        if "dynamic" in kind:
            limits.append(getattr(text, "max_position_embeddings", None))
        elif kind in ("longrope", "su"):
            name = "original_max_position_embeddings"
            limits.append(rope.get(name) or getattr(text, name, None) or getattr(text, "max_position_embeddings", None))
    return smaller_of(*limits)


def load_context_length(path: str) -> int | None:
    """`context_length` of a model directory or hub id; raises UserError where its config cannot be read."""
    return context_length(load_model_config(path))


def smaller_of(*lengths: int | None) -> int | None:
    """The smallest of several bounds; None is none."""
    return min((one for one in lengths if one is not None), default=None)


def check_fits(path: str, prompt: int, response: int, advice: str) -> None:
    """Raise UserError where a model holds fewer tokens than the longest prompt and a response together."""
    limit, words = find_limit(path)
    if limit is not None and prompt + response > limit:
        raise UserError(
            f"{path}: the longest prompt has {prompt:,} tokens and a response up to {response:,}, "
            f"{prompt + response:,} together; {words} {limit:,}; {advice}"
        )


def find_limit(path: str, by_vllm: bool = False) -> tuple[int | None, str]:
    """Tokens of a prompt and a response that can be computed with a model (None: any number), and words for what bounds them.

    `by_vllm`: it is computed by vLLM alone, which knows windows of attention and gives each sequence its own rotary
    embeddings. The trainer and the transformers engine do not.
    """
    config = load_model_config(path)
    limits = [(context_length(config), "the model holds")]
    if not by_vllm:
        limits.append((attention_window(config), "its layers attend over a window of"))
        limits.append((steady_positions(config), "its rotary embeddings change for whole rows beyond"))
    return min(limits, key=lambda one: math.inf if one[0] is None else one[0])


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Those of rotary embeddings: a dict, or one a kind of layer."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    nested = [one for one in found.values() if isinstance(one, dict)]
    return [one for one in nested if one] if nested else [found]
