"""The quick start: built-in data, a tiny model of random weights, two trained rankers and their evaluation, on one CPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.errors import check_at_least, exit_on_user_error
from r1ranker.tasks.prompts import Mode

TASKS = ("Rec-Movie", "Rec-Music", "Rec-Game", "Router-Performance", "Router-Balance", "Router-Cost")
MODES: tuple[Mode, ...] = ("iterative", "direct")
RANKERS = {"iterative": "IRanker", "direct": "DRanker"}
BASELINE = "most frequent label"
"""what a trained ranker has to beat: it knows the training labels, and nothing of the request"""

Report = dict[str, Any]


def main() -> None:
    """Run it; see --help."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--steps", type=int, help="GRPO steps of each ranker (as in configs/quickstart_*.yaml)")
    parser.add_argument(
        "--sft_steps", "--sft-steps", type=int, default=0, help="steps of a cold start before (%(default)s: none)"
    )
    parser.add_argument("--size", type=int, default=200, help="direct training rows a task (%(default)s)")
    parser.add_argument("--output", default="checkpoints/quickstart", help="where everything goes (%(default)s)")
    options = parser.parse_args()
    for name, least in (("steps", 1), ("sft_steps", 0), ("size", 1)):
        value = getattr(options, name)
        if value is not None:
            check_at_least(f"--{name}", value, least)
    run(Path(options.output), options.steps, options.sft_steps, options.size)


def run(output: Path, steps: int | None, sft_steps: int, size: int) -> None:
    """Everything, under `output`; prints one table at the end and writes a report. `steps` None: as the configs say."""
    from r1ranker.evaluation.table import compare_table
    from r1ranker.report import write_report

    console = Console()
    began = time.perf_counter()
    console.rule("1. built-in data")
    cold_start = sft_steps > 0
    prepare(PrepareOptions("toy", str(output / "data"), think=False, size=size, tasks=TASKS, cold_start=cold_start))
    console.rule("2. a tiny base model of random weights")
    build_base(output, sft_steps, console)
    actors = {}
    for place, mode in enumerate(MODES, 3):
        console.rule(f"{place}. {RANKERS[mode]} by GRPO")
        actors[mode] = train(output, mode, steps)
    console.rule("5. evaluation on unseen requests")
    reports = evaluate(output, actors)
    console.print(compare_table(list(reports.items())))
    console.print(in_words(reports), highlight=False, soft_wrap=True)
    page = output / "report.html"
    write_report([*(str(output / mode) for mode in MODES), str(output / "eval")], str(page))
    for mode in MODES:
        console.print(f"{RANKERS[mode]}: {actors[mode]}", highlight=False, soft_wrap=True)
    console.print(f"report, for a browser: {page}", highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


def build_base(output: Path, sft_steps: int, console: Console) -> None:
    """`output`/base: a model of random weights.

    Answers are constrained to the pool, so it need not learn their form first. With `sft_steps` it is fine-tuned on random
    answers all the same.
    """
    from r1ranker.model.init import init_model
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    rows = [output / "data" / f"{mode}_ranking" for mode in MODES]
    base = str(output / "base")
    begun = str(output / "untrained") if sft_steps else base
    training = [str(directory / "train.parquet") for directory in rows]
    parameters = init_model(begun, training, vocab_size=600, title_tokens=True, title_words=True)
    console.print(f"{parameters:,} parameters", highlight=False)
    if sft_steps:
        answers = [str(directory / "sft.parquet") for directory in rows]
        losses = fine_tune(begun, answers, base, SFTSettings(steps=sft_steps))
        console.print(f"cold start: loss {losses[0]:.2f} -> {losses[-1]:.2f}", highlight=False)


def train(output: Path, mode: Mode, steps: int | None) -> str:
    """Train a ranker by configs/quickstart_`mode`.yaml; returns the actor's directory."""
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.fit import fit

    rows = output / "data" / f"{mode}_ranking"
    overrides = [
        f"data.train_files={rows / 'train.parquet'}",
        f"data.val_files={rows / 'test.parquet'}",
        f"actor_rollout_ref.model.path={output / 'base'}",
        f"trainer.default_local_dir={output / mode}",
        "trainer.resume_mode=disable",  # the model it begins with is made anew as well
        *([] if steps is None else [f"trainer.total_training_steps={steps}"]),
    ]
    return fit(load_config(f"quickstart_{mode}", overrides))


def evaluate(output: Path, actors: dict[Mode, str]) -> dict[str, Report]:
    """Each ranker before and after training on the test rows: label -> content of its result file."""
    from r1ranker.evaluation.runner import EvaluationOptions, run_evaluation

    reports = {}
    for mode, actor in actors.items():
        options = EvaluationOptions(
            data=str(output / "data" / "bench"),
            strategy=mode,
            think=False,
            constrain="candidates",
            output_dir=str(output / "eval"),
        )
        for when, model in (("before", str(output / "base")), ("after", actor)):
            (reports[f"{RANKERS[mode]}, {when}"],) = run_evaluation(",".join(TASKS), model, options, show=False)
    return reports


def in_words(reports: dict[str, Report]) -> str:
    """What the table shows: what each ranker learnt, and whether its interval is above the baseline's."""
    from r1ranker.evaluation.table import format_interval

    baseline = next(iter(reports.values()))["pooled"]["baselines"][BASELINE]["mrr"]
    lines = [
        f"What is right depends on the request, so the {BASELINE} does not solve it: MRR {format_interval(baseline)}."
    ]
    for ranker in RANKERS.values():
        before, after = (reports[f"{ranker}, {when}"]["pooled"]["metrics"]["mrr"] for when in ("before", "after"))
        if after["low"] > baseline["high"]:
            place = "its interval is above the baseline's"
        elif after["low"] > baseline["mean"]:
            place = "its interval is above the baseline's mean"
        else:
            place = "that is not above the baseline: train for more steps"
        lines.append(
            f"{ranker} learnt from rewards alone: {100 * before['mean']:.1f} -> {format_interval(after)}; {place}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main)
