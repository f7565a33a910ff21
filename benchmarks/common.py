"""What several benchmarks need: sizes of models, a random Qwen2-shaped model with a tokenizer, groups of random trajectories, peaks of memory."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from r1ranker.model.init import save_hf, train_tokenizer
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.batch.trajectory import Trajectory

QWEN_SHAPES: dict[str, dict[str, Any]] = {
    name: {"vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True} | sizes
    for name, sizes in {
        "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14},
        "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "num_attention_heads": 12},
        "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "num_attention_heads": 16},
        "7B": {
            "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944, "num_attention_heads": 28,
            "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
        },
    }.items()
}  # fmt: skip
"""name -> sizes of a Qwen2.5, as Qwen2Config takes them"""


def build(directory: str, hidden: int = 256, layers: int = 4, vocabulary: int = 8192, heads: int = 0) -> int:
    """Write a randomly initialised model (two query heads a key head, feed-forward four times as wide); returns its parameters."""
    tokenizer = train_tokenizer(["a b c d e f g"], vocabulary)
    heads = heads or max(2, hidden // 64)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    save_hf(directory, model, tokenizer)
    return sum(parameter.numel() for parameter in model.parameters())


def groups(count: int, prompt: int, response: int, n: int, vocabulary: int = 8192, seed: int = 0) -> list[Trajectory]:
    """`count` groups of `n` random responses each, ready for an update."""
    random = np.random.default_rng(seed)
    made = []
    for group in range(count):
        prompt_ids = random.integers(0, vocabulary, prompt).tolist()
        for _ in range(n):
            response_ids = random.integers(0, vocabulary, response).tolist()
            logprobs = random.normal(-9, 0.1, response)
            made.append(Trajectory(list(prompt_ids), response_ids, logprobs, "length", group, ref_logprobs=logprobs))
    return learnable(made, random)


def learnable(trajectories: list[Trajectory], random: np.random.Generator) -> list[Trajectory]:
    """The same with random advantages and returns, and shares in the loss."""
    assign_loss_weights(trajectories, "token-mean")
    for one in trajectories:
        one.advantages = one.returns = random.normal(size=len(one.response_ids))
    return trajectories


class Peak:
    """Highest resident memory of this process while the block runs, in bytes above its start: its own and shared pages."""

    def __enter__(self) -> Peak:
        self._running = True
        self._start = self._highest = _resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self._highest = np.maximum(self._highest, _resident())
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        self._running = False
        self._thread.join()
        self.above: np.ndarray = np.maximum(self._highest, _resident()) - self._start


def _resident() -> np.ndarray:
    """Bytes in pages of the process's own, and in shared memory: [2]."""
    anon, file, shared = re.findall(r"Rss(?:Anon|File|Shmem):\s+(\d+) kB", Path("/proc/self/status").read_text())
    # a model read from its file moves from one to the other
    return np.array([int(anon) + int(file), int(shared)]) * 1024
