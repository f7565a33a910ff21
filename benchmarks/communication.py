"""What an update sends, by arithmetic and as counted: a process of 4, 8 and 64 that are thought of (torch's fake process group).

python benchmarks/communication.py [--processes 4 8 64] [--micro-batches 1 4]
A model of 6 million parameters in a process of its own for each row. Nothing is sent: what FSDP2 asks the process group for is counted.
Arithmetic (Rajbhandari et al. 2020, ZeRO, section 7): each micro-batch gathers the weights before the forward pass and those of the
blocks again before the backward pass, and scatters a gradient of each weight in float32; of each a process sends its own share of
(N - 1) / N.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from common import build, groups
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from r1ranker.model.execution import ExecutionOptions
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.memory.shape import MASTER, load_shape


def count(model: str, processes: int, micro_batches: int) -> dict[str, float]:
    """Calls and MiB that one process takes part in for an update of so many micro-batches."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    config = load_config(
        "quickstart", ["data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={model}"]
    )
    policy = Policy(model, torch.device("cpu"), 1.0, ExecutionOptions(processes))
    sent = {"gathers": 0.0, "gathered": 0.0, "scatters": 0.0, "scattered": 0.0}

    def counted(
        function: Callable[..., Any], calls: str, size: str, whole: Callable[..., torch.Tensor]
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            sent[calls] += 1
            sent[size] += whole(*arguments, **named).nbytes * (processes - 1) / processes / 2**20
            return function(*arguments, **named)

        return call

    # what FSDP2 calls: its gathers fill their first argument, its scatters take `input`
    gather, scatter = dist.all_gather_single, dist.reduce_scatter_single
    dist.all_gather_single = counted(gather, "gathers", "gathered", lambda output, *_, **__: output)
    dist.reduce_scatter_single = counted(scatter, "scatters", "scattered", lambda *, input, **_: input)
    bins = [groups(1, 40, 8, 2) for _ in range(micro_batches)]
    policy.accumulate_gradients(bins, PolicyLoss.from_config(config.actor_rollout_ref.actor))
    return sent


def main() -> None:
    """Print a row for each number of processes and micro-batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, default=[4, 8, 64])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--count", nargs=3, metavar=("MODEL", "PROCESSES", "MICRO_BATCHES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        model, processes, micro_batches = options.count
        print(json.dumps(count(model, int(processes), int(micro_batches))))
        return
    print(
        "| processes | micro-batches | gathers | gathered, MiB | arithmetic | scatters | scattered, MiB | arithmetic |"
    )
    print("| --- " * 8 + "|")
    with tempfile.TemporaryDirectory() as directory:
        build(directory)
        shape = load_shape(directory)
        for processes in options.processes:
            for micro_batches in options.micro_batches:
                command = [sys.executable, __file__, "--count", directory, str(processes), str(micro_batches)]
                found = json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                )
                share = (processes - 1) / processes / 2**20
                gathered = (2 * shape.parameters - shape.outer_parameters) * MASTER * micro_batches * share
                scattered = shape.parameters * MASTER * micro_batches * share
                cells = f"{found['gathers']:.0f} | {found['gathered']:.1f} | {gathered:.1f} | {found['scatters']:.0f} | {found['scattered']:.1f}"
                print(f"| {processes} | {micro_batches} | {cells} | {scattered:.1f} |", flush=True)


if __name__ == "__main__":
    main()
