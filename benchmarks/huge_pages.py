"""What huge pages are worth: a step of training with a C library that asks for them and with one that does not, in turn.

python benchmarks/huge_pages.py [--shape ranking] [--pairs 5]
python benchmarks/huge_pages.py --model DIR --rows films=FILE [--dtype bfloat16]
Each side is a process that takes three steps, the last two of which count. `r1ranker` asks for them by itself (cli/run.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import mean, median

import torch
from task import add_shape_options, make_chosen

from r1ranker.cli.run import HUGE_PAGES, with_huge_pages
from r1ranker.device import peak_memory_gib
from r1ranker.trainer.loop import Run
from r1ranker.trainer.workers.cluster import start_cluster

PARTS = {"generation": "gen", "reference": "ref", "update": "update_actor", "step": "step"}


def steps(options: argparse.Namespace) -> dict[str, float]:
    """Mean seconds of each part, and the most memory of this process in GiB."""
    with tempfile.TemporaryDirectory() as directory:
        config = make_chosen(directory, options, 3)
        run = Run(config)
        with start_cluster(config, 3) as cluster:
            found = [run.step(cluster, number) for number in (1, 2, 3)][1:]
    seconds = {part: mean(one[f"timing_s/{name}"] for one in found) for part, name in PARTS.items()}
    return seconds | {"GiB": peak_memory_gib(torch.device("cpu"))}


def main() -> None:
    """Print a row for each side, and the ratios of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.measure:
        print(json.dumps(steps(options)))
        return
    tunables = with_huge_pages("", HUGE_PAGES)
    if tunables is None:
        print(
            "this machine gives huge pages to all or to nobody, or its C library cannot ask for them", file=sys.stderr
        )
        sys.exit(2)
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    sides = {"4 KiB": plain, "huge": plain | {"GLIBC_TUNABLES": tunables}}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.pairs):
        for side, environment in sides.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure"]
            printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            found[side].append(json.loads(printed.splitlines()[-1]))
    names = (*PARTS, "GiB")
    print("| pages | " + " | ".join(f"{name}, s" if name != "GiB" else name for name in names) + " |")
    print("| --- " * (len(names) + 1) + "|")
    for side, runs in found.items():
        print(f"| {side} | " + " | ".join(f"{median(run[name] for run in runs):.2f}" for name in names) + " |")
    ratios = [[b[name] / a[name] for a, b in zip(*found.values(), strict=True)] for name in names]
    print("| ratio, median of the pairs | " + " | ".join(f"{median(one):.2f}" for one in ratios) + " |")


if __name__ == "__main__":
    main()
