"""What benchmarks of whole steps train on: a random model and prompts of words of so many tokens, or a real model and rows of a data set; a
reward that is soon learned."""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from r1ranker import pretrained
from r1ranker.data.files.parquet import example_to_row, read_training_rows, write_rows
from r1ranker.data.tokenise import encode_chat
from r1ranker.model.init import LABELS, TAGS, save_hf, train_tokenizer
from r1ranker.rewards import register
from r1ranker.tasks.example import RankingExample
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config

# an EOS past the embedding can never be sampled, so that both sides make as many tokens; r1ranker refuses such a tokenizer otherwise
pretrained._check_ids = lambda path, tokenizer: None

GROUP = 8
"""completions a prompt"""
PROMPTS = 8
"""a step"""
BETA = 0.04
"""of the KL term"""
LANGUAGE_PROMPTS, LANGUAGE_NEW, SHORT_NEW = 2, 64, 128
"""prompts a step with a real model; new tokens after rows of a data set, and after prompts of 100 tokens"""
SYLLABLES = ("ba", "den", "fi", "gol", "hu", "kam", "li", "mor", "ne", "pos", "ru", "sil", "tan", "ver", "wo", "zu")


@dataclass(frozen=True)
class Shape:
    """Tokens of the prompts, from the shortest to the longest, and of every completion; tokens that there are."""

    shortest: int
    longest: int
    new: int
    vocabulary: int = 8192


SHAPES = {"ranking": Shape(380, 420, 64), "short": Shape(100, 100, 128)}


@dataclass(frozen=True)
class Bench:
    """What both sides train on."""

    model: str
    rows: str
    prompts: list[str]
    """the chat as text, which TRL tokenises to what `rows` give"""
    prompt_tokens: int
    """of a step, each prompt once for each of its completions"""
    shape: Shape
    directory: str

    @property
    def tokens(self) -> int:
        """Of a step: prompts and completions of all sequences."""
        return self.prompt_tokens + len(self.prompts) * GROUP * self.shape.new


def early_letters(text: str) -> float:
    """Share of the text's letters that come before n in the alphabet: near a half at random, and soon learned."""
    letters = re.findall("[a-z]", re.sub(r"<\|\w+\|>", "", text.lower()))  # one side leaves control tokens out
    return sum(letter < "n" for letter in letters) / max(1, len(letters))


