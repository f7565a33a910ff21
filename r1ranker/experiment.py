"""`r1ranker experiment NAME`: from data to a table of trained and untrained rankers, by a file of configs/experiments/."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from r1ranker.atomic import atomic_path
from r1ranker.data.generate import TOY
from r1ranker.data.options import PrepareOptions
from r1ranker.data.prepare import prepare
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASK_NAMES

BUILT_IN = Path(__file__).parents[1] / "configs" / "experiments"


@dataclass
class DataSpec:
    """What is ranked."""

    source: str = "toy"
    """as `r1ranker prepare --from` takes it"""
    size: int = 200
    """of the toy source: direct training rows a task"""
    tasks: list[str] = field(default_factory=lambda: list(TASK_NAMES))


@dataclass
class ModelSpec:
    """A model to begin with."""

    path: str | None = None
    """directory or hub id; without one, a small model is built"""
    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    vocab_size: int = 600
    title_tokens: bool = True


@dataclass
class Arm:
    """One ranker of an experiment."""

    mode: str = "iterative"
    train: list[str] = field(default_factory=list)
    """tasks to learn from; all of the data's where there are none"""
    test: list[str] = field(default_factory=list)
    """tasks to be measured on; all of the data's where there are none"""
    model: dict[str, Any] = field(default_factory=dict)
    """what is another in this arm's model"""
    overrides: list[str] = field(default_factory=list)
    """of the training config"""


@dataclass
class Harness:
    """Language tasks for lm-evaluation-harness."""

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    """a directory with tasks of one's own"""
    limit: int | None = None
    """questions a task"""


@dataclass
class Experiment:
    """A file of configs/experiments/."""

    title: str = "???"
    config: str = "quickstart"
    """of configs/: how rankers are trained"""
    steps: int | None = 80
    """null: as the config says"""
    cold_start: int = 40
    """steps of fine-tuning on random answers of the right form, before; 0: none"""
    think: bool = False
    constrain: str = "candidates"
    engine: str = "hf"
    seed: int = 1
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    arms: dict[str, Arm] = field(default_factory=dict)
    harness: Harness = field(default_factory=Harness)


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of configs/experiments/`name`.yaml, or of a YAML file, with key=value overrides.

    Raises UserError for unknown names and keys, and for values of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = Path(name) if name.endswith((".yaml", ".yml")) else BUILT_IN / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
        raise UserError(f"{name}: no such experiment; there are {known}")
    try:
        parts = [OmegaConf.structured(Experiment), OmegaConf.load(file), OmegaConf.from_dotlist(list(overrides))]
        merged: Any = OmegaConf.to_object(OmegaConf.merge(*parts))
    except (OmegaConfBaseException, ValueError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{file.name}: {first}") from error
    if not merged.arms:
        raise UserError(f"{file.name}: arms: found none; at least one is wanted")
    for label, arm in merged.arms.items():
        if arm.mode not in ("iterative", "direct"):
            raise UserError(f"{file.name}: arms.{label}.mode: found {arm.mode!r}; iterative or direct is wanted")
        for task in (*arm.train, *arm.test):
            if task not in merged.data.tasks:
                raise UserError(f"{file.name}: arms.{label}: {task!r} is not among data.tasks")
    return merged


def run_experiment(experiment: Experiment, output: Path) -> dict[str, dict[str, Any]]:
    """Everything, under `output`; label -> result file's content, of each arm before and after training.

    What an earlier call has finished is not done again. Raises UserError where another experiment's results are there.
    """
    from r1ranker.evaluation.results import read_result, result_files
    from r1ranker.evaluation.runner import EvaluationOptions, evaluate, examples_by_task
    from r1ranker.evaluation.table import compare_table

    console = Console()
    _keep(experiment, output)
    began = time.perf_counter()
    console.rule(experiment.title)
    bench = _data(experiment, output)
    reports: dict[str, dict[str, Any]] = {}
    models: dict[str, str] = {}
    for label, arm in experiment.arms.items():
        base, actor = _train(experiment, label, arm, bench, output, console)
        tasks = arm.test or experiment.data.tasks
        test = examples_by_task(bench, tasks, "test")
        train = [one for rows in examples_by_task(bench, tasks, "train").values() for one in rows]
        if not models:
            models[f"{label}, before"] = base
        models[label] = actor
        for when, model in (("before", base), ("after", actor)):
            options = EvaluationOptions(
                bench, seed=experiment.seed, output_dir=str(output / "eval" / label / when), engine=experiment.engine,
                strategy=arm.mode, constrain=experiment.constrain, think=experiment.think,  # type: ignore[arg-type]
            )  # fmt: skip
            done = result_files(Path(options.output_dir))
            reports[f"{label}, {when}"] = (
                read_result(str(done[0])) if done else evaluate(model, test, train, options)[0]
            )
    for group in _same_rows(reports):
        console.print(compare_table(group))
    if experiment.harness.tasks:
        _ask_harness(experiment.harness, models, output, console)
    console.print(f"{output}: {time.perf_counter() - began:.0f} s", highlight=False, markup=False)
    return reports


def _keep(experiment: Experiment, output: Path) -> None:
    """Write the experiment beside its results; raises UserError where another one's are there."""
    from omegaconf import OmegaConf

    file, text = output / "experiment.yaml", OmegaConf.to_yaml(OmegaConf.structured(experiment))
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{file}: another experiment's results are there; another --output is wanted, or {output} deleted"
        )
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _data(experiment: Experiment, output: Path) -> str:
    """The directory in the layout that everything is measured on."""
    spec = experiment.data
    if not (output / "data" / "iterative_ranking" / "manifest.json").is_file():
        options = PrepareOptions(
            spec.source,
            str(output / "data"),
            think=experiment.think,
            tasks=spec.tasks,
            cold_start=experiment.cold_start > 0,
        )
        prepare(replace(options, size=spec.size) if spec.source == TOY else options)
    bench = output / "data" / "bench"
    return str(bench) if bench.is_dir() else spec.source


