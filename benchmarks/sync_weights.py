"""Bringing new weights into the rollout engines: seconds, share of a step, and memory on top of what was there.

python benchmarks/sync_weights.py [--hidden 768 --layers 12] [--processes 2]
Runs GRPO-shaped steps (generate, update, sync) on random prompts with a randomly initialised model, for each engine and placement.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from r1ranker.model.init import save_hf, train_tokenizer
from r1ranker.rollout.engine import Request, SamplingParams
from r1ranker.trainer import cluster as cluster_module
from r1ranker.trainer.cluster import Cluster, call_all, started
from r1ranker.trainer.config_load import load_config
from r1ranker.trainer.dispatch import Budget, generate, update
from r1ranker.trainer.process import Process
from r1ranker.trainer.trajectory import Trajectory
from r1ranker.trainer.workers import Worker

VOCABULARY = 2000
SETUPS = {
    "hf, colocated": ("actor_rollout_ref.rollout.name=hf",),
    "vllm, colocated": ("actor_rollout_ref.rollout.name=vllm",),
    "vllm, separate": ("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.placement=separate"),
}


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
    return (
        np.array([int(anon) + int(file), int(shared)]) * 1024
    )  # a model read from its file moves from one to the other


def watched(kind: type[Process]) -> type[Process]:
    """The same kind of process, whose weight methods report the memory they took on top."""

    class Watched(kind):  # type: ignore[misc, valid-type]
        above = np.zeros(2, dtype=np.int64)

        def sync_weights(self) -> None:
            with Peak() as peak:
                super().sync_weights()
            self.above = np.maximum(self.above, peak.above)

        def export_weights(self, queues: Any) -> None:
            with Peak() as peak:
                super().export_weights(queues)
            self.above = np.maximum(self.above, peak.above)

        def load_weights(self, queue: Any) -> None:
            with Peak() as peak:
                super().load_weights(queue)
            self.above = np.maximum(self.above, peak.above)

        def memory_above(self) -> np.ndarray:
            return self.above

    return Watched


def build(directory: str, hidden: int, layers: int) -> int:
    """Write the model; returns its parameters."""
    tokenizer = train_tokenizer(["a b c d e f g"], VOCABULARY)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 256), max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    save_hf(directory, model, tokenizer)
    return sum(parameter.numel() for parameter in model.parameters())


def step(cluster: Cluster, seed: int, prompts: int, prompt_tokens: int, response_tokens: int) -> dict[str, float]:
    """Seconds of each part of a step."""
    random = np.random.default_rng(seed)
    requests = [Request(random.integers(300, VOCABULARY, prompt_tokens).tolist(), index) for index in range(prompts)]
    timing, began = {}, time.perf_counter()
    completions = generate(cluster, requests, SamplingParams(n=4, max_tokens=response_tokens))
    timing["generate"], began = time.perf_counter() - began, time.perf_counter()
    trajectories = [
        Trajectory(
            list(request.token_ids), one.token_ids, np.array(one.logprobs), one.finish_reason, group,
            advantages=random.normal(size=len(one.token_ids)), weights=np.full(len(one.token_ids), 1e-3),
        )
        for group, (request, samples) in enumerate(zip(requests, completions, strict=True))
        for one in samples
    ]  # fmt: skip
    update(cluster, trajectories, Budget(2048), "update_policy")
    timing["update"], began = time.perf_counter() - began, time.perf_counter()
    cluster.sync_weights()
    timing["sync"] = time.perf_counter() - began
    return timing


def main() -> None:
    """Print one row a setup."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, default=256)
    parser.add_argument("--response_tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    cluster_module.Worker = watched(Worker)  # type: ignore[misc, assignment]
    cluster_module.RolloutProcess = watched(cluster_module.RolloutProcess)  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as directory:
        parameters = build(directory, options.hidden, options.layers)
        size = 4 * parameters
        print(f"{parameters / 1e6:.0f}M parameters, {size / 2**20:.0f} MiB in float32, {options.processes} processes")
        print(
            "Memory above the start in models of this size: the process's own pages + pages of Ray's shared memory it has seen"
        )
        print("| engine | generate s | update s | sync s | share of the step | trainer | rollout |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, overrides in SETUPS.items():
            config = load_config(
                "quickstart",
                [
                    "data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={directory}", "trainer.executor=ray",
                    f"trainer.n_gpus_per_node={options.processes}", "data.max_prompt_length=1024", *overrides,
                ],
            )  # fmt: skip
            with started(config, options.steps) as cluster:
                timings = [
                    step(cluster, seed, options.prompts, options.prompt_tokens, options.response_tokens)
                    for seed in range(options.steps)
                ][1:]  # the first warms up
                means = {part: float(np.mean([timing[part] for timing in timings])) for part in timings[0]}
                share = means["sync"] / sum(means.values())
                above = np.max(call_all(cluster, "memory_above"), axis=0) / size
                apart = np.max(call_all(cluster.rollout, "memory_above"), axis=0) / size
            rollout = "{:.2f} + {:.2f}".format(*apart) if "separate" in name else "the same process"
            print(
                f"| {name} | {means['generate']:.2f} | {means['update']:.2f} | {means['sync']:.2f} | {share:.1%} | "
                f"{above[0]:.2f} + {above[1]:.2f} | {rollout} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
