"""A run before and after ranking, measured by ir-measures against the judgments of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table

from r1ranker.data.sources.trec_columns import QRELS, RUN, IdColumn, check_common
from r1ranker.data.sources.trec_files import read_qrels
from r1ranker.errors import note
from r1ranker.evaluation.results import randomisation_test
from r1ranker.ranking.metrics import mean_with_interval
from r1ranker.reranking.outputs import Ranked
from r1ranker.reranking.requests import RankRequest

MEASURES = ("nDCG@10", "RR(rel=2)@10", "AP(rel=2)", "R(rel=2)@100")
"""as ir-measures writes them; on a collection without grades above 1, of relevant documents of any grade"""


@dataclass(frozen=True)
class Judged:
    """Judgments of a collection."""

    path: str
    grades: dict[str, dict[str, float]]
    """query -> document -> grade, of all that were judged"""

    @property
    def measures(self) -> list[str]:
        """What is measured: on graded judgments a document of grade 2 is the least relevant one, as TREC's own tables have it."""
        graded = any(grade > 1 for one in self.grades.values() for grade in one.values())
        return list(MEASURES) if graded else [name.replace("(rel=2)", "") for name in MEASURES]


def check_judged(path: str, requests: Sequence[RankRequest]) -> Judged:
    """The judgments of a file; raises UserError where none of the queries or documents is judged in it."""
    grades = read_qrels(path)
    run = {str(one.name): one.list_documents() for one in requests}
    of_run = IdColumn("the run", RUN, 0, run)
    check_common("query", IdColumn(path, QRELS, 0, grades), of_run)
    judged = sum(query in grades for query in run)
    if judged < len(run):
        note(
            f"{path}: {len(run) - judged:,} of {len(run):,} queries are not judged there; they are ranked and not measured"
        )
    return Judged(path, grades)


def measure(judged: Judged, orders: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """measure -> query -> value, of the queries that are judged; the ideal is that of all judged documents."""
    import ir_measures

    qrels = [
        ir_measures.Qrel(query, document, int(grade))
        for query, of_query in judged.grades.items()
        if query in orders
        for document, grade in of_query.items()
    ]
    run = [
        ir_measures.ScoredDoc(query, document, float(len(order) - rank))
        for query, order in orders.items()
        if query in judged.grades
        for rank, document in enumerate(order)
    ]
    parsed: dict[Any, str] = {ir_measures.parse_measure(name): name for name in judged.measures}
    found: dict[str, dict[str, float]] = {name: {} for name in judged.measures}
    for one in ir_measures.iter_calc(list(parsed), qrels, run):
        found[parsed[one.measure]][one.query_id] = float(one.value)
    return found


def print_measures(judged: Judged, requests: Sequence[RankRequest], ranked: Sequence[Ranked], where: TextIO) -> None:
    """A table: each measure before and after, with 95% intervals, and p of a paired randomisation test."""
    before = {str(one.name): one.list_documents() for one in requests}
    after = {
        str(request.name): request.list_documents(one.order) for request, one in zip(requests, ranked, strict=True)
    }
    values = [measure(judged, orders) for orders in (before, after)]
    queries = sorted(values[0][judged.measures[0]])
    table = Table(title=f"{len(queries)} judged queries (x 100, 95% intervals)")
    for column in ("", "before", "after", "p"):
        table.add_column(column, justify="right" if column else "left")
    for name in judged.measures:
        first, second = ([of[name][query] for query in queries] for of in values)
        p = randomisation_test(first, second)
        table.add_row(name, _with_interval(first), _with_interval(second), f"{p:.4f}")
    Console(file=where, width=100).print(table)


def _with_interval(values: Sequence[float]) -> str:
    found = mean_with_interval(list(np.array(values) * 100))
    ends = "" if found["low"] is None else f" [{found['low']:.1f}, {found['high']:.1f}]"
    return f"{found['mean']:.2f}{ends}"
