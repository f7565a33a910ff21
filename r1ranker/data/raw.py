"""Ranking-bench's raw sources in a directory: which files feed which task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.passage import SIZES, PassageSettings, passage_files, read_passages
from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS, RecommendationSettings, read_recommendation
from r1ranker.data.sources.routing import OBJECTIVES, read_routing
from r1ranker.data.sources.source_example import Source, SourceExample
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASK_NAMES

ROUTER = ("router_data.csv", "router_data.csv.gz")
DESCRIPTIONS = ("llm_descriptions.json", "LLM_Descriptions.json")
LICENCES = {
    "Rec-Movie": "MovieLens 1M: GroupLens terms, research use, no redistribution without permission",
    "Rec-Music": "Amazon reviews, CDs and Vinyl: research use",
    "Rec-Game": "Amazon reviews, Video Games: research use",
    "Router": "router_data.csv: GraphRouter's or RouterBench's, under their repositories' licences",
    "Passage": "MS MARCO: non-commercial research",
}


@dataclass(frozen=True)
class RawSettings:
    """How raw sources become examples; the published values."""

    recommendation: RecommendationSettings = field(default_factory=RecommendationSettings)
    histories: Mapping[str, int] = field(default_factory=dict)
    """task -> a history of its own length"""
    recbole: Mapping[str, str] = field(default_factory=dict)
    """task -> another RecBole data set than the published one"""
    passage: PassageSettings = field(default_factory=PassageSettings)
    seed: int = 42
    merits: bool = False
    """routing: training rows have each LLM's merit as its grade"""

    def for_task(self, task: str) -> RecommendationSettings:
        """Those of a recommendation task."""
        return replace(self.recommendation, history=self.histories.get(task, self.recommendation.history))


def raw_sources(
    directory: str, tasks: Sequence[str] | None, settings: RawSettings
) -> tuple[dict[str, Source], list[str]]:
    """The sources of the tasks (all nine where none is named), by group, and a line on each for the card.

    Files are looked for anywhere under `directory`, by name. Raises UserError naming the files that a task lacks.
    """
    wanted = list(tasks or TASK_NAMES)
    sources: dict[str, Source] = {}
    lines = []
    for task in (name for name in wanted if name in RECBOLE_DATA_SETS):
        name = settings.recbole.get(task, RECBOLE_DATA_SETS[task])
        inter, item = find_recbole_files(directory, task, name)
        sources[task] = recommendation_source(task, inter, item, settings.for_task(task))
        terms = LICENCES[task] if name == RECBOLE_DATA_SETS[task] else "Under its own terms"
        lines.append(f"{task}: {name}.inter, {name}.item. {terms}")
    if any(name in OBJECTIVES for name in wanted):
        file = _find(directory, ROUTER, "Router")
        described = _found(directory, DESCRIPTIONS)
        sources["routing"] = routing_source(file, described, settings.seed, wanted, settings.merits)
        lines.append(
            f"Router: {Path(file).name}{f', {Path(described).name}' if described else ''}. {LICENCES['Router']}"
        )
    if any(name in SIZES for name in wanted):
        sources["passage"] = passage_source(_passages(directory), settings.passage, wanted)
        lines.append(f"Passage: train*.parquet, test*.parquet. {LICENCES['Passage']}")
    return sources, lines


def find_recbole_files(directory: str, task: str, name: str | None = None) -> tuple[str, str]:
    """The .inter and .item file of a recommendation task, anywhere under `directory`; raises UserError naming a missing one.

    `name`: of the RecBole data set, the published one where it is None. `directory` may also be a .inter file itself,
    with its .item file beside it.
    """
    if directory.endswith(".inter") and Path(directory).is_file():
        return directory, str(Path(directory).with_suffix(".item"))
    name = name or RECBOLE_DATA_SETS[task]
    files = [_found(directory, [f"{name}.{suffix}"]) for suffix in ("inter", "item")]
    if None in files:
        missing = f"{name}.{'inter' if files[0] is None else 'item'}"
        others = sorted({path.stem for path in Path(directory).rglob("*.inter")} - {name})
        raise UserError(
            f"{directory}: no {missing}; it is wanted for {task} (or name other tasks by --task"
            + (f", or --recbole {task}=NAME for one of {', '.join(others[:8])})" if others else ")")
        )
    inter, item = map(str, files)
    return inter, item


def is_raw(directory: str) -> bool:
    """Whether a raw source of any task lies under `directory`."""
    return _found(directory, ["*.inter", *ROUTER]) is not None or _passage_directory(directory) is not None


def recommendation_source(task: str, inter: str, item: str, settings: RecommendationSettings) -> Source:
    """The users of RecBole's atomic files."""

    def read(tally: Tally) -> Iterator[SourceExample]:
        yield from read_recommendation(task, inter, item, settings, tally.for_task(task))

    return read


def routing_source(
    file: str, descriptions: str | None, seed: int, tasks: Sequence[str], merits: bool = False
) -> Source:
    """The queries of router_data.csv, for those of the three objectives that are among `tasks`."""

    def read(tally: Tally) -> Iterator[SourceExample]:
        counted = Tally()
        for query, example in read_routing(file, descriptions, seed, counted, merits):
            if example.task in tasks:
                yield SourceExample(query, example, graded_tests=False)
        _add(tally, counted, tasks)

    return read


def passage_source(directory: str, settings: PassageSettings, tasks: Sequence[str]) -> Source:
    """The rows of MS MARCO's parquet files, for those of the three sizes that are among `tasks`."""

    def read(tally: Tally) -> Iterator[SourceExample]:
        counted = Tally()
        for query, split, example in read_passages(passage_files(directory), settings, counted):
            if example.task in tasks:
                yield SourceExample(query, example, split)
        _add(tally, counted, tasks)

    return read


def _add(tally: Tally, counted: Tally, tasks: Sequence[str]) -> None:
    for name, counts in counted.tasks.items():
        if name in tasks:
            own = tally.for_task(name)
            own.read.update(counts.read)
            own.left_out.update(counts.left_out)
            own.noted.update(counts.noted)


def _passage_directory(directory: str) -> str | None:
    for path in sorted(Path(directory).rglob("train*.parquet")):
        if path.parent.name not in _PREPARED:
            return str(path.parent)
    return None


_PREPARED = ("direct", "iterative", "direct_ranking", "iterative_ranking")


def _passages(directory: str) -> str:
    found = _passage_directory(directory)
    if found is None:
        raise UserError(
            f"{directory}: no train*.parquet; MS MARCO's parquet files are wanted for Passage (or name other tasks)"
        )
    return found


def _find(directory: str, names: Sequence[str], task: str) -> str:
    found = _found(directory, names)
    if found is None:
        raise UserError(
            f"{directory}: no {' or '.join(names)}; it is wanted for {task} (or name other tasks by --task)"
        )
    return found


def _found(directory: str, names: Sequence[str]) -> str | None:
    return next((str(path) for name in names for path in sorted(Path(directory).rglob(name))), None)
