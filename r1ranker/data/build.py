"""Ranking-bench's layout from sources: split by user or query first, expanded into pools after."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from r1ranker.data.files.dataset_writer import DataSetInfo, DataSetWriter
from r1ranker.data.files.manifest import digest
from r1ranker.data.files.statistics import RowStatistics
from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.ranking_bench import CONFIGS, bench_schema, example_to_bench_row
from r1ranker.data.sources.source_example import SPLITS, Source, Split
from r1ranker.errors import UserError
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import sample_sub_pools
from r1ranker.tasks.prompts import Mode
from r1ranker.tasks.text import sanitise

TEST_SHARE = 0.2
"""of the users or queries; the published value"""


@dataclass
class _Plan:
    """Which side each key of a group is on."""

    side: dict[int, Split] = field(default_factory=dict)
    graded: bool = False
    rows: Counter[int] = field(default_factory=Counter)
    """of each key and task"""


def build_bench(
    sources: Mapping[str, Source],
    directory: Path,
    about: DataSetInfo,
    test_share: float = TEST_SHARE,
    pool_sizes: range | None = None,
    test_rows: int = 0,
    on_row: Callable[[Mode, Split, RankingExample, str], None] = lambda config, split, example, problem: None,
    commit: ExitStack | None = None,
) -> DataSetWriter:
    """Write {direct,iterative}/{train,test}.parquet, the card and the manifest; returns the writer with its counts.

    `sources`: by group. Within a group, examples that share a key, or a query or history that reads alike, go to one side: the one that
    the source names, else `test_share` of them to the test side, drawn by the seed. Every source is read twice, so that
    no more than digests are held. The iterative rows of an example, and of each of `variants` of it on the training side, are
    one sub-pool of each size, or of each of `pool_sizes`. Of the test rows of a key at most `test_rows` are written, evenly
    spread over them (0: all). A row names its key by a digest, `subject`. `on_row` hears of every row and its wording; `commit` is for DataSetWriter.
    """
    if not 0 < test_share < 1:
        raise UserError(f"--test-share: found {test_share}; a share between 0 and 1 is wanted")
    plans = {group: _plan(group, source, test_share, about.seed) for group, source in sources.items()}
    graded = any(plan.graded for plan in plans.values())
    with DataSetWriter(directory, about, commit) as out, ExitStack() as files:
        writers = {
            (config, split): files.enter_context(out.file(f"{config}/{split}.parquet", bench_schema(graded, True)))
            for config in CONFIGS
            for split in SPLITS
        }
        for config in CONFIGS:
            out.statistics[config] = RowStatistics()
        for group, source in sources.items():
            seen: set[int] = set()
            met: Counter[int] = Counter()  # of each key and task
            for sourced in source(out.tally):
                split = plans[group].side[digest([sourced.key])]
                example = sourced.example
                if split == "test" and not sourced.graded_tests:
                    example = replace(example, grades=())
                counts = out.tally.for_task(example.task)
                request = _request(example)
                own = digest([sourced.key, example.task])
                met[own] += 1
                if split == "test" and test_rows and not _is_kept(met[own], plans[group].rows[own], test_rows):
                    counts.left_out[f"test rows of a user or query beyond {test_rows}"] += 1
                    continue
                if sourced.split is not None and sourced.split != split:
                    counts.left_out["training rows whose user or query is on the test side"] += 1
                    continue
                if request in seen:
                    counts.left_out["requests that stand there twice"] += 1
                    continue
                seen.add(request)
                rng = random.Random(f"{about.seed} {request}")
                subject = f"{digest([group, sourced.key]):016x}"
                for one in (example, *(sourced.variants if split == "train" else ())):
                    whole = replace(one, subject=subject)
                    for config, row in _rows(_with_grades(whole) if graded else whole, rng, pool_sizes):
                        written = example_to_bench_row(row, config)
                        writers[config, split].add(written)
                        on_row(config, split, row, written["problem"])
                        counts.written[f"{config} {split}"] += 1
                        place = row.candidates.index(row.positive)
                        out.statistics[config].for_task(row.task).add(len(row.candidates), place)
        for (config, split), writer in writers.items():
            if not writer.count:
                raise UserError(f"{directory}: no {config} {split} row is left; see the counts: {_why(out.tally)}")
    return out


def _is_kept(number: int, count: int, most: int) -> bool:
    """Whether the `number`th (from 1) of `count` rows is one of `most` that are evenly spread."""
    return number * most // count > (number - 1) * most // count


def _plan(group: str, source: Source, test_share: float, seed: int) -> _Plan:
    plan = _Plan()
    leader: dict[int, int] = {}  # union-find: keys that share a query or a history go together
    explicit: dict[int, Split] = {}
    keys: dict[int, None] = {}

    def find(node: int) -> int:
        while (above := leader.setdefault(node, node)) != node:
            leader[node] = leader.get(above, above)
            node = above
        return node

    for sourced in source(Tally()):
        key = digest([sourced.key])
        keys[key] = None
        plan.rows[digest([sourced.key, sourced.example.task])] += 1
        one, other = find(key), find(digest(["request", *map(normalise, _said(sourced.example))]))
        leader[other] = one
        if sourced.split is not None:
            explicit[key] = "test" if "test" in (sourced.split, explicit.get(key)) else "train"
        plan.graded = plan.graded or bool(sourced.example.grades)
    said: dict[int, Split] = {}
    for key, split in explicit.items():
        root = find(key)
        said[root] = "test" if "test" in (split, said.get(root)) else "train"
    free = [root for root in dict.fromkeys(find(key) for key in keys) if root not in said]
    random.Random(f"{seed} split").shuffle(free)
    test = (
        min(max(1, round(len(free) * test_share)), len(free) - 1)
        if len(free) > 1 and not said
        else round(len(free) * test_share)
    )
    for place, root in enumerate(free):
        said[root] = "test" if place < test else "train"
    plan.side = {key: said[find(key)] for key in keys}
    return plan


def _rows(
    example: RankingExample, rng: random.Random, pool_sizes: range | None
) -> Iterator[tuple[Mode, RankingExample]]:
    """The example itself for direct ranking, and one of each of its sub-pools for iterative ranking."""
    yield "direct", example
    for pool in sample_sub_pools(example, rng, pool_sizes):
        yield "iterative", example.with_pool(pool)


def _with_grades(example: RankingExample) -> RankingExample:
    """Where some rows have grades all have: the positive's is 1."""
    if example.grades:
        return example
    return replace(example, grades=tuple(float(name == example.positive) for name in example.candidates))


def _said(example: RankingExample) -> tuple[str, ...]:
    return (example.query, *example.history)


def _request(example: RankingExample) -> int:
    """What makes two examples the same one, as they are shown: a history with its positive; a query with its candidates."""
    pool = () if example.history else (*sorted(example.candidates), *example.texts)
    positive = (example.positive,) if example.history else ()
    return digest([example.task, *map(sanitise, _said(example)), "", *map(sanitise, (*positive, *pool))])


def _why(tally: Tally) -> str:
    reasons = [
        f"{count:,} {reason}" for task in tally.tasks.values() for reason, count in task.left_out.items() if count
    ]
    return "; ".join(reasons) or "the source has too few rows"
