"""Running an experiment: data once, then for every seed models, training and evaluation. What is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from r1ranker.atomic import check_output_name
from r1ranker.data.generate import TOY
from r1ranker.data.options import PrepareOptions
from r1ranker.data.prepare import prepare
from r1ranker.data.sources.facts import FACTS
from r1ranker.experiments.parallel import Job, run_parallel
from r1ranker.experiments.spec import Arm, Experiment, Harness, keep_experiment, model_of
from r1ranker.experiments.summary import (
    ArmResult,
    baselines_of,
    read_metrics,
    summarise_experiment,
    training_costs,
)
from r1ranker.experiments.tables import print_summary, write_summary
from r1ranker.experiments.training import check_trainings, thinks, training_config
from r1ranker.ranking.settings import EliminationSettings

if TYPE_CHECKING:
    from r1ranker.trainer.config.schema import Config

Report = dict[str, Any]


def run_experiment(experiment: Experiment, output: Path, jobs: int = 1) -> dict[str, list[Report]]:
    """Everything, under `output`; label -> the content of each seed's result file, of each arm before and after training.

    jobs: how many trainings run side by side, each in a process of its own with its share of the cores.
    Raises UserError where another experiment's results are there.
    """
    console = Console(markup=False, emoji=False)
    check_output_name(str(output))
    check_trainings(experiment)
    keep_experiment(experiment, output / "experiment.yaml")
    began = time.perf_counter()
    console.rule(experiment.title)
    bench = _data(experiment, output)
    if jobs > 1:
        for seed in experiment.seeds:
            for label in experiment.arms:
                _before(experiment, label, seed, bench, output)
        units = {
            f"{labels[0]}, seed {seed}": Job(
                measure_arms, (experiment, bench, labels, seed, output), output / f"seed_{seed}" / f"{labels[0]}.log"
            )
            for seed in experiment.seeds
            for labels in _families(experiment)
        }
        run_parallel(units, jobs, console)
    rows = _rows(experiment, bench)
    measured: dict[str, ArmResult] = {}
    for seed in experiment.seeds:
        for label, arm in experiment.arms.items():
            before, after, curve = measure_arm(experiment, rows, label, seed, output, console)
            if before is not None:
                measured.setdefault(f"{label}, before", ArmResult(label, "before")).reports.append(before)
            found = measured.setdefault(f"{label}, after", ArmResult(label, "after"))
            found.reports.append(after)
            if arm.trained_as is None:
                found.runs.append(output / f"seed_{seed}" / label)
            if curve is not None:
                found.curves.append(curve)
    if experiment.harness.tasks:
        _ask_harness(experiment.harness, measured, experiment, output, console)
    baselines = baselines_of(rows.test, rows.train, experiment.model.path) if experiment.baselines else {}
    summary = summarise_experiment(experiment.title, list(measured.values()), baselines, rows.test, experiment.course)
    write_summary(summary, output)
    print_summary(summary, console)
    console.print(f"{output}: {time.perf_counter() - began:.0f} s", highlight=False, markup=False)
    return {label: found.reports for label, found in measured.items()}


@dataclass
class EvaluationRows:
    """What everything is measured on, task by task, and the table that routing rows were made from."""

    bench: str
    test: dict[str, list[Any]]
    train: dict[str, list[Any]]
    router: Any

    def select_tasks(self, tasks: Sequence[str]) -> EvaluationRows:
        """Those of some tasks."""
        return replace(
            self, test={task: self.test[task] for task in tasks}, train={task: self.train[task] for task in tasks}
        )

    def subsample(self, limit: int) -> EvaluationRows:
        """At most `limit` test rows of a task, for points of a curve."""
        return replace(
            self, test={task: subsample_evenly(rows, limit) for task, rows in self.test.items()}, router=None
        )


def _rows(experiment: Experiment, bench: str) -> EvaluationRows:
    from r1ranker.evaluation.runner import examples_by_task

    found = examples_by_task(bench, experiment.data.tasks, "test")
    test = {task: subsample_evenly(rows, experiment.data.limit) for task, rows in found.items()}
    train = examples_by_task(bench, experiment.data.tasks, "train")
    return EvaluationRows(bench, test, train, _router(experiment, test, train))


def measure_arm(
    experiment: Experiment, rows: EvaluationRows, label: str, seed: int, output: Path, console: Console
) -> tuple[Report | None, Report, list[dict[str, float]] | None]:
    """Train an arm and measure it: before training where that is wanted, after it, and at its states where a curve is.

    A point of a curve is {"step", "tokens", "seconds", "mrr"}.
    """
    arm, here = experiment.arms[label], output / f"seed_{seed}"
    base, actor, config = _models(experiment, label, seed, rows.bench, output, console)
    own = rows.select_tasks(arm.test or experiment.data.tasks)

    def report(when: str, model: str, asked: EvaluationRows = own) -> Report:
        return _evaluate(experiment, arm, model, config, asked, here / "eval" / label / when, seed)

    before = report("before", base) if experiment.untrained and arm.trained_as is None else None
    after = report("after", actor)
    if arm.trained_as is not None or experiment.curve is None:
        return before, after, None
    fewer, lines, points = own.subsample(experiment.curve), read_metrics(here / label), []
    for step, model in _states(here, label, base):
        found = report(f"step_{step}", model, fewer)
        costs = training_costs([line for line in lines if line["step"] <= step])
        points.append({"step": float(step), "mrr": found["pooled"]["metrics"]["mrr"]["mean"]} | costs)
    return before, after, points


def measure_arms(experiment: Experiment, bench: str, labels: Sequence[str], seed: int, output: Path) -> None:
    """`measure_arm` of several arms, whose results are left where they lie."""
    rows = _rows(experiment, bench)
    for label in labels:
        measure_arm(experiment, rows, label, seed, output, Console(markup=False, emoji=False))


def _families(experiment: Experiment) -> list[list[str]]:
    """Arms that share a training, or go on from one, in order; the one that is trained first comes first."""
    families: dict[str, list[str]] = {}
    for label in experiment.arms:
        families.setdefault(_origin(experiment, label), []).append(label)
    return list(families.values())


def _origin(experiment: Experiment, label: str) -> str:
    """The arm with whose training everything began that leads to an arm's ranker."""
    arm = experiment.arms[label]
    other = arm.trained_as or arm.begun_as
    return label if other is None else _origin(experiment, other)


