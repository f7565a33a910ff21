"""Has anything become slower? Ratios against plain transformers and against ourselves without an idea, held against the ones kept.

python benchmarks/guard.py [--runs 3] [--write 10]
Each ratio is of two sides that alternate in this run, so that the machine's own speed drops out. It takes about a minute. It ends with 1
where a ratio is worse than half of its lowest in benchmarks/expected.json. `--write N` runs all of it N times and keeps what was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import build, groups
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from r1ranker.model.execution import ExecutionOptions
from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import TrainerConfig
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.workers.process import join_process_group

EXPECTED = Path(__file__).with_name("expected.json")
WORST = 0.5
"""of the lowest ratio kept: below it something has broken"""
CPU = torch.device("cpu")
PROMPT, RESPONSE, SAMPLES, GROUPS = 300, 24, 8, 4

Side = Callable[[], object]


def sides(directory: str) -> dict[str, tuple[Side, Side]]:
    """Name of a ratio -> (the slow side, ours)."""
    batch = groups(GROUPS, PROMPT, RESPONSE, SAMPLES)
    policies = {share: Policy(directory, CPU, 1.0, ExecutionOptions(share_prompts=share)) for share in (True, False)}
    plain: Any = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, trust_remote_code=False)
    engine = HFEngine.from_pretrained(directory, CPU, EngineSettings(max_model_len=2048, dtype="float32"))
    return {
        "update, against transformers": (lambda: update_plainly(plain, batch), lambda: update(policies[True], batch, True)),
        "update, against prompts computed for each sample": (
            lambda: update(policies[False], batch, False),
            lambda: update(policies[True], batch, True),
        ),
        "generation, against transformers": (lambda: generate_plainly(plain, batch), lambda: generate(engine, batch)),
        "sync, against an update": (lambda: update(policies[True], batch, True), lambda: engine.load_weights(own(policies[True]))),
    }  # fmt: skip


def own(policy: Policy) -> list[tuple[str, torch.Tensor]]:
    """The policy's weights, as a sync gathers them."""
    from r1ranker.model.lora import gather_weights

    return list(gather_weights(policy.language_model, CPU, torch.float32))


def update(policy: Policy, batch: list[Trajectory], share: bool) -> None:
    """Forward and backward of a batch, as the trainer does it."""
    (bins,) = arrange_micro_batches(batch, 1, Budget(8192, share_prompts=share))
    policy.accumulate_gradients([[batch[index] for index in one] for one in bins], PolicyLoss(ClipRange()))
    policy.module.zero_grad()


def update_plainly(model: Any, batch: list[Trajectory]) -> None:
    """The same with transformers' model on padded rows, whose logits are of the responses alone."""
    rows = torch.tensor([[*one.prompt_ids, *one.response_ids] for one in batch])
    logits = model(rows, logits_to_keep=RESPONSE + 1).logits[:, :-1]
    taken = logits.log_softmax(-1).gather(-1, rows[:, PROMPT:, None])[..., 0]
    advantages = torch.tensor(np.array([one.advantages for one in batch]), dtype=torch.float32)
    weights = torch.tensor(np.array([one.weights for one in batch]), dtype=torch.float32)
    ratio = (taken - taken.detach()).exp()
    (-weights * advantages * ratio).sum().backward()
    model.zero_grad()


def generate(engine: HFEngine, batch: list[Trajectory]) -> None:
    """Samples of each prompt, on the engine."""
    requests = [Request(one.prompt_ids, seed) for seed, one in enumerate(batch[::SAMPLES])]
    engine.generate(requests, SamplingParams(n=SAMPLES, max_tokens=RESPONSE))


@torch.no_grad()
def generate_plainly(model: Any, batch: list[Trajectory]) -> None:
    """The same with transformers' own generate."""
    rows = torch.tensor([one.prompt_ids for one in batch[::SAMPLES]])
    model.generate(
        rows, do_sample=True, num_return_sequences=SAMPLES, max_new_tokens=RESPONSE, min_new_tokens=RESPONSE, pad_token_id=0
    )  # fmt: skip


def measure(runs: int) -> dict[str, float]:
    """Each ratio: the median over alternated pairs, of which the first warms up."""
    found = {}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        build(directory)
        for name, (slow, ours) in sides(directory).items():
            pairs = [(seconds(slow), seconds(ours)) for _ in range(runs + 1)][1:]
            found[name] = median(one / other for one, other in pairs)
    return found


def seconds(side: Side) -> float:
    """How long a side takes."""
    began = time.perf_counter()
    side()
    return time.perf_counter() - began


def main() -> int:
    """Print each ratio beside the ones kept; 1 where one is worse than half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--write", type=int, metavar="N", help="run N times and keep the lowest and the highest of each ratio"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for one another would make ratios hang on what else the machine does
    join_process_group(None, 0, 1, CPU, TrainerConfig().timeout)
    if options.write:
        every = [measure(options.runs) for _ in range(options.write)]
        kept = {
            name: {
                "lowest": round(min(one[name] for one in every), 2),
                "highest": round(max(one[name] for one in every), 2),
            }
            for name in every[0]
        }
        EXPECTED.write_text(json.dumps({"runs": options.write, "ratios": kept}, indent=2) + "\n", encoding="utf-8")
        print(EXPECTED.read_text(encoding="utf-8"))
        return 0
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    table = Table("so many times as fast", "now", f"in {expected['runs']} runs", "")
    worst = 0
    for name, ratio in measure(options.runs).items():
        low, high = expected["ratios"][name]["lowest"], expected["ratios"][name]["highest"]
        is_broken = ratio < WORST * low
        worst |= is_broken
        words = "worse than half" if is_broken else "below" if ratio < low else "above" if ratio > high else ""
        table.add_row(name, f"{ratio:.2f}", f"{low:.2f} to {high:.2f}", words)
    Console(width=110).print(table)
    return worst


if __name__ == "__main__":
    sys.exit(main())
