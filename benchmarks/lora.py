"""Adapters against whole weights: memory of a process, and seconds of an update and of a sync, on one model.

python benchmarks/lora.py MODEL [--rank 16] [--dtype bfloat16] [--pairs 5]
Each way has a process of its own, on requests of 280 tokens with five answers of a label each, as language_direct has them. A row a
size of micro-batches, with and without gradient checkpointing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

PROMPT, RESPONSE, SAMPLES, REQUESTS = 280, 23, 5, 16
SETTINGS = ((4096, False), (4096, True), (1088, True))
"""tokens of a micro-batch, whether activations are recomputed"""


def measure(options: argparse.Namespace, tokens: int, checkpointing: bool, rank: int) -> dict[str, float]:
    """Peak resident GiB, and the medians of an update's and a sync's seconds, in this process."""
    import torch
    from common import groups

    from r1ranker.device import peak_memory_gib
    from r1ranker.rollout.engine import Request, SamplingParams
    from r1ranker.trainer.batch.balance import Budget
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.workers.cluster import start_cluster
    from r1ranker.trainer.workers.dispatch import generate, update

    config = load_config(
        "language_direct",
        [
            "data.train_files=x", "data.val_files=null", "trainer.test_freq=-1", f"actor_rollout_ref.model.path={options.model}",
            "trainer.executor=local", f"actor_rollout_ref.model.dtype={options.dtype}", f"actor_rollout_ref.model.lora_rank={rank}",
            f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}", "actor_rollout_ref.actor.optim.lr=1e-4",
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}",
        ],
    )  # fmt: skip
    updates, syncs = [], []
    with start_cluster(config, 100) as cluster:
        for turn in range(options.pairs + 1):
            batch = groups(REQUESTS, PROMPT, RESPONSE, SAMPLES, seed=turn)
            requests = [Request(one.prompt_ids) for one in batch[::SAMPLES]]
            generate(cluster, requests, SamplingParams(n=1, max_tokens=2))
            began = time.perf_counter()
            update(cluster, batch, Budget(tokens), "update_policy")
            updates.append(time.perf_counter() - began)
            began = time.perf_counter()
            cluster.sync_weights()
            syncs.append(time.perf_counter() - began)
    return {"memory": peak_memory_gib(torch.device("cpu")), "update": median(updates[1:]), "sync": median(syncs[1:])}


def main() -> None:
    """Print a row a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--measure", nargs=3, type=int, metavar=("TOKENS", "CHECKPOINTING", "RANK"), help="in this process"
    )
    options = parser.parse_args()
    if options.measure:
        tokens, checkpointing, rank = options.measure
        print(json.dumps(measure(options, tokens, bool(checkpointing), rank)))
        return
    print("| tokens, checkpointing | memory GiB: weights | adapters | ratio | update s | | ratio | sync s | | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for tokens, checkpointing in SETTINGS:
        found = []
        for rank in (0, options.rank):
            given = [str(tokens), str(int(checkpointing)), str(rank)]
            command = [sys.executable, __file__, options.model, "--dtype", options.dtype, "--pairs", str(options.pairs)]
            done = subprocess.run([*command, "--measure", *given], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        cells = []
        for name in ("memory", "update", "sync"):
            whole, adapted = (one[name] for one in found)
            cells += [f"{whole:.2f}", f"{adapted:.2f}", f"{adapted / whole:.2f}"]
        print(f"| {tokens}, {'with' if checkpointing else 'without'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
