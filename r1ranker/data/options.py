"""What can be asked of `r1ranker prepare`, and which of it each kind of source can answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from r1ranker.data.build import TEST_SHARE
from r1ranker.data.generate import MOST_TOKENS, TOY
from r1ranker.data.raw import is_raw
from r1ranker.data.sources.facts import FACTS, check_size
from r1ranker.data.sources.passage import SIZES
from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS
from r1ranker.data.sources.routing import OBJECTIVES
from r1ranker.data.sources.toy import MAX_SIZE
from r1ranker.data.sources.trec import TrecFiles
from r1ranker.data.sources.user_rows import SUFFIXES, is_user_file
from r1ranker.data.teacher import TEACHERS
from r1ranker.errors import UserError, check_at_least
from r1ranker.tasks.catalog import HUB_ID, get_task
from r1ranker.tasks.custom import register_tasks_of

TREC = "trec"
Kind = Literal["toy", "facts", "layout", "raw", "own", "trec"]


@dataclass(frozen=True)
class PrepareOptions:
    """What can be asked of `r1ranker prepare`."""

    source: str = HUB_ID
    output: str = "data"
    answer_style: str = "name"
    think: bool = True
    tasks: Sequence[str] | None = None
    seed: int = 42
    test_share: float = TEST_SHARE
    cold_start: bool = False
    tokenizer: str | None = None
    max_prompt_length: int = MOST_TOKENS
    max_passage_tokens: int | None = None
    """of a candidate's text in training rows; None: texts are shown whole"""
    size: int = 100
    """toy: direct training rows a task; facts: direct training rows"""
    history: Sequence[str] = ()
    """raw: N for all tasks, TASK=N for one"""
    candidates: int = 20
    users: int = 657
    positions: int = 1
    recbole: Sequence[str] = ()
    """TASK=NAME"""
    template: str | None = None
    shuffle: bool = False
    trec: TrecFiles | None = None
    test_rows: int = 0
    """of a user or query at most, evenly spread; 0: all"""
    pool_sizes: str = ""
    """of the iterative rows, LOW-HIGH; all where it is empty"""
    merits: bool = False
    """routing: training rows have each LLM's merit as its grade"""
    teacher: str | None = None
    """of the cold start's thoughts and answers: frequent, by the most frequent label, or right, by the row's own"""
    pools: int = 1
    """of a training request, each with other candidates"""


_USES: dict[str, tuple[str, tuple[Kind, ...]]] = {
    "tasks": ("--task", ("toy", "layout", "raw", "own", "trec")),
    "size": ("--size", ("toy", "facts")),
    "history": ("--history", ("raw",)),
    "candidates": ("--candidates", ("raw", "trec")),
    "users": ("--users", ("raw",)),
    "test_rows": ("--test-rows", ("raw", "own", "trec")),
    "pool_sizes": ("--pool-sizes", ("facts", "raw", "own", "trec")),
    "positions": ("--positions", ("raw",)),
    "pools": ("--pools", ("raw",)),
    "recbole": ("--recbole", ("raw",)),
    "merits": ("--merits", ("raw",)),
    "test_share": ("--test-share", ("raw", "own", "trec")),
    "template": ("--template", ("own", "trec")),
    "shuffle": ("--shuffle", ("own", "trec")),
    "trec": ("--queries, --collection, --run and --qrels", ("trec",)),
}
_NAMES: dict[Kind, str] = {
    "toy": "the built-in world",
    "facts": "the built-in facts",
    "layout": "a data set in Ranking-bench's layout",
    "raw": "raw sources",
    "own": "a file of one's own",
    "trec": "TREC files",
}