def _trained(experiment: Experiment, label: str) -> str:
    """The arm whose training an arm shares: itself, unless it is another's ranker asked in another way."""
    other = experiment.arms[label].trained_as
    return label if other is None else _trained(experiment, other)


def subsample_evenly(rows: list[Any], limit: int | None) -> list[Any]:
    """At most `limit` rows, evenly spread: the rows of a user stand together."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[place * len(rows) // limit] for place in range(limit)]


def _data(experiment: Experiment, output: Path) -> str:
    """The directory in the layout that everything is measured on."""
    spec = experiment.data
    assert spec.source is not None
    if not (output / "data" / "iterative_ranking" / "manifest.json").is_file():
        options = PrepareOptions(
            spec.source,
            str(output / "data"),
            answer_style=experiment.answer_style,
            think=experiment.think,
            tasks=None if spec.source == FACTS else spec.tasks,
            cold_start=experiment.cold_start > 0,
            **spec.options,
        )
        prepare(replace(options, size=spec.size) if spec.source in (TOY, FACTS) else options)
    bench = output / "data" / "bench"
    return str(bench) if bench.is_dir() else spec.source


def _before(experiment: Experiment, label: str, seed: int, bench: str, output: Path) -> tuple[str, Path]:
    """The model before training, and the directory of the rows that an arm learns from."""
    label = _trained(experiment, label)
    arm = experiment.arms[label]
    here, rows = output / f"seed_{seed}", output / "data"
    own_rows = bool(arm.train or arm.answer_style or arm.teacher) or arm.think is not None
    if own_rows:
        rows = output / "data_of" / label
        if not (rows / "iterative_ranking" / "manifest.json").is_file():
            prepare(
                PrepareOptions(
                    bench,
                    str(rows),
                    answer_style=arm.answer_style or experiment.answer_style,
                    think=thinks(experiment, arm),
                    tasks=arm.train or experiment.data.tasks,
                    cold_start=experiment.cold_start > 0,
                    teacher=arm.teacher,
                )
            )
    if arm.begun_as is not None:
        return str(here / _trained(experiment, arm.begun_as) / "actor"), rows
    # arms of the same model begin with the same one, and those of the same rows with the same cold start
    own_model = here / label if arm.model else here
    untrained = _untrained(experiment, arm, output, own_model, seed)
    return _base(experiment, untrained, rows, here / label if own_rows else own_model, seed), rows


def _models(
    experiment: Experiment, label: str, seed: int, bench: str, output: Path, console: Console
) -> tuple[str, str, Config]:
    """The model before and the actor after training, and how it was trained."""
    from r1ranker.trainer.fit import fit

    label = _trained(experiment, label)
    base, rows = _before(experiment, label, seed, bench, output)
    here = output / f"seed_{seed}"
    console.rule(f"{label}, seed {seed}")
    config = training_config(experiment, label, seed, base, rows, here / label)
    return base, fit(config), config  # a training that is done is only named


def _untrained(experiment: Experiment, arm: Arm, output: Path, here: Path, seed: int) -> str:
    """The arm's model as it is named, or built with random weights."""
    from r1ranker.model.init import ModelSize, init_model

    spec = model_of(experiment, arm)
    if spec.path is not None:
        return spec.path
    untrained = here / "untrained"
    if not untrained.is_dir():
        every = [str(output / "data" / f"{mode}_ranking" / "train.parquet") for mode in ("direct", "iterative")]
        size = ModelSize(spec.hidden_size, spec.layers, spec.heads, spec.kv_heads)
        tokens = spec.title_tokens, spec.title_words, spec.turn_tokens
        init_model(str(untrained), every, size, spec.vocab_size, *tokens, seed)
    return str(untrained)