def _train(experiment: Experiment, label: str, arm: Arm, bench: str, output: Path, console: Console) -> tuple[str, str]:
    """The model before and the actor after training."""
    from r1ranker.trainer.config_load import load_config
    from r1ranker.trainer.fit import fit

    here = output / label
    rows = output / "data"
    if arm.train:
        rows = here / "data"
        if not (rows / "iterative_ranking" / "manifest.json").is_file():
            prepare(
                PrepareOptions(
                    bench, str(rows), think=experiment.think, tasks=arm.train, cold_start=experiment.cold_start > 0
                )
            )
    # arms of the same model and tasks begin with the same one
    base = _base(experiment, arm, rows, output, here if arm.train or arm.model else output)
    console.rule(label)
    directory = rows / f"{arm.mode}_ranking"
    given = [
        f"data.train_files={directory / 'train.parquet'}",
        f"data.val_files={directory / 'test.parquet'}",
        f"data.think={str(experiment.think).lower()}",
        f"data.seed={experiment.seed}",
        f"actor_rollout_ref.model.path={base}",
        f"actor_rollout_ref.rollout.constrain={experiment.constrain}",
        *([] if experiment.steps is None else [f"trainer.total_training_steps={experiment.steps}"]),
        f"trainer.experiment_name={label}",
        f"trainer.default_local_dir={here}",
    ]
    return base, fit(load_config(experiment.config, [*given, *arm.overrides]))  # one that is done is only named


def _base(experiment: Experiment, arm: Arm, rows: Path, output: Path, here: Path) -> str:
    """The arm's model before training: as it is named, or built; with a cold start where one is wanted."""
    from omegaconf import OmegaConf

    from r1ranker.model.init import ModelSize, init_model
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    spec: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(experiment.model), arm.model))
    model = spec.path
    if model is None:
        untrained = here / "untrained"
        if not untrained.is_dir():
            every = [str(output / "data" / f"{mode}_ranking" / "train.parquet") for mode in ("direct", "iterative")]
            size = ModelSize(spec.hidden_size, spec.layers, spec.heads, spec.kv_heads)
            init_model(str(untrained), every, size, spec.vocab_size, spec.title_tokens, experiment.seed)
        model = str(untrained)
    if not experiment.cold_start:
        return str(model)
    base = here / "base"
    if not base.is_dir():
        files = [str(rows / f"{mode}_ranking" / "sft.parquet") for mode in ("direct", "iterative")]
        fine_tune(model, files, str(base), SFTSettings(steps=experiment.cold_start, seed=experiment.seed))
    return str(base)


def _same_rows(reports: dict[str, dict[str, Any]]) -> list[list[tuple[str, dict[str, Any]]]]:
    """Reports that were measured on the same tasks, together."""
    groups: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for label, report in reports.items():
        groups.setdefault(tuple(report["tasks"]), []).append((label, report))
    return list(groups.values())


def _ask_harness(spec: Harness, models: dict[str, str], output: Path, console: Console) -> None:
    """Scores of each model, by its label."""
    from r1ranker.evaluation.harness import harness_table, run_harness

    scores = {
        label: run_harness(model, spec.tasks, output / "harness" / f"{label}.json", spec.include_path, spec.limit)
        for label, model in models.items()
    }
    console.print(harness_table(scores))
