"""The quick start: built-in data, a model, trained rankers and their evaluation, on one CPU.

The model is a tiny one of random weights, or a small pretrained language model that learns to read.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from typer import Option

from r1ranker.atomic import check_output_name, lock_directory
from r1ranker.cli.run import run_command
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.facts import FACTS, FACTS_TASK
from r1ranker.data.sources.toy import TOY
from r1ranker.errors import UserError, check_at_least
from r1ranker.lean_imports import import_transformers
from r1ranker.tasks.labels import AnswerStyle
from r1ranker.tasks.prompts import Mode

TOY_TASKS = ("Rec-Movie", "Rec-Music", "Rec-Game", "Router-Performance", "Router-Balance", "Router-Cost")
RANKERS: dict[Mode, str] = {"iterative": "IRanker", "direct": "DRanker"}
DIRECTORIES = ("data", "untrained", "base", *RANKERS, "eval")
REPORT, ABOUT = "report.html", "quickstart.json"
"""what is made, under --output; the last says with which model"""
PRETRAINED = "SmolLM2-135M-Instruct"
EVALUATED = 100
"""test rows that a pretrained model ranks, before and after"""


@dataclass(frozen=True)
class Course:
    """What is ranked, by which kind of model, and how it learns."""

    data: str
    """the built-in source"""
    tasks: tuple[str, ...]
    configs: Mapping[Mode, str]
    """of each ranker that is trained"""
    size: int
    """direct training rows a task"""
    pretrained: bool
    baseline: str
    """what a trained ranker has to beat"""
    why: str
    """what is said of the baseline"""
    answer_style: AnswerStyle = "name"
    prepared: Mapping[str, Any] = field(default_factory=dict)
    """further options of prepare"""
    sft: Mapping[str, Any] = field(default_factory=dict)
    """settings of a cold start"""


COURSES = {
    "tiny": Course(
        TOY,
        TOY_TASKS,
        {"iterative": "quickstart_iterative", "direct": "quickstart_direct"},
        size=200,
        pretrained=False,
        baseline="most frequent label",  # it knows the training labels, and nothing of the request
        why="What is right depends on the request, so the most frequent label does not solve it",
        prepared={"tasks": TOY_TASKS},
    ),
    "smollm2": Course(
        FACTS,
        (FACTS_TASK.name,),
        {"direct": "language_direct"},
        size=1000,
        pretrained=True,
        baseline="BM25",
        why="Half of the sentences share few words with the questions, so BM25 solves only a part",
        answer_style="label_after",
        sft={"lr": 5e-5, "dtype": "bfloat16"},
    ),
}

Report = dict[str, Any]


def main() -> None:
    """Run it; see --help."""
    run_command(quickstart)


def quickstart(
    model: Annotated[
        Literal["tiny", "smollm2"],
        Option(help="tiny: random weights, two rankers in minutes; smollm2: pretrained, one ranker, in half an hour"),
    ] = "tiny",
    steps: Annotated[int | None, Option(help="training steps of each ranker (as its config says)")] = None,
    sft_steps: Annotated[int, Option(help="steps of a cold start before")] = 0,
    size: Annotated[int | None, Option(help="direct training rows a task (tiny: 200, smollm2: 1000)")] = None,
    output: Annotated[
        str | None,
        Option(help="where everything goes (checkpoints/quickstart; smollm2: checkpoints/quickstart_smollm2)"),
    ] = None,
) -> None:
    """Make built-in data and a model, train rankers and evaluate them, on one CPU."""
    course = COURSES[model]
    size = course.size if size is None else size
    for name, value, least in (("--steps", steps, 1), ("--sft-steps", sft_steps, 0), ("--size", size, 1)):
        if value is not None:
            check_at_least(name, value, least)
    if output is None:
        output = "checkpoints/quickstart" + ("" if model == "tiny" else f"_{model}")
    if not output.strip():
        raise UserError("--output: found nothing; a directory is wanted")
    check_output_name(output)
    check_size(size, course)
    with lock_directory(Path(output)):
        check_output(Path(output), model)
        import_transformers()
        run(Path(output), steps, sft_steps, size, course)


def check_size(size: int, course: Course) -> None:
    """Raise UserError where so many direct rows a task are fewer than a step's prompts."""
    from r1ranker.trainer.config.load import load_config

    named = dict.fromkeys(("data.train_files", "data.val_files", "actor_rollout_ref.model.path"), "x")
    wanted = max(load_config(config, values=named).data.train_batch_size for config in course.configs.values())
    check_at_least("--size", size, -(-wanted // len(course.tasks)))


def check_output(output: Path, model: str) -> None:
    """Raise UserError where something that is to be made has no place under `output`, nothing can be written there, or it holds
    what was made with another model. Notes there which one it is."""
    for name in DIRECTORIES:
        if (output / name).exists() and not (output / name).is_dir():
            raise UserError(f"--output {output}: found a file {name}; the place of a directory is wanted")
    if (output / REPORT).is_dir():
        raise UserError(f"--output {output}: found a directory {REPORT}; the place of a file is wanted")
    try:
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; a writable directory is wanted") from error
    about = output / ABOUT
    known = json.loads(about.read_text(encoding="utf-8"))["model"] if about.is_file() else "tiny"
    if known != model and (output / "data").exists():
        raise UserError(f"--output {output}: holds a quick start with --model {known}; another directory is wanted")
    about.write_text(json.dumps({"model": model}) + "\n", encoding="utf-8")


def run(output: Path, steps: int | None, sft_steps: int, size: int, course: Course = COURSES["tiny"]) -> None:
    """Everything, under `output`; prints one table at the end and writes a report. `steps` None: as the configs say."""
    from r1ranker.evaluation.table import compare_table, wide_console
    from r1ranker.report import write_report

    console = Console(markup=False, emoji=False)
    began = time.perf_counter()
    console.rule("1. built-in data")
    rows = PrepareOptions(
        course.data,
        str(output / "data"),
        answer_style=course.answer_style,
        think=False,
        size=size,
        cold_start=sft_steps > 0,
        **course.prepared,
    )
    prepare(rows)
    console.rule("2. a pretrained language model" if course.pretrained else "2. a tiny base model of random weights")
    base = build_base(output, sft_steps, console, course)
    actors: dict[Mode, str] = {}
    for place, mode in enumerate(course.configs, 3):
        console.rule(f"{place}. {RANKERS[mode]} by reinforcement learning")
        actors[mode] = train(output, mode, base, steps, course)
    console.rule(f"{3 + len(actors)}. evaluation on unseen requests")
    reports = evaluate(output, base, actors, course)
    wide_console().print(compare_table(list(reports.items())))
    console.print(in_words(reports, course), highlight=False, soft_wrap=True)
    page = output / REPORT
    write_report([*(str(output / mode) for mode in actors), str(output / "eval")], str(page))
    for mode, actor in actors.items():
        console.print(f"{RANKERS[mode]}: {actor}", highlight=False, soft_wrap=True)
    console.print(f"report, for a browser: {page}", highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} s in all", highlight=False)


def build_base(output: Path, sft_steps: int, console: Console, course: Course = COURSES["tiny"]) -> str:
    """The model to begin with: `output`/base, of random weights, or a pretrained one, which is fetched once.

    Answers are constrained to the pool, so it need not learn their form first. With `sft_steps` it is fine-tuned on random
    answers all the same.
    """
    from r1ranker.model.fetch import fetch_model
    from r1ranker.model.init import init_model
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    rows = [output / "data" / f"{mode}_ranking" for mode in course.configs]
    base = str(output / "base")
    begun = str(output / "untrained") if sft_steps or course.pretrained else base
    if course.pretrained:
        if not Path(begun).is_dir():
            console.print(f"{PRETRAINED}: {fetch_model(PRETRAINED, Path(begun))}", highlight=False, soft_wrap=True)
    else:
        training = [str(directory / "train.parquet") for directory in rows]
        parameters = init_model(begun, training, vocab_size=600, title_tokens=True, title_words=True)
        console.print(f"{parameters:,} parameters", highlight=False)
    if sft_steps:
        answers = [str(directory / "sft.parquet") for directory in rows]
        losses = fine_tune(begun, answers, base, SFTSettings(steps=sft_steps, **course.sft))
        console.print(f"cold start: loss {losses[0]:.2f} -> {losses[-1]:.2f}", highlight=False)
        return base
    return begun


def train(output: Path, mode: Mode, base: str, steps: int | None, course: Course) -> str:
    """Train a ranker by its config; returns the actor's directory."""
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.fit import fit

    rows = output / "data" / f"{mode}_ranking"
    values: dict[str, object] = {
        "data.train_files": str(rows / "train.parquet"),
        "data.val_files": str(rows / "test.parquet"),
        "actor_rollout_ref.model.path": base,
        "trainer.default_local_dir": str(output / mode),
        "trainer.resume_mode": "disable",  # the model it begins with is made anew as well
    }
    if steps is not None:
        values["trainer.total_training_steps"] = steps
    return fit(load_config(course.configs[mode], values=values))


def evaluate(output: Path, base: str, actors: dict[Mode, str], course: Course) -> dict[str, Report]:
    """Each ranker before and after training on the test rows: label -> content of its result file."""
    from r1ranker.evaluation.options import EvaluationOptions
    from r1ranker.evaluation.runner import run_evaluation

    reports = {}
    for mode, actor in actors.items():
        options = EvaluationOptions(
            data=str(output / "data" / "bench"),
            strategy=mode,
            answer_style=course.answer_style,
            think=False,
            constrain="candidates",
            dtype="bfloat16" if course.pretrained else "auto",
            baselines=course.pretrained,
            limit=EVALUATED if course.pretrained else None,
            output_dir=str(output / "eval"),
        )
        for when, model in (("before", base), ("after", actor)):
            (reports[f"{RANKERS[mode]}, {when}"],) = run_evaluation(",".join(course.tasks), model, options, show=False)
    return reports


def in_words(reports: dict[str, Report], course: Course) -> str:
    """What the table shows: what each ranker learnt, and whether its interval is above the baseline's."""
    from r1ranker.evaluation.table import format_interval

    baseline = next(iter(reports.values()))["pooled"]["baselines"][course.baseline]["mrr"]
    lines = [f"{course.why}: MRR {format_interval(baseline)}."]
    for ranker in (RANKERS[mode] for mode in course.configs):
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
    main()
