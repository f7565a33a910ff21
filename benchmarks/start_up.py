"""Seconds until the first training step is done, here and through Ray, against importing torch and transformers alone.

python benchmarks/start_up.py [--runs 5]
Each run is a command of its own: a model of random weights, built-in data, one step of eight prompts. The three take turns, after one of each that
warms the system's file cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.model.init import init_model

IMPORTING = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel"
)


def time_first_step(directory: Path, executor: str) -> float:
    """Seconds from the command to the line of its first step."""
    command = [
        *(sys.executable, "-m", "r1ranker.cli", "train", "--config-name", "quickstart", f"trainer.executor={executor}"),
        f"data.train_files={directory}/data/direct_ranking/train.parquet", "data.val_files=null", "data.train_batch_size=8",
        f"actor_rollout_ref.model.path={directory}/model", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        f"trainer.default_local_dir={directory}/run", "trainer.resume_mode=disable", "trainer.total_training_steps=1",
        "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1",
    ]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        taken = [time.perf_counter() - began for line in process.stdout if line.startswith("step 1:")]
    assert process.returncode == 0
    return taken[0]


def time_imports() -> float:
    """Seconds of a process that imports what models need."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTING], stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Print a row for each way to start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(PrepareOptions(source="toy", size=40, output=str(directory / "data")))
        init_model(str(directory / "model"), [str(directory / "data/direct_ranking/train.parquet")], title_tokens=True)
        for run in range(options.runs + 1):
            taken = {
                "importing alone": time_imports(),
                "local": time_first_step(directory, "local"),
                "ray": time_first_step(directory, "ray"),
            }
            for side, value in taken.items() if run else ():
                seconds[side].append(value)
    print("| until | s | of importing alone | pairs |\n| --- | --- | --- | --- |")
    for side, values in seconds.items():
        ratios = [value / alone for value, alone in zip(values, seconds["importing alone"], strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {side} | {median(values):.1f} | {median(ratios):.2f} | {each} |")


if __name__ == "__main__":
    main()
