"""A whole GRPO step (generation, reference log-probabilities, update) of r1ranker against TRL's GRPOTrainer, on the CPU.

python benchmarks/grpo_step.py [--shapes ranking short] [--steps 5] [--accumulation 8] [key=value overrides of r1ranker's config]
python benchmarks/grpo_step.py --model DIR --rows films=FILE wikiqa=FILE short [--dtype bfloat16] [--generation continuous]
python benchmarks/grpo_step.py --curves [--steps 30]
Both sides train the same randomly initialised model, or the one in DIR, on the same prompts with the same reward and take their steps in turn,
in one process. FILE is rows for training, whose first prompts are taken; `short` alone is prompts of 100 tokens.
Every completion is as long as it may be: EOS lies past the model's vocabulary, so that neither side can sample it.
Memory is measured in two steps of each side alone, in a process of its own.
`--curves` trains both from the same weights on a small shape and prints how loss, KL and reward go.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from task import BETA, GROUP, SHAPES, Bench, Shape, config_of, early_letters, make
from transformers import PrinterCallback, TrainerCallback

from r1ranker.device import peak_memory_gib
from r1ranker.trainer.loop import Run
from r1ranker.trainer.workers.cluster import Cluster, start_cluster

warnings.filterwarnings("ignore")  # TRL has one for every version of vLLM that it has not seen
try:
    from accelerate.utils import DistributedType
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
except ImportError:
    print(
        "benchmarks/grpo_step.py: TRL is not installed; `pip install -e '.[bench]'` brings what benchmarks compare with",
        file=sys.stderr,
    )
    sys.exit(2)

PEER_GENERATION: dict[str, dict[str, Any]] = {
    "plain": {},
    "continuous": {"use_transformers_continuous_batching": True},
    "vllm": {"use_vllm": True, "vllm_mode": "colocate"},
}
"""how TRL generates"""
CURVES = Shape(50, 60, 16, vocabulary=512)


@dataclass
class Side:
    """Of each step: its seconds, those of its parts, and what was learned."""

    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    learned: list[dict[str, float]] = field(default_factory=list)
    """loss, kl, reward"""

    def median_part(self, name: str) -> float:
        """Median seconds of a part, without the first step, which warms up."""
        return statistics.median(parts[name] for parts in self.parts[1:])


@contextmanager
def our_side(bench: Bench, steps: int, options: argparse.Namespace) -> Iterator[OurStep]:
    """A function that takes one step of r1ranker; its `side` holds what was measured."""
    dtype = f"actor_rollout_ref.model.dtype={options.dtype}"
    config = config_of(bench, steps, options.lr, options.seed, dtype, *options.overrides)
    run = Run(config)
    with start_cluster(config, steps) as cluster:
        yield OurStep(run, cluster, bench)


class OurStep:
    """One step of r1ranker a call."""

    def __init__(self, run: Run, cluster: Cluster, bench: Bench) -> None:
        self.side = Side()
        self._run, self._cluster, self._bench = run, cluster, bench

    def __call__(self) -> None:
        began = time.perf_counter()
        metrics = self._run.step(self._cluster, len(self.side.seconds) + 1)
        self.side.seconds.append(time.perf_counter() - began)
        assert metrics["response_length/min"] == metrics["response_length/max"] == self._bench.shape.new
        assert metrics["perf/total_num_tokens"] == self._bench.tokens
        self.side.parts.append(
            {
                "generation": metrics["timing_s/gen"],
                "reference": metrics["timing_s/ref"],
                "update": metrics["timing_s/update_actor"],
            }
        )
        self.side.learned.append(
            {
                "loss": metrics["actor/pg_loss"] + BETA * metrics["actor/kl_loss"],
                "kl": metrics["actor/kl_loss"],
                "reward": metrics["critic/score/mean"],
            }
        )


class Timed(GRPOTrainer):
    """Seconds of a step's parts; what is not generation, or done with what was generated before the update, is the update."""

    generation = prepared = 0.0

    def _generate(self, *arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        result = super()._generate(*arguments, **keywords)
        self.generation = time.perf_counter() - began
        return result

    def _generate_and_score_completions(self, *arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        result = super()._generate_and_score_completions(*arguments, **keywords)
        self.prepared = time.perf_counter() - began
        return result


class InTurn(TrainerCallback):
    """Between two of TRL's steps one of ours is taken. TRL's clock runs from when it gets its turn until its step has ended."""

    def __init__(self, trainer: Timed, ours: Callable[[], None]) -> None:
        self.side = Side()
        self._trainer, self._ours = trainer, ours
        self._began = 0.0

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        seconds = time.perf_counter() - self._began
        generation, prepared = self._trainer.generation, self._trainer.prepared
        self.side.seconds.append(seconds)
        self.side.parts.append(
            {"generation": generation, "reference": prepared - generation, "update": seconds - prepared}
        )
        self._ours()
        self._began = time.perf_counter()


def trl_trainer(bench: Bench, steps: int, options: argparse.Namespace) -> Timed:
    """TRL's trainer for the same task."""

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        assert [len(ids) for ids in completion_ids] == [bench.shape.new] * len(bench.prompts) * GROUP
        return [early_letters(text) for text in completions]

    config = GRPOConfig(
        output_dir=f"{bench.directory}/trl",
        use_cpu=True,
        bf16=options.dtype == "bfloat16",
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": options.dtype, "attn_implementation": "sdpa"},
        # one optimizer step a generation of all completions, whatever the micro-batches
        per_device_train_batch_size=len(bench.prompts) * GROUP // options.accumulation,
        gradient_accumulation_steps=options.accumulation,
        num_generations=GROUP,
        max_completion_length=bench.shape.new,
        num_iterations=1,
        max_steps=steps,
        beta=BETA,
        loss_type="dapo",  # mean over all tokens of the generation, as our token-mean
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=options.seed,
        logging_strategy="steps" if options.curves else "no",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **PEER_GENERATION[options.generation],
    )
    dataset = Dataset.from_list([{"prompt": prompt} for prompt in bench.prompts])
    trainer = Timed(bench.model, reward, args=config, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    return trainer


def alone(side: str, shape: str, options: argparse.Namespace) -> None:
    """Two steps of one side; prints the seconds of both, and the most memory that the process ever had, in MiB."""
    with tempfile.TemporaryDirectory() as directory:
        bench = make(directory, shape, options.model, options.seed)
        if side == "TRL":
            trainer = trl_trainer(bench, 2, options)
            torch.set_num_threads(options.threads)
            began = time.perf_counter()
            trainer.train()
        else:
            with our_side(bench, 2, options) as ours:
                began = time.perf_counter()
                ours()
                ours()
    seconds = time.perf_counter() - began
    print(f"{seconds:.2f} {peak_memory_gib(torch.device('cpu')) * 1024:.0f}")


def memory_of(side: str, shape: str, options: argparse.Namespace) -> float:
    """MiB of a process that takes two steps of one side."""
    given = ["--model", options.model] if options.model else []
    given += ["--dtype", options.dtype, "--generation", options.generation, "--accumulation", str(options.accumulation)]
    command = [sys.executable, __file__, *given, "--alone", side, shape, *options.overrides]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def both(shape: str | Shape, steps: int, options: argparse.Namespace) -> tuple[Bench, Side, Side]:
    """(what was trained on, our side, TRL's side) after so many steps of each, in turn."""
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as directory:
        bench = make(directory, shape, options.model, options.seed)
        # before ours, whose process group of one would have accelerate wrap the model for data-parallel training
        trainer = trl_trainer(bench, steps, options)
        assert trainer.accelerator.distributed_type == DistributedType.NO
        torch.set_num_threads(options.threads)
        with our_side(bench, steps, options) as ours:
            turns = InTurn(trainer, ours)
            trainer.add_callback(turns)
            trainer.train()
        assert torch.get_num_threads() == options.threads
        assert trainer.state.num_input_tokens_seen == steps * bench.tokens
    turns.side.learned = [
        {name: float(line[name]) for name in ("loss", "kl", "reward")}
        for line in trainer.state.log_history
        if "loss" in line
    ]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)
    return bench, ours.side, turns.side


def print_times(options: argparse.Namespace) -> None:
    """One row a shape and side, then the ratios."""
    print("| shape | side | median step, s | tokens a second | generation s | reference s | update s | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    ratios = []
    for shape in options.rows or options.shapes:
        name = shape.partition("=")[0]
        bench, ours, theirs = both(shape, options.steps + 1, options)
        for label, side in (("r1ranker", ours), ("TRL", theirs)):
            median = statistics.median(side.seconds[1:])
            parts = " | ".join(f"{side.median_part(part):.2f}" for part in ("generation", "reference", "update"))
            memory = memory_of(label, shape, options)
            print(
                f"| {name} | {label} | {median:.2f} | {bench.tokens / median:,.0f} | {parts} | {memory:,.0f} |",
                flush=True,
            )
        pairs = [their / our for our, their in zip(ours.seconds[1:], theirs.seconds[1:], strict=True)]
        medians = statistics.median(theirs.seconds[1:]) / statistics.median(ours.seconds[1:])
        each = ", ".join(f"{pair:.2f}" for pair in pairs)
        ratios.append(
            f"{name}: {statistics.median(pairs):.2f} times TRL's tokens a second (median of the pairs {each}; ratio of the "
            f"medians {medians:.2f}); {bench.tokens:,} tokens a step"
        )
    print("\n" + "\n".join(ratios))


def print_curves(options: argparse.Namespace) -> None:
    """Means over every five steps of what each side reports, and the objective made of them."""
    _, ours, theirs = both(CURVES, options.steps, options)
    names = ("loss", "kl", "reward", "objective")
    print("Loss: what the side reports. Objective: -reward + beta KL, what is minimised. Each ours / TRL's.")
    print("| steps | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for start in range(0, options.steps, 5):
        end = min(start + 5, options.steps)
        cells = []
        for name in names:
            means = [statistics.mean(_value(line, name) for line in side.learned[start:end]) for side in (ours, theirs)]
            cells.append("{:.4f} / {:.4f}".format(*means))
        print(f"| {start + 1} to {end} | " + " | ".join(cells) + " |")


def _value(line: Mapping[str, float], name: str) -> float:
    return BETA * line["kl"] - line["reward"] if name == "objective" else line[name]


def main() -> None:
    """Print the table of times, or of the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--model", help="directory of a model that is trained in place of a random one")
    parser.add_argument("--rows", nargs="+", metavar="NAME=FILE", help="what --model is trained on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--generation", choices=PEER_GENERATION, default="plain", help="TRL's")
    parser.add_argument("--alone", nargs=2, metavar=("SIDE", "SHAPE"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help="timed steps a side (5), or steps of the curves (30)")
    parser.add_argument("--accumulation", type=int, default=8, help="micro-batches of TRL's step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("overrides", nargs="*", help="key=value of r1ranker's config")
    options = parser.parse_args()
    if not options.alone and bool(options.model) != bool(options.rows):
        parser.error("--model and --rows go together")
    options.steps = options.steps or (30 if options.curves else 5)
    torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.alone:
        side, shape = options.alone
        alone(side, shape, options)
        return
    (print_curves if options.curves else print_times)(options)


if __name__ == "__main__":
    main()