def _base(experiment: Experiment, untrained: str, rows: Path, here: Path, seed: int) -> str:
    """The model before RL: after a cold start where one is wanted."""
    from r1ranker.trainer.sft import SFTSettings, fine_tune

    if not experiment.cold_start:
        return untrained
    base = here / "base"
    if not base.is_dir():
        files = [str(rows / f"{mode}_ranking" / "sft.parquet") for mode in ("direct", "iterative")]
        fine_tune(
            untrained, files, str(base), SFTSettings(steps=experiment.cold_start, seed=seed, **asdict(experiment.sft))
        )
    return str(base)


def _evaluate(
    experiment: Experiment, arm: Arm, model: str, config: Config, rows: EvaluationRows, directory: Path, seed: int
) -> Report:
    """A model's result under the form of answers of its training: free or constrained, with thoughts or without."""
    from r1ranker.evaluation.options import EvaluationOptions
    from r1ranker.evaluation.results import read_result, result_files
    from r1ranker.evaluation.runner import evaluate

    done = result_files(directory)
    if done:
        return read_result(str(done[0]))
    rollout: Any = config.actor_rollout_ref.rollout
    style: Any = config.data.answer_style
    options = EvaluationOptions(
        rows.bench,
        seed=seed,
        output_dir=str(directory),
        engine=experiment.engine,
        dtype=str(config.actor_rollout_ref.model.dtype),
        strategy=arm.mode,  # type: ignore[arg-type]
        constrain=rollout.constrain,
        think=config.data.think,
        answer_style=style,
        max_tokens=config.data.max_response_length,
        elimination=EliminationSettings(**arm.elimination),
        router_data=None if rows.router is None else rows.router.path,
    )
    known = [one for task in rows.test for one in rows.train[task]]
    return evaluate(model, rows.test, known, options, router=rows.router)[0]


def _states(here: Path, label: str, base: str) -> Iterator[tuple[int, str]]:
    """(step, model) at the beginning and at each saved state of a training."""
    from r1ranker.trainer.checkpoint.export import export_actor
    from r1ranker.trainer.checkpoint.state import STATES, list_states

    yield 0, base
    for step, state in reversed(list_states(here / label / STATES)):
        exported = here / "states" / label / f"step_{step}"
        if not exported.is_dir():
            export_actor(str(state), str(exported))
        yield step, str(exported)


def _router(experiment: Experiment, test: dict[str, list[Any]], train: dict[str, list[Any]]) -> Any:
    """The table that routing rows were made from, where there is one."""
    from r1ranker.evaluation.routing import RouterTable

    if experiment.router_data is None:
        return None
    table = RouterTable(str(Path(str(experiment.data.source)) / experiment.router_data))
    table.check(test, [one for rows in train.values() for one in rows])
    return table


def _ask_harness(
    spec: Harness, measured: dict[str, ArmResult], experiment: Experiment, output: Path, console: Console
) -> None:
    """Scores of each model of the first seed, by its label."""
    from r1ranker.evaluation.harness import harness_table, run_harness

    models = {label: str(found.reports[0]["model"]) for label, found in measured.items()}
    scores = {
        label: run_harness(model, spec.tasks, output / "harness" / f"{label}.json", spec.include_path, spec.limit)
        for label, model in models.items()
    }
    console.print(harness_table(scores))
