"""Seconds and memory of a step as batch, prompt, response, group, candidates, model and processes grow, with a fitted exponent each.

python benchmarks/scaling.py [--runs 3] [--axes batch prompt ...]
A step: generation, reference pass and update of a randomly initialised model (4 layers of width 256, one micro-batch of at most
4,096 tokens at a time) on random prompts; one thing grows, the others stay. An exponent e says that cost goes with size^e between the
smallest and the largest size, by least squares on logarithms. Each size runs in a process of its own; memory is the highest of reference
pass and update above what the process holds after a step on a single short prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from common import Peak, build, groups, learnable

from r1ranker.rollout.engine import Request, SamplingParams
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.workers.cluster import Cluster, start_cluster
from r1ranker.trainer.workers.dispatch import fill, generate, update

VOCABULARY = 8192
TITLE, REST = 10, 100
"""tokens of a candidate in a prompt, and of everything else"""


@dataclass(frozen=True)
class Size:
    """Of a step."""

    batch: int = 8
    """prompts"""
    prompt: int = 400
    response: int = 32
    group: int = 4
    processes: int = 1
    hidden: int = 256
    layers: int = 4


AXES: dict[str, list[Size]] = {
    "batch": [Size(batch=batch) for batch in (4, 8, 16, 32, 64)],
    "prompt": [Size(prompt=prompt) for prompt in (100, 200, 400, 800, 1600)],
    "response": [Size(response=response) for response in (16, 32, 64, 128, 256)],
    "group": [Size(group=group) for group in (2, 4, 8, 16, 32)],
    "candidates": [Size(prompt=REST + TITLE * count) for count in (5, 10, 20, 40, 80)],
    "model": [
        Size(hidden=hidden, layers=layers) for hidden, layers in ((64, 1), (128, 4), (256, 6), (512, 8), (768, 14))
    ],
    "processes": [Size(batch=16, processes=count) for count in (1, 2)],
}


def step(cluster: Cluster, size: Size, seed: int) -> dict[str, float]:
    """Seconds of each part of a step."""
    random = np.random.default_rng(seed)
    requests = [
        Request(random.integers(300, VOCABULARY, size.prompt).tolist(), seed * 1000 + place)
        for place in range(size.batch)
    ]
    timing, began = {}, time.perf_counter()
    completions = generate(cluster, requests, SamplingParams(n=size.group, max_tokens=size.response))
    timing["generation"] = time.perf_counter() - began
    trajectories = learnable(
        [
            Trajectory(list(request.token_ids), one.token_ids, np.array(one.logprobs), one.finish_reason, group)
            for group, (request, samples) in enumerate(zip(requests, completions, strict=True))
            for one in samples
        ],
        random,
    )
    return timing | passes(cluster, trajectories)


def passes(cluster: Cluster, trajectories: list[Trajectory]) -> dict[str, float]:
    """Seconds of the reference pass and the update."""
    began = time.perf_counter()
    fill(cluster, trajectories, "ref_logprobs", Budget(4096), "logprobs", "reference")
    timing, began = {"reference": time.perf_counter() - began}, time.perf_counter()
    update(cluster, trajectories, Budget(4096), "update_policy")
    timing["update"] = time.perf_counter() - began
    cluster.sync_weights()  # the engine slept meanwhile
    return timing


def measure(directory: str, size: Size, runs: int) -> dict[str, float]:
    """Median seconds of each part, and MiB of the passes (of this process, where it does the work)."""
    config = load_config(
        "quickstart",
        [
            "data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={directory}", "data.max_prompt_length=2048",
            "actor_rollout_ref.actor.use_kl_loss=true", f"trainer.n_gpus_per_node={size.processes}",
            f"trainer.executor={'local' if size.processes == 1 else 'ray'}",
        ],
    )  # fmt: skip
    with start_cluster(config, runs) as cluster:
        step(cluster, Size(1, 16, 4, 2), 0)
        with Peak() as peak:  # before anything large was generated, whose freed memory would be used again
            passes(cluster, groups(size.batch, size.prompt, size.response, size.group))
        timings = [step(cluster, size, seed) for seed in range(runs + 1)][1:]
    medians = {part: median(timing[part] for timing in timings) for part in timings[0]}
    return medians | {"step": median(sum(timing.values()) for timing in timings), "MiB": peak.above[0] / 2**20}


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of log cost over log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _value(axis: str, size: Size, millions: float) -> float:
    """What grows along an axis; of models their parameters, in millions."""
    if axis == "model":
        return millions
    return (size.prompt - REST) // TITLE if axis == "candidates" else getattr(size, axis)


def main() -> None:
    """Print a table an axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--size", nargs="+", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    if options.size:
        print(json.dumps(measure(options.model, replace(Size(*options.size)), options.runs)))
        return
    with tempfile.TemporaryDirectory() as directory:
        parameters: dict[tuple[int, int], float] = {}
        for axis in options.axes:
            print(
                f"\n| {axis} | generation s | reference s | update s | step s | MiB |\n| --- | --- | --- | --- | --- | --- |"
            )
            rows, values = [], []
            for size in AXES[axis]:
                numbers = [str(value) for value in vars(size).values()]
                shape = (size.hidden, size.layers)
                model = f"{directory}/{size.hidden}-{size.layers}"
                if shape not in parameters:
                    parameters[shape] = build(model, *shape, vocabulary=VOCABULARY) / 1e6
                command = [
                    sys.executable,
                    __file__,
                    "--model",
                    model,
                    "--runs",
                    str(options.runs),
                    "--size",
                    *numbers,
                ]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                row = json.loads(printed.strip().splitlines()[-1])
                value = _value(axis, size, parameters[shape])
                rows.append(row)
                values.append(float(value))
                memory = f"{row['MiB']:.0f}" if size.processes == 1 else ""
                cells = " | ".join(f"{row[part]:.2f}" for part in ("generation", "reference", "update", "step"))
                print(f"| {value:{'.1f' if axis == 'model' else 'd'}} | {cells} | {memory} |", flush=True)
            fitted = [
                exponent(values, [row[part] for row in rows]) for part in ("generation", "reference", "update", "step")
            ]
            memory = f"{exponent(values, [max(1.0, row['MiB']) for row in rows]):.2f}" if axis != "processes" else ""
            print(f"| exponent | {' | '.join(f'{one:.2f}' for one in fitted)} | {memory} |")


if __name__ == "__main__":
    main()
