"""What a routing ranking is worth: quality, price and merit of the LLM that it puts first, from the table the rows were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.routing import OBJECTIVES, RoutingQuery, best_llm, merits_of, read_queries
from r1ranker.errors import UserError, note, suggest
from r1ranker.evaluation.baselines.neighbours import NearestQueries
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.evaluation.records import Metrics, Record
from r1ranker.ranking.metrics import summarise
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import canonical

NEIGHBOURS = 40
"""of the router by the neighbours' merits: a mean of 0/1 scores needs more of them than a vote does"""
BEST_SINGLE, CHEAPEST, ORACLE = "best single LLM", "cheapest LLM", "oracle"
_SHOWN_OF_A_QUERY = 80


class RouterTable:
    """router_data.csv by the text of the query, as prompts show it."""

    def __init__(self, path: str) -> None:
        """Raises UserError naming file and line for whatever cannot be read."""
        self.path = path
        self._queries: dict[str, RoutingQuery] = {}
        for one in read_queries(path, Tally(), dollars=True):
            self._queries.setdefault(canonical(one.query), one)  # the data set keeps the first of those that read alike

    def lookup(self, example: RankingExample) -> RoutingQuery:
        """What the LLMs of a row's pool did with its query."""
        whole = self._queries[canonical(example.query)]
        places = [whole.llms.index(name) for name in example.candidates]
        effects, costs, dollars = (
            tuple(column[place] for place in places) if column else ()
            for column in (whole.effects, whole.costs, whole.dollars)
        )
        return RoutingQuery(whole.query, example.candidates, effects, costs, dollars)

    def check(self, test: Mapping[str, Sequence[RankingExample]], train: Sequence[RankingExample]) -> None:
        """Raise UserError unless a task of `test` is routing and the table has every LLM of every query of such tasks."""
        tasks = [task for task in test if task in OBJECTIVES]
        if not tasks:
            raise UserError(f"--router_data: found {', '.join(test)}; one of {', '.join(OBJECTIVES)} is wanted with it")
        tested = [example for task in tasks for example in test[task]]
        for which, rows in (("test", tested), ("training", [example for example in train if example.task in tasks])):
            queries = dict.fromkeys(canonical(example.query) for example in rows)
            missing = [query for query in queries if query not in self._queries]
            if missing:
                raise UserError(
                    f"{self.path}: no rows of {len(missing):,} of {len(queries):,} {which} queries, the first of them "
                    f"{missing[0][:_SHOWN_OF_A_QUERY]!r}; the file that the rows were made from is wanted"
                )
            for example in rows:
                known = self._queries[canonical(example.query)].llms
                for name in example.candidates:
                    if name not in known:
                        raise UserError(
                            f"{self.path}: no row of the LLM {name!r}{suggest(name, known)}; it is a candidate"
                        )
        others = sum(not self._is_best(example) for example in tested)
        if others:
            note(f"{self.path}: {others:,} of {len(tested):,} test rows have a positive that is not its best LLM")

    def _is_best(self, example: RankingExample) -> bool:
        merits = merits_of(self.lookup(example), *OBJECTIVES[example.task])
        return max(merits) - merits[example.candidates.index(example.positive)] < 1e-9


class FixedLLM(ScoringBaseline):
    """The same order of LLMs for every query: by their means over training queries. Its first is the single LLM to use."""

    def __init__(self, name: str, values: Sequence[Mapping[str, float]]) -> None:
        """`values`: LLM -> what is better the higher it is, of each training query."""
        self.name = name
        llms = dict.fromkeys(llm for value in values for llm in value)
        self._means = {llm: float(np.mean([value[llm] for value in values if llm in value])) for llm in llms}
        self.llm = max(self._means, key=self._means.__getitem__)

    def scores(self, example: RankingExample) -> list[float]:
        """The mean of each candidate over the training queries."""
        return [self._means.get(name, -np.inf) for name in example.candidates]


