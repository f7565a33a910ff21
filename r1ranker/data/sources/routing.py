"""LLM routing from router_data.csv: for each query the quality and cost of every LLM's answer; three objectives."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1ranker.data.files.tally import Tally
from r1ranker.data.files.text_rows import TextTable, parse_finite, parse_json
from r1ranker.errors import UserError, suggest
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import canonical

OBJECTIVES = {"Router-Performance": (1.0, 0.0), "Router-Balance": (0.5, 0.5), "Router-Cost": (0.2, 0.8)}
"""task -> (a, b) of a * effect - b * cost"""
LLMS = (
    "LLaMA-3 (8b)", "Mixtral-8x7B", "NousResearch (34b)", "LLaMA-2 (7b)", "Mistral-7b",
    "LLaMA-3 (70b)", "LLaMA-3-Turbo (8b)", "LLaMA-3-Turbo (70b)", "Llama-3.1-Turbo (70b)", "Qwen-1.5 (72b)",
)  # fmt: skip
"""the published order of the rows of a query, where there is no column `llm`"""
EXCLUDED_TASKS = ("multi_news",)
"""tasks of router_data.csv that the benchmark leaves out"""
_LIKE = "task_id,query,llm,effect,cost"
_MODEL = re.compile(r".*(llm|model).*|names?", re.DOTALL)
"""a column's name, such as llm_name or ModelName in lower case"""


@dataclass(frozen=True)
class RoutingQuery:
    """A query with what each LLM's answer was worth and cost."""

    query: str
    llms: tuple[str, ...]
    effects: tuple[float, ...]
    costs: tuple[float, ...]
    """as the table has them, which scales them to 0..1"""
    dollars: tuple[float, ...] = ()
    """the same as measured; empty where they are not known or were not asked for"""


def read_routing(
    path: str, descriptions: str | None, seed: int, tally: Tally, merits: bool = False
) -> Iterator[tuple[str, RankingExample]]:
    """(query, example) of the three objectives, query after query; LLMs in an order of its own for each query.

    `descriptions` is a JSON file of name -> text, or name -> facts. Equal merits go to the cheaper LLM, then to the one
    whose name comes first, and are counted. `merits`: examples have `merit_grades`. Raises UserError naming file and line for whatever cannot be read.
    """
    texts = read_descriptions(descriptions) if descriptions else {}
    for one in read_queries(path, tally):
        for name in one.llms:
            if texts and name not in texts:
                raise UserError(f"{descriptions}: no description of {name!r}{suggest(name, texts)}; found {len(texts)}")
        order = list(range(len(one.llms)))
        random.Random(f"{seed} {one.query}").shuffle(order)
        pool = tuple(one.llms[place] for place in order)
        shown = tuple(texts[name] for name in pool) if texts else ()
        for task, weights in OBJECTIVES.items():
            best, tied = best_llm(one, *weights)
            tally.for_task(task).noted["queries whose best LLM was a tie"] += tied
            example = RankingExample(task, pool, best, query=one.query, texts=shown)
            if merits:
                grades = merit_grades(one, *weights, path)
                example = replace(example, grades=tuple(grades[place] for place in order))
            yield one.query, example


def merits_of(one: RoutingQuery, a: float, b: float) -> tuple[float, ...]:
    """a * effect - b * cost of each LLM."""
    return tuple(a * effect - b * cost for effect, cost in zip(one.effects, one.costs, strict=True))


def best_llm(one: RoutingQuery, a: float, b: float) -> tuple[str, bool]:
    """The LLM of the highest a * effect - b * cost, and whether another one has as much."""
    merits = [round(merit, 9) for merit in merits_of(one, a, b)]
    best = max(merits)
    places = [place for place, merit in enumerate(merits) if merit == best]
    chosen = min(places, key=lambda place: (one.costs[place], one.llms[place]))
    return one.llms[chosen], len(places) > 1


def merit_grades(one: RoutingQuery, a: float, b: float, path: str) -> tuple[float, ...]:
    """`merits_of` moved and scaled to 0..1, for all queries alike; 1 where all LLMs are worth nothing, which says as little.

    Raises UserError for an effect or a cost that is not between 0 and 1.
    """
    for name, values in (("effect", one.effects), ("cost", one.costs)):
        for value in values:
            if not 0 <= value <= 1:
                raise UserError(f"{path}: {name}: found {value:g}; numbers from 0 to 1 are wanted with --merits")
    grades = [round((merit + b) / (a + b), 9) for merit in merits_of(one, a, b)]
    return tuple(grades) if max(grades) > 0 else (1.0,) * len(grades)