@register("early_letters")
def _early_letters(
    data_source: str, solution_str: str, ground_truth: Mapping[str, Any], extra_info: Mapping[str, Any] | None = None
) -> float:
    return early_letters(solution_str)


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """What `make_chosen` makes, and what it is computed in."""
    parser.add_argument("--shape", choices=SHAPES, default="ranking")
    parser.add_argument("--model", help="directory of a model that is trained in place of a random one")
    parser.add_argument("--rows", metavar="NAME=FILE", help="what --model is trained on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def make_chosen(directory: str, options: argparse.Namespace, steps: int, *overrides: str) -> Config:
    """The config of so many steps on what `add_shape_options` asks for."""
    bench = make(directory, options.rows or options.shape, options.model, 1)
    return config_of(bench, steps, 1e-3, 1, f"actor_rollout_ref.model.dtype={options.dtype}", *overrides)


def make(directory: str, shape: str | Shape, model: str | None, seed: int) -> Bench:
    """What a shape trains on: a random model and words, or `model` and the rows of NAME=FILE (NAME alone: prompts of 100 tokens)."""
    if isinstance(shape, Shape) or not model:
        return build(directory, shape if isinstance(shape, Shape) else SHAPES[shape], seed)
    _, _, rows = shape.partition("=")
    return build_language(directory, model, rows or None, LANGUAGE_PROMPTS, LANGUAGE_NEW if rows else SHORT_NEW, seed)


def build(directory: str, shape: Shape, seed: int) -> Bench:
    """Write model, tokenizer and training rows."""
    rng = random.Random(seed)
    words = sorted({"".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(20000)})
    tokenizer = train_tokenizer(
        (" ".join(rng.choices(words, k=50)) for _ in range(4000)), shape.vocabulary - len(TAGS) - len(LABELS)
    )
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    assert tokenizer.eos_token_id == vocabulary  # one past the last row of the embedding
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    save_hf(f"{directory}/model", model, tokenizer)
    span = shape.longest - shape.shortest
    lengths = [shape.shortest + round(span * place / (PROMPTS - 1)) for place in range(PROMPTS)]
    chats = [_chat(_worded(tokenizer, words, length, rng)) for length in lengths]
    return _bench(directory, tokenizer, chats, shape)


def build_language(directory: str, model: str, rows: str | None, prompts: int, new: int, seed: int) -> Bench:
    """Copy a model without its EOS, and write the first prompts of the file `rows`; None: prompts of 100 tokens."""
    target = Path(directory) / "model"
    shutil.copytree(model, target)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    config = json.loads((target / "config.json").read_text())
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    assert tokenizer.eos_token_id == config["vocab_size"]  # one past the last row of the embedding
    tokenizer.save_pretrained(target)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (target / "config.json").write_text(json.dumps(config | ends))
    (target / "generation_config.json").write_text(json.dumps(ends | {"do_sample": True}))
    if rows is None:
        rng = random.Random(seed)
        words = ["film", "song", "about", "the", "night", "of", "summer", "they", "sing", "with", "their", "horses"]
        chats = [_chat(_worded(tokenizer, words, 100, rng)) for _ in range(prompts)]
    else:
        chats = [row["prompt"] for row in islice(read_training_rows([rows]), prompts)]
    lengths = [len(encode_chat(tokenizer, chat)) for chat in chats]
    return _bench(directory, tokenizer, chats, Shape(min(lengths), max(lengths), new, config["vocab_size"]))


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _bench(directory: str, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Any], shape: Shape) -> Bench:
    """Write `chats` as training rows."""
    rows, prompts, count = [], [], 0
    for index, messages in enumerate(chats):
        example = RankingExample("Rec-Movie", ("a", "b"), "a")
        rows.append(example_to_row(example, "direct", "train", index) | {"prompt": list(messages)})
        ids = encode_chat(tokenizer, messages)
        prompts.append(str(tokenizer.decode(ids)))
        assert tokenizer(text=prompts[-1])["input_ids"] == ids
        count += len(ids)
    write_rows(rows, f"{directory}/train.parquet")
    return Bench(f"{directory}/model", f"{directory}/train.parquet", prompts, GROUP * count, shape, directory)


def _worded(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], length: int, rng: random.Random) -> str:
    """Words that make a prompt of exactly so many tokens."""
    chosen: list[str] = []
    while True:
        tried = [*chosen, rng.choice(words)]
        found = len(encode_chat(tokenizer, [{"role": "user", "content": " ".join(tried)}]))
        if found == length:
            return " ".join(tried)
        if found < length:
            chosen = tried


def config_of(bench: Bench, steps: int, lr: float, seed: int, *overrides: str) -> Config:
    """One update a step with a KL term, every completion as long as it may be."""
    actor = "actor_rollout_ref.actor"
    return load_config(
        "quickstart",
        [
            f"data.train_files={bench.rows}", f"data.cache_dir={bench.directory}/cache", f"data.train_batch_size={len(bench.prompts)}",
            f"data.max_prompt_length={bench.shape.longest}", f"data.max_response_length={bench.shape.new}",
            f"actor_rollout_ref.model.path={bench.model}", f"actor_rollout_ref.rollout.n={GROUP}",
            "actor_rollout_ref.rollout.constrain=none", f"{actor}.ppo_mini_batch_size={len(bench.prompts)}", f"{actor}.use_kl_loss=true",
            f"{actor}.kl_loss_coef={BETA}", f"{actor}.optim.lr={lr}", f"{actor}.optim.lr_scheduler_type=constant",
            f"{actor}.optim.lr_warmup_steps=0", "trainer.executor=local", "trainer.val_before_train=false", f"trainer.seed={seed}",
            f"trainer.total_training_steps={steps}", f"trainer.total_epochs={steps}",
            f"trainer.default_local_dir={bench.directory}/ours", "custom_reward_function.name=early_letters", *overrides,
        ],
    )  # fmt: skip
