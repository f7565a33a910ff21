"""Bringing new weights into the rollout engines: seconds, share of a step, and memory on top of what was there.

python benchmarks/sync_weights.py [--hidden 768 --layers 12] [--processes 2]
Runs GRPO-shaped steps (generate, update, sync) on random prompts with a randomly initialised model, for each engine and placement.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import numpy as np
import torch
from common import Peak, build

from r1ranker.rollout.engine import Request, SamplingParams
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.workers import hosts
from r1ranker.trainer.workers.cluster import Cluster, call_all, start_cluster
from r1ranker.trainer.workers.dispatch import generate, update
from r1ranker.trainer.workers.process import Process, RolloutProcess
from r1ranker.trainer.workers.worker import Worker

VOCABULARY = 2000
SETUPS = {
    "hf, colocated": ("actor_rollout_ref.rollout.name=hf",),
    "vllm, colocated": ("actor_rollout_ref.rollout.name=vllm",),
    "vllm, separate": ("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.placement=separate"),
}


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


class WatchedTrainer(hosts.TrainerHost):
    """Holds such a worker."""

    def __init__(self) -> None:
        self._kind = watched(Worker)


class WatchedRollout(hosts.RolloutHost):
    """Holds such a process of the rollout."""

    def __init__(self) -> None:
        self._kind = watched(RolloutProcess)


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
    hosts.TrainerHost, hosts.RolloutHost = WatchedTrainer, WatchedRollout  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as directory:
        parameters = build(directory, options.hidden, options.layers, VOCABULARY)
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
            with start_cluster(config, options.steps) as cluster:
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
