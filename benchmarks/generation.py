"""Generation by the transformers engine, by vLLM on the CPU, and by transformers' own generate and continuous batching: seconds to the first and last token.

python benchmarks/generation.py MODEL [--dtype bfloat16] [--sequences 1 16 64 256] [--new 20 128] [--prompt 100] [--runs 3]
Random prompts. `shared`: eight responses to each prompt, where an engine may compute it once. Nothing is kept from run to run, and every response
is as long as it may be: the model has no EOS. Each side is a process of its own; all take as many threads. First token: the same with one new token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from task import GROUP, build_language
from transformers import ContinuousBatchingConfig, GenerationConfig

from r1ranker.device import pick_device
from r1ranker.model.loading import load_causal_lm
from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.start import start_engine

SIDES = ("hf", "vllm", "generate", "continuous")
VOCABULARY = 40000
"""random prompts are of these tokens, and not of the control tokens past them"""
Generate = Callable[[list[list[int]], int, int], int]
"""prompts, responses to each, new tokens -> tokens made"""


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """So many random prompts."""
    return [ids.tolist() for ids in np.random.default_rng(seed).integers(1000, VOCABULARY, (count, length))]


def ours(name: str, model: str, dtype: str, length: int) -> Generate:
    """An engine of the package."""
    settings = EngineSettings(max_model_len=length, dtype=dtype, constrained=False)
    engine = start_engine(name, model, pick_device(), settings)

    def generate(given: list[list[int]], n: int, new: int) -> int:
        done = engine.generate(
            [Request(ids, seed) for seed, ids in enumerate(given)], SamplingParams(n, max_tokens=new)
        )
        return sum(len(one.token_ids) for several in done for one in several)

    return generate


def plain(model: str, dtype: str) -> Generate:
    """transformers' generate."""
    loaded: Any = load_causal_lm(model, getattr(torch, dtype), "sdpa")

    def generate(given: list[list[int]], n: int, new: int) -> int:
        ids = torch.tensor([one for one in given for _ in range(n)])
        config = sampling(loaded, new, min_new_tokens=new)
        with torch.inference_mode():
            made = loaded.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return int(made.shape[0] * (made.shape[1] - ids.shape[1]))

    return generate


def continuous(model: str, dtype: str) -> Generate:
    """transformers' continuous batching."""
    loaded: Any = load_causal_lm(model, getattr(torch, dtype), "paged|sdpa")
    batching = ContinuousBatchingConfig(max_memory_percent=0.3)

    def generate(given: list[list[int]], n: int, new: int) -> int:
        several = [one for one in given for _ in range(n)]  # equal beginnings share their blocks
        config = sampling(loaded, new, eos_token_id=-1)
        outputs = loaded.generate_batch(
            several, generation_config=config, continuous_batching_config=batching, progress_bar=False
        )
        return sum(len(output.generated_tokens) for output in outputs.values())

    return generate


def sampling(model: Any, new: int, **ends: int) -> GenerationConfig:
    """From the whole distribution."""
    pad = model.generation_config.pad_token_id
    return GenerationConfig(max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=pad, **ends)


def measure(side: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Median seconds of each size, of one and of all new tokens."""
    length = options.prompt + max(options.new)
    torch.set_num_threads(options.threads)
    peer = {"generate": plain, "continuous": continuous}.get(side)
    generate = peer(options.model, options.dtype) if peer else ours(side, options.model, options.dtype, length)
    generate(prompts(2, options.prompt, 0), 1, 4)
    seed = 0
    for shared in (1, GROUP):
        for sequences in options.sequences:
            if sequences < shared:
                continue
            for new in (1, *options.new):
                seconds = []
                for _ in range(options.runs if sequences < 256 else 1):
                    seed += 1
                    given = prompts(sequences // shared, options.prompt, seed)  # no engine has seen them
                    began = time.perf_counter()
                    made = generate(given, shared, new)
                    seconds.append(time.perf_counter() - began)
                    assert made == sequences * new, (side, made, sequences, new)
                yield {"shared": shared, "sequences": sequences, "new": new, "seconds": median(seconds)}


def main() -> None:
    """Print a row for each size, a column for each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--new", nargs="+", type=int, default=[20, 128])
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3, help="of each size; of 256 sequences one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        for row in measure(options.side, options):
            print(json.dumps(row), flush=True)
        return
    found: dict[tuple[int, int, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        build_language(directory, options.model, None, 1, 1, 1)  # without an EOS
        numbers = [
            str(one) for one in ("--sequences", *options.sequences, "--new", *options.new, "--prompt", options.prompt)
        ]
        for side in options.sides:
            command = [
                sys.executable,
                __file__,
                f"{directory}/model",
                "--side",
                side,
                "--dtype",
                options.dtype,
                *numbers,
            ]
            command += ["--runs", str(options.runs), "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{side}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    found.setdefault((row["shared"], row["sequences"], row["new"]), {})[side] = row["seconds"]
    print(
        "| responses to a prompt | sequences | new tokens | "
        + " | ".join(f"{side}, s" for side in options.sides)
        + " | fastest |"
    )
    print("| --- " * (len(options.sides) + 4) + "|")
    for (shared, sequences, new), seconds in found.items():
        cells = " | ".join(f"{seconds[side]:.2f}" if side in seconds else "" for side in options.sides)
        print(f"| {shared} | {sequences} | {new} | {cells} | {min(seconds, key=lambda side: seconds[side])} |")


if __name__ == "__main__":
    main()
