"""A small twin of a model: the same architecture, layer by layer, with narrow layers and random weights.

What an architecture computes is seen on it in a fraction of a second, before any weights are read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 128
MOST_PARAMETERS = 10**8
"""of a twin; where widths that are not known here make it larger, it is not built"""

_WIDTHS = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), 64),
    **dict.fromkeys(("head_dim", "global_head_dim", "attention_head_dim", "swa_head_dim"), 16),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(
        ("intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "ffn_dim", "ffn_hidden_size"), 96
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "laurel_rank"), 8),
    **{"qk_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "query_pre_attn_scalar"), 16),
    **{"linear_num_heads": 4, "mamba_n_heads": 16, "mamba_d_head": 8, "mamba_d_ssm": 128},
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "mamba_d_state", "ssm_state_size"), 8),
}
"""names of sizes in configs, and what a twin has in their place where it has more"""
_WINDOWS = (
    *("sliding_window", "sliding_window_size", "attention_chunk_size", "attention_window_size"),
    *("window_size", "local_attention", "index_topk", "index_topk_blocks"),
)
"""names of how far back a token attends"""
_CAP = "attn_logit_softcapping"


def narrow_config(config: PretrainedConfig, window: int | None = None) -> PretrainedConfig:
    """A copy of `config` with as many layers of the same types, narrow ones, and windows of `window` tokens if given."""
    narrow = copy.deepcopy(config)
    for part in {id(one): one for one in (narrow, narrow.get_text_config())}.values():
        sizes = _sizes(part)
        changes = _narrower(sizes) | _without_tokens(part)
        if getattr(part, _CAP, None):
            changes[_CAP] = 2.0  # the scores of random weights are small
        if window is not None:
            changes |= dict.fromkeys(sizes.keys() & _WINDOWS, window)
        for name, value in changes.items():
            with suppress(AttributeError):  # computed of others
                setattr(part, name, value)
        _cut_factors(part)
    return narrow


def has_windows(config: PretrainedConfig) -> bool:
    """Whether `config` names any limit on how far back a token attends."""
    return any(_sizes(part).keys() & _WINDOWS for part in (config, config.get_text_config()))


def _sizes(config: PretrainedConfig) -> dict[str, int]:
    """The whole numbers above 0 in `config`."""
    return {name: value for name, value in config.to_dict().items() if type(value) is int and value > 0}


def _narrower(sizes: Mapping[str, int]) -> dict[str, int]:
    changes = {name: small for name, small in _WIDTHS.items() if sizes.get(name, 0) > small}
    heads, groups = sizes.get("num_attention_heads"), sizes.get("num_key_value_heads")
    if heads and groups:
        fewer = min(heads, 4)
        changes |= {"num_attention_heads": fewer, "num_key_value_heads": fewer if groups == heads else min(groups, 2)}
        if "hidden_size" in changes:
            changes["hidden_size"] = 16 * fewer
        elif "hidden_size" in sizes:  # small as it is, and made for its own number of heads
            changes |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    if "qk_rope_head_dim" in sizes and "head_dim" in sizes:
        changes["head_dim"] = 8  # multi-head latent attention: the part that is rotated
    if "state_size" in sizes and "num_heads" in sizes:
        changes["num_heads"] = 8  # Mamba 2: heads as wide together as what is expanded
    return changes


def _cut_factors(config: PretrainedConfig) -> None:
    """Give rotary embeddings with a factor for each frequency (LongRoPE) as many as narrow heads have frequencies."""
    found = getattr(config, "rope_parameters", None)
    for rope in [found, *found.values()] if isinstance(found, dict) else []:
        if not isinstance(rope, dict):
            continue
        share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        for name in ("short_factor", "long_factor"):
            if isinstance(rope.get(name), list):
                width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
                rope[name] = rope[name][: int(width * share) // 2]


def _without_tokens(config: PretrainedConfig) -> dict[str, Any]:
    """Ids of special tokens within the small vocabulary."""
    found = {name: getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {name: 0 if isinstance(ids, int) else [0] * len(ids) for name, ids in found.items() if ids is not None}


def sketch_twin(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a narrow `config` without storage. Raises ValueError where it is no small one."""
    with torch.device("meta"):
        model = _from_config(config, "eager")
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"with narrow layers it still has {size:,} parameters")
    return model


@torch.no_grad()
def build_twin(config: PretrainedConfig, attention: str, seed: int = 0) -> PreTrainedModel:
    """The model of a narrow `config` in float32 on the CPU, in evaluation mode; the same seed gives the same weights.

    The weights are large enough for attention to be far from even, so that what it leaves out shows. Raises whatever
    transformers raises for a config that it cannot build.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _from_config(config, attention).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        _randomise(name, parameter, generator)
    return model


def _from_config(config: PretrainedConfig, attention: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
    )
    return model


def _randomise(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim < 2:  # biases and factors of norms stay near what they begin with
        parameter.add_(0.1 * noise)
        return
    gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
    parameter.copy_(noise * gain / parameter.shape[-1] ** 0.5)
