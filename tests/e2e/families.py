"""Tiny models of well-known families: what sets each family's network, tokenizer and chat template apart, at random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.chat_models import FAMILIES as TEMPLATES
from fuzz.chat_models import KINDS
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from r1ranker.model.twin import build_twin

WORDS, PIECES = "byte-level, words with what stands before them", "SentencePiece, never"
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
WINDOW = 1024
"""of Gemma 3 from 4B on; prompts and answers of the built-in data are shorter"""
ROTATED = 6
"""frequencies of a head of Phi-4-mini: three quarters of 16 dimensions, in pairs"""


@dataclass(frozen=True)
class Family:
    """A family of models, as its config.json and tokenizer_config.json have it but for sizes."""

    config: type[PretrainedConfig]
    settings: dict[str, Any]
    """of the config"""
    template: str
    """its name among the chat templates"""
    kind: str
    """of tokenizer"""
    bos: str | None
    eos: str
    pad: str
    others: tuple[str, ...] = ()
    """more special tokens"""
    adds_bos: bool = False
    """the tokenizer itself writes a BOS before any text, as the template does"""
    stop: tuple[str, ...] = field(default=())
    """tokens besides `eos` that end a response by generation_config.json"""


FAMILIES = {
    "Llama 3": Family(
        LlamaConfig,
        {
            "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 256},
        },
        "Llama 3", WORDS, "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"), adds_bos=True, stop=("<|end_of_text|>",),
    ),
    "Mistral": Family(  # 7B Instruct v0.1, whose template refuses a system turn
        MistralConfig, {"sliding_window": 4096, "max_position_embeddings": 32768, "tie_word_embeddings": False},
        "Mistral v0.1", "SentencePiece, normalizer", "<s>", "</s>", "</s>", adds_bos=True,
    ),
    "Gemma 3": Family(
        Gemma3TextConfig,
        {
            "num_hidden_layers": 4, "sliding_window": WINDOW, "head_dim": 32, "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "max_position_embeddings": 32768,
            "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True,
        },
        "Gemma 3", PIECES, "<bos>", "<eos>", "<pad>", ("<start_of_turn>", "<end_of_turn>"), adds_bos=True, stop=("<end_of_turn>",),
    ),
    "Qwen3": Family(
        Qwen3Config,
        {"head_dim": 32, "rope_theta": 1e6, "max_position_embeddings": 40960, "use_sliding_window": False, "tie_word_embeddings": True},
        "Qwen3", WORDS, None, "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), stop=("<|endoftext|>",),
    ),
    "Phi-4-mini": Family(
        Phi3Config,
        {
            "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0 + 0.1 * place for place in range(ROTATED)],
                             "long_factor": [1.0 + 4 * place for place in range(ROTATED)]},
            "sliding_window": 262144, "tie_word_embeddings": True,
        },
        "Phi 4 mini", WORDS, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), stop=("<|end|>",),
    ),
    "OLMo 2": Family(
        Olmo2Config, {"rope_theta": 500000.0, "max_position_embeddings": 4096, "tie_word_embeddings": False},
        "OLMo 2", WORDS, "<|endoftext|>", "<|endoftext|>", "<|pad|>",
    ),
    "Gemma 2": Family(  # the caps are as far below 50 and 30 as its scores and logits are below those of a trained model
        Gemma2Config,
        {
            "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 32,
            "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
        },
        "Gemma 2", PIECES, "<bos>", "<eos>", "<pad>", ("<start_of_turn>", "<end_of_turn>"), adds_bos=True, stop=("<end_of_turn>",),
    ),
}  # fmt: skip


def build_model(name: str, directory: Path, **settings: Any) -> str:
    """Write a model of a family, with `settings` in place of the config's own; returns its directory."""
    family = FAMILIES[name]
    tokenizer = build_tokenizer(family)
    rows = 64 * (len(tokenizer) // 64 + 1)  # of the embedding; as with most families, no token has the last ids
    ids = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    model = build_twin(family.config(**{**SMALL, **family.settings, **ids, "vocab_size": rows, **settings}), "eager")
    stop = [tokenizer.convert_tokens_to_ids(token) for token in (family.eos, *family.stop)]
    model.generation_config = GenerationConfig(do_sample=True, **{**ids, "eos_token_id": stop})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, with its special tokens and its template."""
    raw = KINDS[family.kind]()
    if family.template == "Qwen3":
        raw.normalizer = normalizers.NFC()
    special = dict.fromkeys(token for token in (family.bos, family.eos, family.pad, *family.others) if token)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if family.adds_bos and family.bos is not None:
        raw.post_processor = TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, raw.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=TEMPLATES[family.template].template,
        clean_up_tokenization_spaces=False,
    )
