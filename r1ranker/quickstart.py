"""The quick start: built-in data, a tiny model, a cold start, two trained rankers and their evaluation, on one CPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.errors import UserError, exit_on_user_error
from r1ranker.tasks.prompts import Mode

TASKS = ("Rec-Movie", "Rec-Music", "Rec-Game", "Router-Performance", "Router-Balance", "Router-Cost")
MODES: tuple[Mode, ...] = ("iterative", "direct")
RANKERS = {"iterative": "IRanker", "direct": "DRanker"}


def main() -> None:
    """Run it; see --help."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--steps", type=int, default=80, help="GRPO steps of each ranker (%(default)s)")
    parser.add_argument("--sft_steps", type=int, default=40, help="steps of the cold start (%(default)s)")
    parser.add_argument("--size", type=int, default=200, help="direct training rows a task (%(default)s)")
    parser.add_argument("--output", default="checkpoints/quickstart", help="where everything goes (%(default)s)")
    options = parser.parse_args()
    for name in ("steps", "sft_steps", "size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: found {getattr(options, name)}; at least 1 is wanted")
    run(Path(options.output), options.steps, options.sft_steps, options.size)


def run(output: Path, steps: int, sft_steps: int, size: int) -> None:
    """Everything, under `output`; prints one table at the end."""
    from r1ranker.evaluation.runner import EvaluationOptions, run_evaluation
    from r1ranker.evaluation.table import compare_table
    from r1ranker.model.init import init_model
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.fit import fit
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    console = Console()
    began = time.perf_counter()
    data, base, bench = output / "data", output / "base", str(output / "data" / "bench")

    console.rule("1. built-in data")
    prepare(PrepareOptions("toy", str(data), think=False, size=size, tasks=TASKS, cold_start=True))
    console.rule("2. a tiny base model with a cold start: it learns how to answer, not what")
    training = [str(data / f"{mode}_ranking" / "train.parquet") for mode in MODES]
    parameters = init_model(str(output / "untrained"), training, vocab_size=600, title_tokens=True)
    cold_start = [str(data / f"{mode}_ranking" / "sft.parquet") for mode in MODES]
    losses = fine_tune(str(output / "untrained"), cold_start, str(base), SFTSettings(steps=sft_steps))
    console.print(f"{parameters:,} parameters; cold start: loss {losses[0]:.2f} -> {losses[-1]:.2f}", highlight=False)

    actors = {}
    for place, mode in enumerate(MODES):
        console.rule(f"{3 + place}. {RANKERS[mode]} by GRPO")
        overrides = [
            f"data.train_files={training[place]}",
            f"data.val_files={data / f'{mode}_ranking' / 'test.parquet'}",
            f"actor_rollout_ref.model.path={base}",
            f"trainer.total_training_steps={steps}",
            f"trainer.experiment_name={mode}",
            f"trainer.default_local_dir={output / mode}",
            "trainer.resume_mode=disable",  # the model it begins with is made anew as well
        ]
        actors[mode] = fit(load_config("quickstart", overrides))

    console.rule("5. evaluation on unseen requests")
    reports = []
    for mode in MODES:
        for label, model in ((f"{RANKERS[mode]}, before", str(base)), (f"{RANKERS[mode]}, after", actors[mode])):
            reports.append(
                (
                    label,
                    run_evaluation(
                        ",".join(TASKS),
                        model,
                        EvaluationOptions(
                            data=bench,
                            strategy=mode,
                            think=False,
                            constrain="candidates",
                            output_dir=str(output / "eval"),
                        ),
                        show=False,
                    )[0],
                )
            )
    console.print(compare_table(reports))
    for mode in MODES:
        console.print(f"{RANKERS[mode]}: {actors[mode]}", highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


if __name__ == "__main__":
    exit_on_user_error(main)