def read_queries(path: str, tally: Tally, dollars: bool = False) -> Iterator[RoutingQuery]:
    """Each query once; rows that stand together and share a query are one query's.

    `dollars`: those of the column cost_usd as well, where there is one. Raises UserError as `read_routing` does.
    """
    table = TextTable(path, ",", quoted=True)
    table.columns = [name.casefold() for name in table.columns]
    names = ["task_id", "query", "effect", "cost"]
    if dollars and "cost_usd" in table.columns:
        names.append("cost_usd")
    places = table.column_indices(names, _LIKE)
    llm_place = _llm_place(table)
    block: list[tuple[int, list[str]]] = []
    known: tuple[str, ...] | None = None
    seen: set[str] = set()
    first: list[list[str]] = []

    def finish() -> RoutingQuery | None:
        nonlocal known, first
        one = _query(path, block, places, llm_place, known)
        if llm_place is None and len(seen) < 2 and one.query not in seen:
            rows = [row for _, row in block]
            if first:
                _check_no_names(table, first, rows)
            first = rows
        for task in OBJECTIVES:
            tally.for_task(task).read["queries"] += 1
        known = known or tuple(sorted(one.llms))
        reason = (
            f"queries of {block[0][1][places[0]]}"
            if block[0][1][places[0]] in EXCLUDED_TASKS
            else "queries that stand there twice"
            if one.query in seen
            else None
        )
        seen.add(one.query)
        if reason:
            for task in OBJECTIVES:
                tally.for_task(task).left_out[reason] += 1
            return None
        return one

    for line, row in table:
        same = block and [row[p] for p in places[:2]] == [block[0][1][p] for p in places[:2]]
        full = llm_place is None and len(block) == len(LLMS)
        again = llm_place is not None and any(row[llm_place] == other[llm_place] for _, other in block)
        if block and (not same or full or again):
            if (one := finish()) is not None:
                yield one
            block = []
        for place in places[2:]:
            parse_finite(row[place], f"{path}: line {line}: {table.columns[place]}")
        block.append((line, row))
    if (one := finish()) is not None:
        yield one


def _llm_place(table: TextTable) -> int | None:
    """The column `llm`; None where there is none. Raises UserError where another column seems to be meant by it."""
    if "llm" in table.columns:
        return table.column_indices(["llm"], _LIKE)[0]
    named = [name for name in table.columns if _MODEL.fullmatch(name)]
    if named:
        raise _no_llm(table, named[0])
    return None


def _no_llm(table: TextTable, name: str) -> UserError:
    return UserError(
        f"{table.path}: line 1: no column 'llm', but {name!r}; the names of the LLMs are wanted in a column llm "
        f"(without one, {len(LLMS)} rows of a query are the published LLMs in their order)"
    )


def _check_no_names(table: TextTable, first: Sequence[Sequence[str]], second: Sequence[Sequence[str]]) -> None:
    """Raise UserError where a column has another text in each row of a query, and the same ones for another query."""
    for place, name in enumerate(table.columns):
        texts = {row[place].strip() for row in first}
        repeated = len(texts) == len(first) and texts == {row[place].strip() for row in second}
        if repeated and not any(map(_is_number, texts)):
            raise _no_llm(table, name)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _query(
    path: str,
    block: list[tuple[int, list[str]]],
    places: list[int],
    llm_place: int | None,
    known: tuple[str, ...] | None,
) -> RoutingQuery:
    line, first = block[0]
    where = f"{path}: line {line}"
    if not first[places[1]].strip():
        raise UserError(f"{where}: query is empty; a text is wanted")
    llms: tuple[str, ...]
    if llm_place is None:
        if len(block) != len(LLMS):
            raise UserError(
                f"{where}: {len(block)} rows of one query; {len(LLMS)} are wanted, one an LLM, or a column llm"
            )
        llms = LLMS
    else:
        llms = tuple(row[llm_place].strip() for _, row in block)
        if "" in llms:
            raise UserError(f"{path}: line {block[llms.index('')][0]}: llm is empty; a name is wanted")
        if known is not None and tuple(sorted(llms)) != known:
            missing = sorted(set(known) - set(llms)) or sorted(set(llms) - set(known))
            raise UserError(
                f"{where}: {len(llms)} rows of one query, other LLMs than before ({', '.join(missing)}); the same "
                f"{len(known)} are wanted for every query, in rows next to each other"
            )
        if len({canonical(name) for name in llms}) < len(llms):
            raise UserError(f"{where}: an LLM stands there twice for one query; each once is wanted")
        if len(llms) < 2:
            raise UserError(
                f"{where}: one row of a query; the rows of at least two LLMs are wanted, next to each other"
            )
    effects, costs, *dollars = (tuple(float(row[place]) for _, row in block) for place in places[2:])
    return RoutingQuery(first[places[1]], llms, effects, costs, *dollars)


def read_descriptions(path: str) -> dict[str, str]:
    """Name -> text of a JSON file; facts of a name are written out as 'key value, key value'."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; a JSON file of name -> description is wanted")
    try:
        read = parse_json(Path(path).read_text(encoding="utf-8-sig"), path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(read, dict) or not read:
        raise UserError(f"{path}: found {type(read).__name__}; an object of name -> description is wanted")
    for name, value in read.items():
        if not isinstance(value, dict | str) or not value:
            raise UserError(f"{path}: {name}: found {value!r}; a text, or facts by name, are wanted")
    return {str(name): _described(value) for name, value in read.items()}


def _described(value: Any) -> str:
    if isinstance(value, dict):
        if set(value) == {"feature"} or "feature" in value:
            return str(value["feature"])
        return ", ".join(
            f"{key.replace('_', ' ')} {fact}" for key, fact in value.items() if not isinstance(fact, list | dict)
        )
    return str(value)
