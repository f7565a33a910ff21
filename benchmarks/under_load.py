"""How much slower an update is where another process takes one of the cores, by how threads wait for one another.

python benchmarks/under_load.py [MODEL] [--pairs 3] [--dtype bfloat16]
Each policy of waiting has a process of its own; in it, updates alternate between a quiet machine and one where a loop of another process
runs on the first core. Without MODEL: random weights of width 256. The ratio is of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

POLICIES: dict[str, dict[str, str]] = {
    "as torch has it": {"GOMP_SPINCOUNT": "300000"},
    "10,000 looks, then sleep": {"GOMP_SPINCOUNT": "10000"},
    "1,000 looks, then sleep": {"GOMP_SPINCOUNT": "1000"},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}


@contextmanager
def other_process() -> Iterator[None]:
    """A loop on the first core while the block runs."""
    code = "import os; os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[0]])\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def measure(model: str, dtype: str, pairs: int, short: bool) -> dict[str, list[float]]:
    """Seconds of updates, alone and beside the other process."""
    import torch
    from common import groups

    from r1ranker.trainer.batch.balance import Budget
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.workers.cluster import start_cluster
    from r1ranker.trainer.workers.dispatch import update

    config = load_config(
        "quickstart",
        [
            "data.train_files=x", "data.val_files=null", "trainer.val_before_train=false", f"actor_rollout_ref.model.path={model}",
            f"actor_rollout_ref.model.dtype={dtype}", "data.max_prompt_length=1024",
        ],
    )  # fmt: skip
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    prompts, length = (8, 40) if short else (8, 280)
    with start_cluster(config, 100) as cluster:
        for turn in range(pairs + 1):
            batch = groups(prompts, length, 23, 5, seed=turn)
            for name in found:
                with other_process() if name == "beside" and turn else _nothing():
                    began = time.perf_counter()
                    update(cluster, batch, Budget(4096), "update_policy")
                    if turn:
                        found[name].append(time.perf_counter() - began)
    found["threads"] = [torch.get_num_threads()]
    return found


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def main() -> None:
    """Print a row a policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="prompts of 40 tokens: many small products")
    parser.add_argument("--measure", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.model, options.dtype, options.pairs, options.short)))
        return
    with tempfile.TemporaryDirectory() as directory:
        if options.model is None:
            from common import build

            build(directory)
        print("| threads wait | alone, s | beside another process, s | ratio |")
        print("| --- | --- | --- | --- |")
        for name, variables in POLICIES.items():
            command = [sys.executable, __file__, options.model or directory, "--dtype", options.dtype, "--measure"]
            command += ["--pairs", str(options.pairs), *(["--short"] if options.short else [])]
            kept = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
            done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            alone, beside = median(found["alone"]), median(found["beside"])
            print(f"| {name} | {alone:.2f} | {beside:.2f} | {beside / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
