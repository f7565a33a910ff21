"""How near an update, and a whole step, comes to what this machine's matrix products allow.

python benchmarks/limit.py [--shape ranking] [key=value overrides]
python benchmarks/limit.py --model DIR --rows films=FILE [--dtype bfloat16]
One step after four to warm up, in which the C library's heap grows, under torch's profiler: the share of its wall time that is spent in matrix
products, in attention's kernels, and in the rest by operator; and the products' speed there, against the same shapes alone (medians of seven,
weights out of the caches as there).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from task import add_shape_options, make_chosen
from torch.profiler import ProfilerActivity, profile

from r1ranker.trainer.loop import Run
from r1ranker.trainer.update import Updater
from r1ranker.trainer.workers.cluster import start_cluster

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")
ALONE = 3
"""shapes that are measured by themselves: those that take longest"""


def alone(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """GFLOP/s of a product of these sizes."""
    left, right = (torch.randn(shape).to(dtype) for shape in ((rows, inner), (inner, columns)))
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * rows * inner * columns / median(seconds) / 1e9


def report(name: str, profiler: Any, wall: float, dtype: torch.dtype) -> None:
    """Print where the wall time of a profiled part went."""
    seconds: dict[str, float] = defaultdict(float)
    shapes: dict[tuple[int, int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profiler.key_averages(group_by_input_shape=True):
        own = event.self_cpu_time_total / 1e6
        seconds[re.sub(r"_backward$", "", event.key)] += own
        if event.key == "aten::mm":
            (rows, inner), (_, columns) = event.input_shapes[:2]
            shapes[(rows, inner, columns)][0] += own
            shapes[(rows, inner, columns)][1] += 2 * rows * inner * columns * event.count / 1e9
    products = sum(seconds.pop(one, 0.0) for one in PRODUCTS)
    attention = sum(seconds.pop(one) for one in list(seconds) if "attention" in one.lower())
    print(
        f"\n{name}: {wall:.2f} s, of which matrix products {products / wall:.0%}, attention's kernels {attention / wall:.0%}"
    )
    rest = sorted(seconds.items(), key=lambda item: -item[1])[:8]
    print("the rest: " + ", ".join(f"{key.removeprefix('aten::')} {value / wall:.1%}" for key, value in rest))
    for (rows, inner, columns), (own, work) in sorted(shapes.items(), key=lambda item: -item[1][0])[:ALONE]:
        speed = alone(rows, inner, columns, dtype)
        print(f"[{rows}, {inner}] x [{inner}, {columns}]: {work / own:,.0f} GFLOP/s, alone {speed:,.0f}")


@contextmanager
def reported(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Profile the block, and print where its time went."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        began = time.perf_counter()
        yield
        wall = time.perf_counter() - began
    report(name, profiler, wall, dtype)


def main() -> None:
    """Print the shares of an update and of the step around it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as directory:
        config = make_chosen(directory, options, 6, *options.overrides)
        run = Run(config)
        with start_cluster(config, 6) as cluster:
            for warming in range(1, 5):
                run.step(cluster, warming)
            original = Updater.update

            def profiled(self: Updater, *arguments: Any, **named: Any) -> dict[str, float]:
                with reported("update", dtype):
                    return original(self, *arguments, **named)

            Updater.update = profiled  # type: ignore[method-assign]
            run.step(cluster, 5)
            Updater.update = original  # type: ignore[method-assign]
            with reported("step", dtype):
                run.step(cluster, 6)


if __name__ == "__main__":
    main()
