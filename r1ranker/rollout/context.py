"""How many tokens of prompt and response a model holds, and whether what is asked for fits."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from r1ranker.errors import UserError, first_line
from r1ranker.pretrained import check_model_directory

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


def load_context_length(path: str) -> int | None:
    """The same of a model directory or hub id; raises UserError where its config cannot be read."""
    check_model_directory(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: config.json cannot be read ({first_line(error, 300)})") from error
    return context_length(config)


def smaller_of(*lengths: int | None) -> int | None:
    """The smallest of several bounds; None is none."""
    return min((one for one in lengths if one is not None), default=None)


def check_fits(path: str, prompt: int, response: int, advice: str) -> None:
    """Raise UserError where a model holds fewer tokens than the longest prompt and a response together."""
    limit = load_context_length(path) or math.inf
    if prompt + response > limit:
        raise UserError(
            f"{path}: the longest prompt has {prompt:,} tokens and a response up to {response:,}, {prompt + response:,} "
            f"together; the model holds {limit:,}; {advice}"
        )


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Those of rotary embeddings: a dict, or one a kind of layer."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    nested = [one for one in found.values() if isinstance(one, dict)]
    return [one for one in nested if one] if nested else [found]