def kind_of_source(options: PrepareOptions) -> Kind:
    """What kind of source is named; raises UserError where it is none."""
    source = options.source
    for name, value in (("--from", source), ("--output", options.output)):
        if not value or not value.isprintable():
            raise UserError(f"{name}: found {value!a}; a name in UTF-8 is wanted")
    if source == TREC:
        if options.trec is None:
            raise UserError("--from trec: --queries, --collection, --run and --qrels are wanted with it")
        return "trec"
    if source == TOY:
        return "toy"
    if source == FACTS:
        return "facts"
    if is_user_file(source):
        return "own"
    if Path(source).is_file():
        raise UserError(f"{source}: a name that ends in one of {', '.join(SUFFIXES)} is wanted")
    if not Path(source).is_dir() or (Path(source) / "direct").is_dir() or (Path(source) / "iterative").is_dir():
        return "layout"
    if any((Path(source) / name).is_dir() for name in ("direct_ranking", "iterative_ranking")):
        raise UserError(f"{source}: found training rows that were prepared already; their source is wanted")
    if is_raw(source):
        return "raw"
    raise UserError(
        f"{source}: neither Ranking-bench's layout (direct/train.parquet, ...) nor a raw source "
        f"({', '.join(f'{name}.inter' for name in RECBOLE_DATA_SETS.values())}, router_data.csv, train*.parquet) is there"
    )


def check_options(options: PrepareOptions, kind: Kind) -> None:
    """Raise UserError for values out of range, for options that the kind of source has no use for, and unknown tasks."""
    for name, value, least in (
        ("--size", options.size, 1),
        ("--seed", options.seed, 0),
        ("--candidates", options.candidates, 2),
        ("--users", options.users, 0),
        ("--positions", options.positions, 1),
        ("--pools", options.pools, 1),
        ("--test-rows", options.test_rows, 0),
        ("--max-prompt-length", options.max_prompt_length, 1),
    ):
        check_at_least(name, value, least)
    if kind == "facts":
        check_size(options.size)
    if kind == "toy" and options.size > MAX_SIZE:
        raise UserError(f"--size: found {options.size}; at most {MAX_SIZE} rows a task are wanted")
    parse_pool_sizes(options.pool_sizes)
    changed = {one.name for one in fields(options) if getattr(options, one.name) != one.default}
    for field, (name, kinds) in _USES.items():
        if field in changed and kind not in kinds:
            raise UserError(
                f"{name}: of no use with {_NAMES[kind]}; {' or '.join(_NAMES[one] for one in kinds)} is wanted"
            )
    if options.teacher is not None:
        if options.teacher not in TEACHERS:
            raise UserError(f"--teacher: found {options.teacher!r}; one of {', '.join(TEACHERS)} is wanted")
        if not options.cold_start:
            raise UserError("--teacher: of no use without --cold-start")
        if options.teacher == "frequent" and kind not in ("toy", "layout"):
            raise UserError(f"--teacher frequent: of no use with {_NAMES[kind]}; --teacher right is wanted")
    if options.max_passage_tokens is not None:
        check_at_least("--max-passage-tokens", options.max_passage_tokens, 1)
    for field in ("max_prompt_length", "max_passage_tokens"):
        if field in changed and options.tokenizer is None:
            raise UserError(f"--{field.replace('_', '-')}: of no use without --tokenizer")
    if kind == "layout" and Path(options.source).is_dir():
        register_tasks_of(Path(options.source))
    if kind in ("toy", "layout", "raw"):
        for task in options.tasks or ():
            get_task(task)
    if kind == "raw" and options.tasks:
        _check_raw(changed, options.tasks)


def parse_pool_sizes(text: str) -> range | None:
    """The sizes that LOW-HIGH means; None for all. Raises UserError."""
    if not text:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,3})-([1-9][0-9]{0,3})", text)
    if found is None or not 2 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--pool-sizes: found {text!r}; LOW-HIGH is wanted, from 2, such as 2-4")
    return range(int(found[1]), int(found[2]) + 1)


def _check_raw(changed: set[str], tasks: Sequence[str]) -> None:
    """Some options are of the recommendation tasks alone; passages come split."""
    for field in ("history", "candidates", "users", "positions", "pools", "recbole"):
        if field in changed and not set(tasks) & set(RECBOLE_DATA_SETS):
            raise UserError(f"{_USES[field][0]}: of no use with {', '.join(tasks)}; a recommendation task has one")
    if "merits" in changed and not set(tasks) & set(OBJECTIVES):
        raise UserError(f"--merits: of no use with {', '.join(tasks)}; a routing task has them")
    if "test_share" in changed and set(tasks) <= set(SIZES):
        raise UserError(f"--test-share: of no use with {', '.join(tasks)}, whose source is split already")
