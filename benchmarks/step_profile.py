"""Where a GRPO step's time goes: its parts, what they consist of, and what Ray adds.

python benchmarks/step_profile.py [--shape ranking] [--steps 5] [key=value overrides of the config]
Steps as in grpo_step.py. Parts are the timing_s metrics of a step; inner ones are clocks around functions, in the process itself (their own time with
what they call). With executor=ray the same steps run in one worker process, whose parts the driver waits for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from statistics import median
from typing import Any

import torch
from task import SHAPES, Bench, build, config_of

from r1ranker.model.policy_model import PolicyModel
from r1ranker.rollout.hf_batch import ContinuousBatch
from r1ranker.trainer.learners import policy as policy_module
from r1ranker.trainer.learners.optimisation import Optimisation
from r1ranker.trainer.learners.policy import Policy
from r1ranker.trainer.loop import Run
from r1ranker.trainer.workers import dispatch
from r1ranker.trainer.workers.cluster import start_cluster

INNER: dict[str, tuple[Any, str]] = {
    "generation: let in and prefilled": (ContinuousBatch, "_admit"),
    "generation: tokens decoded": (ContinuousBatch, "_decode"),
    "passes: arranged over micro-batches": (dispatch, "arrange_micro_batches"),
    "passes: packed": (policy_module, "pack"),
    "passes: forward": (PolicyModel, "forward"),
    "passes: backward": (torch.Tensor, "backward"),
    "update: optimizer": (Optimisation, "step"),
    "passes: accumulated (packed, forward, loss, backward)": (Policy, "accumulate_gradients"),
}


@contextmanager
def clocks(seconds: dict[str, float]) -> Any:
    """Have each inner function add its seconds to `seconds`."""
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in INNER.items()}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def clocked(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

        return clocked

    for name, (owner, attribute) in INNER.items():
        setattr(owner, attribute, timed(name, originals[name]))
    yield
    for name, (owner, attribute) in INNER.items():
        setattr(owner, attribute, originals[name])


def steps_of(bench: Bench, executor: str, count: int, overrides: list[str]) -> list[dict[str, float]]:
    """Seconds of the parts of each of `count` steps, after one to warm up."""
    config = config_of(bench, count + 1, 1e-3, 1, *overrides, f"trainer.executor={executor}", f"data.cache_dir={bench.directory}/cache-{executor}")  # fmt: skip
    run = Run(config)
    found = []
    inner: dict[str, float] = {}
    with start_cluster(config, count + 1) as cluster, clocks(inner):
        for step in range(1, count + 2):
            inner.clear()
            metrics = run.step(cluster, step)
            parts = {name.removeprefix("timing_s/"): value for name, value in metrics.items() if name.startswith("timing_s/")}  # fmt: skip
            found.append(parts | dict(inner))
    return found[1:]


def main() -> None:
    """Print a table: parts, their seconds here and through Ray, their shares of the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ranking")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        bench = build(directory, SHAPES[options.shape], 1)
        local, ray = (steps_of(bench, executor, options.steps, options.overrides) for executor in ("local", "ray"))
    whole = median(one["step"] for one in local)
    print(f"{options.shape}: medians of {options.steps} steps\n")
    print("| part | here, s | share of the step | through Ray, s |\n| --- | --- | --- | --- |")
    names = sorted(
        (name for name in local[0] if name not in INNER and name != "step"), key=lambda name: -local[0][name]
    )
    inner = sorted((name for name in INNER if name in local[0]), key=lambda name: -local[0][name])
    for name in ["step", *names, *inner]:
        here = median(one.get(name, 0.0) for one in local)
        there = f"{median(one.get(name, 0.0) for one in ray):.3f}" if name not in INNER else ""
        print(f"| {name} | {here:.3f} | {here / whole:.1%} | {there} |")
    rest = median(one["step"] - sum(one[name] for name in names) for one in local)
    print(f"| everything else of the step | {rest:.3f} | {rest / whole:.1%} | |")


if __name__ == "__main__":
    main()