class NearestMerits(NearestQueries):
    """k-nearest-neighbour router of RouterBench (Hu et al., 2024): the mean merit of each LLM over the nearest training queries."""

    name = "nearest queries' merits"

    def __init__(self, training: Sequence[RankingExample], merits: Sequence[tuple[float, ...]]) -> None:
        """`merits`: of each row, in the order of its candidates; they stand where the rows' grades do."""
        rows = [replace(example, grades=own) for example, own in zip(training, merits, strict=True)]
        super().__init__(rows, NEIGHBOURS)


def routing_baselines(training: Sequence[RankingExample], task: str, table: RouterTable) -> list[ScoringBaseline]:
    """Routers fitted on what LLMs did with the training queries of a task: nearest neighbours, best single and cheapest LLM.

    Raises UserError where there is no row of the task.
    """
    rows = [example for example in training if example.task == task]
    if not rows:
        raise UserError(f"{task}: no training rows; at least one is wanted to choose the best single LLM on")
    queries = [table.lookup(example) for example in rows]
    merits = [merits_of(query, *OBJECTIVES[task]) for query in queries]
    return [
        NearestMerits(rows, merits),
        FixedLLM(
            BEST_SINGLE, [dict(zip(query.llms, own, strict=True)) for query, own in zip(queries, merits, strict=True)]
        ),
        FixedLLM(
            CHEAPEST,
            [{llm: -cost for llm, cost in zip(query.llms, query.costs, strict=True)} for query in queries],
        ),
    ]


def top_candidates(record: Record) -> list[str]:
    """What a record's ranking puts first: one candidate, or those at its top that were not told apart."""
    return record["ranking"][: max(1, record["unordered"])]


def routing_figures(
    examples: Sequence[RankingExample],
    first: Mapping[str, Sequence[Sequence[str]]],
    fixed: Sequence[FixedLLM],
    table: RouterTable,
    seed: int,
) -> dict[str, Any]:
    """Means with intervals of what each system's first choices were worth, on the rows of one task.

    `first`: system -> of each row the candidates at its top; several count as their mean, which is the expectation of a
    choice among them. `fixed` are those of `first` that always choose one LLM, the best single one among them. Per query:
    quality (effect, 0 to 1), cost (as the table scales it), usd_per_1000_queries, merit (a * effect - b * cost), and
    gain, the merit less that of the best single LLM; each query's merits stand beside the means. The oracle's choice is
    the best LLM of each query, the cheaper of equals.
    """
    task = examples[0].task
    queries = [table.lookup(example) for example in examples]
    oracle = [[best_llm(query, *OBJECTIVES[task])[0]] for query in queries]
    systems = {
        name: [_worth(query, names, task) for query, names in zip(queries, choices, strict=True)]
        for name, choices in {**first, ORACLE: oracle}.items()
    }
    single = [worth["merit"] for worth in systems[BEST_SINGLE]]
    for worths in systems.values():
        for worth, merit in zip(worths, single, strict=True):
            worth["gain"] = worth["merit"] - merit
    a, b = OBJECTIVES[task]
    return {
        "objective": {"effect": a, "cost": b},
        "llms": {order.name: order.llm for order in fixed},
        "systems": {name: summarise(worths, seed) for name, worths in systems.items()},
        "merits": {name: [worth["merit"] for worth in worths] for name, worths in systems.items()},
    }


def _worth(query: RoutingQuery, names: Sequence[str], task: str) -> Metrics:
    places = [query.llms.index(name) for name in names]

    def mean(values: Sequence[float]) -> float:
        return float(np.mean([values[place] for place in places]))

    worth = {
        "quality": mean(query.effects),
        "cost": mean(query.costs),
        "merit": mean(merits_of(query, *OBJECTIVES[task])),
    }
    return worth | ({"usd_per_1000_queries": 1000 * mean(query.dollars)} if query.dollars else {})


def add_outcomes(record: Record, query: RoutingQuery) -> Record:
    """The record with each candidate's effect, cost and dollars, so that its worth can be computed again from the file."""
    columns = {"effect": query.effects, "cost": query.costs} | ({"cost_usd": query.dollars} if query.dollars else {})
    return record | {
        "outcomes": {
            llm: {name: values[place] for name, values in columns.items()} for place, llm in enumerate(query.llms)
        }
    }
