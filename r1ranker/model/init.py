"""Building a small base model: a Qwen2-shaped network with random weights and a tokenizer trained on the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from r1ranker.atomic import atomic_path
from r1ranker.data.files.parquet import read_training_rows, row_to_example
from r1ranker.errors import UserError
from r1ranker.pretrained import silence_transformers
from r1ranker.tasks.prompts import NEXT_ROUND
from r1ranker.tasks.text import sanitise

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""that vLLM's attention on the CPU has kernels for"""
TURNS = tuple(f"{end}<|im_start|>{role}\n" for end in ("", "<|im_end|>\n") for role in ("system", "user", "assistant"))
"""what the chat template has between messages"""
LABELS = tuple(f"[{position}]" for position in range(1, 21))
BULLET = "\n- "
"""before each item of a history and each candidate; with the item's name it is one token"""
LINE = re.compile(r"\n*^(?!- )[^\n]+", flags=re.MULTILINE)
WORD = re.compile(r"\w+")
COMMON, LEAST = 50, 10
"""a line that stands in one text of so many, and in so many at least, is one token"""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ModelSize:
    """Shape of the network."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    intermediate_size: int = 0
    """0: four times the hidden size"""
    max_positions: int = 4096
    tie_embeddings: bool = True


def init_model(
    directory: str,
    data_files: Sequence[str],
    size: ModelSize | None = None,
    vocab_size: int = 2000,
    title_tokens: bool = False,
    title_words: bool = False,
    turn_tokens: bool = False,
    seed: int = 1,
) -> int:
    """Write a randomly initialised model and its tokenizer to `directory`; returns its number of parameters.

    The tokenizer is byte-level BPE of at most `vocab_size` tokens, trained on the prompts in `data_files` (training
    parquet); with `title_tokens` every candidate, every item of a list and every line that many prompts share becomes one
    token on top of these; with `title_words` too, titles that share words begin alike (`word_vectors`); with `turn_tokens` what a
    conversation says between two eliminations is a token.
    Raises UserError for impossible sizes, `title_words` without `title_tokens`, and unreadable data.
    """
    size = size or ModelSize()
    _check(size, vocab_size)
    if title_words and not title_tokens:
        raise UserError("--title-words: found without --title-tokens; it is about what these begin with")
    names = sorted(_names(read_training_rows(data_files))) if title_tokens else []
    lines = common_lines(_texts(read_training_rows(data_files))) if title_tokens else []
    lines += [NEXT_ROUND] if turn_tokens else []
    tokenizer = train_tokenizer(_texts(read_training_rows(data_files)), vocab_size, names, lines)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size or 4 * size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.max_positions,
        tie_word_embeddings=size.tie_embeddings,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        if title_words:
            _begin_with_words(model, tokenizer, names)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    save_hf(directory, model, tokenizer)
    return sum(parameter.numel() for parameter in model.parameters())


def common_lines(texts: Iterable[str]) -> list[str]:
    """Lines that many texts share and that are no item of a list, with the line breaks before them."""
    counts: Counter[str] = Counter()
    number = 0
    for text in texts:
        number += 1
        counts.update(set(LINE.findall(text)))
    return sorted(line for line, count in counts.items() if count >= max(LEAST, number / COMMON))


def word_vectors(names: Sequence[str], width: int) -> torch.Tensor:
    """Vectors [names, width] of unit variance: the sum of a random vector for each of a name's words, scaled.

    Two names are as near as the words that they share: their cosine is, but for the noise of random vectors, that of their sets
    of words. New tokens are usually begun with the mean of the pieces that spelled them (Hewitt, 'Initializing New Word Embeddings
    for Pretrained Language Models', 2021); a model with random weights has no such pieces yet.
    """
    words = [set(WORD.findall(name.casefold())) or {name} for name in names]
    places = {word: place for place, word in enumerate(sorted(set().union(*words)))}
    vectors = torch.randn(len(places), width)
    sums = torch.stack([vectors[sorted(places[word] for word in own)].sum(0) for own in words])
    return torch.nn.functional.normalize(sums, dim=1) * width**0.5


def _begin_with_words(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, names: Sequence[str]) -> None:
    """Give both tokens of a name, in the input and the output, the same vector, made of its words."""
    vocabulary = tokenizer.get_vocab()
    kept = [name for name in names if BULLET + name in vocabulary]  # the others are spelled
    vectors = word_vectors(kept, model.config.hidden_size) * model.config.initializer_range
    with torch.no_grad():
        for before in ("", BULLET):
            ids = torch.tensor([vocabulary[before + name] for name in kept])
            for embeddings in (model.model.embed_tokens, model.lm_head):
                embeddings.weight[ids] = vectors


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, names: Sequence[str] = (), lines: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML control tokens; tags, labels [1]..[20], `lines` and `names` are one token each.

    A name has a second token for its place in a list: what is asked about and what is answered need not be alike, and the fewer
    tokens say the same thing in every prompt, the sooner a small network learns from the others.

    A name that the byte-level decoder would take for bytes, such as 'Alien³', is spelled instead.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, 256 + len(CONTROL_TOKENS)),
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    kept = [name for name in names if name.isascii() or not alphabet.issuperset(name)]
    whole = dict.fromkeys(
        (*TAGS, *LABELS, *kept, *(BULLET + name for name in kept), *lines, *([BULLET] if names else []))
    )
    raw.add_tokens([AddedToken(name, special=False, normalized=False) for name in whole])
    raw.add_special_tokens([AddedToken(turn, special=True, normalized=False) for turn in TURNS])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_hf(directory: str, model: Any, tokenizer: Any) -> None:
    """Write a Hugging Face directory (config, safetensors, tokenizer), whole or not at all."""
    silence_transformers()
    with atomic_path(Path(directory)) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)


def _texts(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        for message in row["prompt"]:
            yield message["content"]


def _names(rows: Iterable[dict[str, Any]]) -> set[str]:
    """Names of candidates, and of items in histories, as they are shown in prompts."""
    names: set[str] = set()
    for row in rows:
        names.update(sanitise(name) for name in row["reward_model"]["ground_truth"]["candidate_text"])
        if str(row["extra_info"]["task_name"]).startswith("Rec-"):
            names.update(sanitise(item) for item in row_to_example(row).history)
    return names


def _check(size: ModelSize, vocab_size: int) -> None:
    if min(size.hidden_size, size.layers, size.heads, size.kv_heads, size.max_positions) < 1 or vocab_size < 1:
        raise UserError(
            "--hidden-size, --layers, --heads, --kv-heads, --max-positions and --vocab-size must be at least 1"
        )
    if size.hidden_size % size.heads:
        raise UserError(f"--hidden-size {size.hidden_size} is not a multiple of --heads {size.heads}")
    width = size.hidden_size // size.heads
    if width not in HEAD_WIDTHS:
        raise UserError(
            f"--hidden-size {size.hidden_size} over --heads {size.heads} gives heads of width {width}; "
            f"vLLM takes one of {', '.join(map(str, HEAD_WIDTHS))}"
        )
    if size.heads % size.kv_heads:
        raise UserError(f"--heads {size.heads} is not a multiple of --kv-heads {size.kv_heads}")
