"""The update pass with prompts computed once a group, against once a response: time, peak memory, and what arithmetic allows.

python benchmarks/shared_prefix.py [--runs 5] [--prompts 100 400 1500]
Groups of n responses of R tokens to a prompt of P, forward and backward through one model, sides alternated; each figure is a median.
The ideal ratio of times is n(P+R)/(P+nR), that of the tokens. Memory is measured in a process of its own for each side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from statistics import median

import torch
from common import Peak, build, groups

from r1ranker.model.execution import ExecutionOptions
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.config.schema import TrainerConfig
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.workers.process import join_process_group

PROMPTS, RESPONSES, SIZES = (100, 400, 1500), (32, 128, 512), (1, 4, 16)
LEAST_TOKENS = 2048
"""of a pass without sharing: small groups are measured several at once"""


class Side:
    """An update pass over some groups, with or without sharing."""

    def __init__(self, directory: str, share: bool, max_tokens: int) -> None:
        self.policy = Policy(directory, torch.device("cpu"), 1.0, ExecutionOptions(share_prompts=share))
        self.loss = PolicyLoss(ClipRange(), kl_coef=0.04)
        self.budget = Budget(max_tokens, share_prompts=share)

    def run(self, prompt: int, response: int, n: int, least_tokens: int = LEAST_TOKENS) -> float:
        """Seconds of forward and backward."""
        count = max(1, least_tokens // (n * (prompt + response)))
        trajectories = groups(count, prompt, response, n)
        (bins,) = arrange_micro_batches(trajectories, 1, self.budget)
        chosen = [[trajectories[index] for index in one] for one in bins]
        began = time.perf_counter()
        self.policy.accumulate_gradients(chosen, self.loss)
        seconds = time.perf_counter() - began
        self.policy.module.zero_grad()
        return seconds


def memory(directory: str, share: bool, prompt: int, response: int, n: int, max_tokens: int) -> float:
    """MiB above the model that the pass takes, in a fresh process."""
    arguments = [directory, str(int(share)), str(prompt), str(response), str(n), str(max_tokens)]
    command = [sys.executable, __file__, "--memory", *arguments]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_memory(directory: str, share: str, prompt: str, response: str, n: str, max_tokens: str) -> None:
    """The child's part of `memory`."""
    join_process_group(None, 0, 1, torch.device("cpu"), TrainerConfig().timeout)
    side = Side(directory, share == "1", int(max_tokens))
    side.run(8, 8, 1, 0)  # what is allocated once
    with Peak() as peak:
        side.run(int(prompt), int(response), int(n))
    print(json.dumps(peak.above[0] / 2**20))


def main() -> None:
    """Print a row for every P, R and n."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--max_tokens", type=int, default=16384)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help="tokens, P")
    parser.add_argument("--memory", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.memory:
        measure_memory(*options.memory)
        return
    join_process_group(None, 0, 1, torch.device("cpu"), TrainerConfig().timeout)
    with tempfile.TemporaryDirectory() as directory:
        build(directory, options.hidden, options.layers)
        shared, plain = (Side(directory, share, options.max_tokens) for share in (True, False))
        print(f"micro-batches of at most {options.max_tokens} tokens, medians of {options.runs} alternated runs")
        print("| P | R | n | plain s | shared s | ratio | ideal | share of the ideal | plain MiB | shared MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for prompt, response, n in product(options.prompts, RESPONSES, SIZES):
            pairs = [
                (plain.run(prompt, response, n), shared.run(prompt, response, n)) for _ in range(options.runs + 1)
            ][1:]  # the first warms up
            ratio = median(one / other for one, other in pairs)
            ideal = n * (prompt + response) / (prompt + n * response)
            sizes = [memory(directory, share, prompt, response, n, options.max_tokens) for share in (False, True)]
            print(
                f"| {prompt} | {response} | {n} | {median(one for one, _ in pairs):.2f} | {median(other for _, other in pairs):.2f} | "
                f"{ratio:.2f} | {ideal:.2f} | {ratio / ideal:.2f} | {sizes[0]:.0f} | {sizes[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
