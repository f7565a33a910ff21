"""The page: sections, tables and examples in a template, charts as JSON, plotly.js and styles inside the file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from r1ranker.atomic import atomic_path
from r1ranker.errors import UserError
from r1ranker.report.entries import ALL_TASKS, Entry, assign_task_ids, make_entries
from r1ranker.report.examples import examples_of
from r1ranker.report.figure import Figure, Section
from r1ranker.report.load import Result, Run, load_inputs
from r1ranker.report.paper import MODELS, PAPER, origin, paper_beside
from r1ranker.report.result_figures import (
    comparison_section,
    pool_size_section,
    position_section,
    round_section,
    without_rankings,
)
from r1ranker.report.rollouts import Answers, read_rollouts, rollout_section, rollout_tables
from r1ranker.report.systems import Comparison, compare_routing, compare_systems
from r1ranker.report.training_figures import (
    SMOOTHED_FROM,
    time_section,
    training_section,
    validation_section,
)

DEFAULT_METRIC = "mrr"
_PACKAGE = "r1ranker.report"


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    runs: list[Entry[Run]]
    results: list[Entry[Result]]
    tasks: dict[str, str]
    """task -> id"""
    comparisons: list[Comparison]
    routing: list[Comparison]
    """by what the LLMs put first are worth"""
    sections: dict[str, Section]
    answers: list[Answers]
    """what runs wrote down of theirs"""


def write_report(inputs: Sequence[str], output: str) -> None:
    """Write one HTML file about runs, results and directories that hold them; it needs no network to be viewed.

    Raises UserError for input that is not there, broken or of another kind, and where `output` cannot be written or is
    itself an input; nothing is written then.
    """
    runs, results = load_inputs(inputs)
    target = Path(output)
    read = [*(run.file for run in runs), *(result.file for result in results)]
    if target.resolve() in {file.resolve() for file in read}:
        raise UserError(f"{output}: is one of the inputs; another output is wanted")
    if os.path.isdir(target):
        raise UserError(f"{output}: is a directory; a file to write is wanted")
    page = render(build(runs, results))
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def build(runs: Sequence[Run], results: Sequence[Result]) -> Report:
    """All figures, from what was read."""
    tasks = assign_task_ids(runs, results)
    named_runs, named_results = make_entries(runs, results)
    comparisons = _comparisons(named_results, tasks)
    rollouts = [read_rollouts(run) for run in runs]
    sections = {
        "training": training_section(named_runs),
        "rollouts": rollout_section(named_runs, rollouts),
        "validation": validation_section(named_runs, tasks),
        "time": time_section(named_runs),
        "results": comparison_section(comparisons),
        "pool_size": pool_size_section(named_results, tasks),
        "position": position_section(named_results, tasks),
        "rounds": round_section(named_results, tasks),
    }
    return Report(
        named_runs,
        named_results,
        tasks,
        comparisons,
        _routing(named_results, tasks),
        sections,
        rollout_tables(named_runs, rollouts),
    )


def _comparisons(results: Sequence[Entry[Result]], tasks: dict[str, str]) -> list[Comparison]:
    pooled = [(entry, entry.source.pooled) for entry in results if entry.source.pooled and len(entry.source.tasks) > 1]
    found = [compare_systems("All tasks", ALL_TASKS, pooled)] if pooled else []
    for task, task_id in tasks.items():
        own = [(entry, entry.source.tasks[task]) for entry in results if task in entry.source.tasks]
        if own:
            found.append(compare_systems(task, task_id, own))
    return found


def _routing(results: Sequence[Entry[Result]], tasks: dict[str, str]) -> list[Comparison]:
    found = [
        compare_routing(
            task, task_id, [(entry, entry.source.tasks[task]) for entry in results if task in entry.source.tasks]
        )
        for task, task_id in tasks.items()
    ]
    return [comparison for comparison in found if comparison]


def render(report: Report) -> str:
    """The page as HTML; all text of the inputs is escaped, and only the page's own two scripts may run."""
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [_plotly(), _resource("page.js")]
    metrics = list(dict.fromkeys(name for comparison in report.comparisons for name in comparison.metrics))
    figures: dict[str, Figure] = {}
    for name, section in report.sections.items():
        figures |= {f"{name}-{place}": figure for place, figure in enumerate(section.figures)}
    overview = [comparison for comparison in report.comparisons if DEFAULT_METRIC in comparison.metrics]
    return environment.get_template("page.html.jinja").render(
        report=report,
        metrics=metrics,
        metric=DEFAULT_METRIC if DEFAULT_METRIC in metrics else "",
        figures=Markup(escape_json({name: asdict(figure) for name, figure in figures.items()})),
        examples={task: examples_of(report.results, task, task_id) for task, task_id in report.tasks.items()},
        no_rankings=without_rankings(report.results),
        overview=overview,
        with_paper=any(map(paper_beside, overview)),
        paper_models=MODELS,
        paper_beside=paper_beside,
        paper_note=PAPER,
        origin=origin,
        flat=_flat,
        smoothed_from=SMOOTHED_FROM,
        style=Markup(_resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def _flat(settings: dict[str, Any]) -> list[str]:
    """`name value` of each setting, those of a group without the group's name."""
    return [
        part
        for name, value in settings.items()
        for part in (_flat(value) if isinstance(value, dict) else [f"{name} {value}"])
    ]


def escape_json(value: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plotly() -> str:
    # what plotly.offline.get_plotlyjs returns, without the second that importing plotly takes
    script = pkgutil.get_data("plotly", "package_data/plotly.min.js")
    assert script is not None
    return script.decode("utf-8")


def _resource(name: str) -> str:
    content = pkgutil.get_data(_PACKAGE, name)
    assert content is not None
    return content.decode("utf-8")
