"""Rankings as files: JSON lines, CSV, or a TREC run with the ids that the requests came with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1ranker.errors import UserError
from r1ranker.reranking.requests import RankRequest

Format = Literal["json", "csv", "trec"]
_ENDINGS: dict[str, Format] = {".csv": "csv", ".trec": "trec", ".run": "trec", ".txt": "trec"}


@dataclass(frozen=True)
class Ranked:
    """A request's ranking, as places among its candidates."""

    order: tuple[int, ...]
    """places of the candidates, best first"""
    scores: tuple[float, ...] = ()
    """of the same, where the strategy has any"""
    unordered: int = 0
    """so many at the top were not told apart"""


def format_of(path: str) -> Format:
    """By what the file's name ends in; JSON lines where it says nothing."""
    return _ENDINGS.get(Path(path).suffix.lower(), "json")


def check_ids(requests: Sequence[RankRequest]) -> None:
    """Raise UserError where a request or a document has no id that a TREC run can hold."""
    seen: set[str] = set()
    for number, request in enumerate(requests, 1):
        name = "" if request.name is None else str(request.name)
        for what, one in (("id", name), *(("candidate", document) for document in request.documents)):
            if not one or one.split() != [one]:
                raise UserError(
                    f"request {number}: {what}: found {one!r}; a TREC run wants ids without white space, JSON lines take any"
                )
        if name in seen:
            raise UserError(f"request {number}: id {name!r} stands there twice; a TREC run wants distinct ones")
        seen.add(name)


def write_lines(requests: Sequence[RankRequest], ranked: Sequence[Ranked], form: Format, tag: str) -> Iterator[str]:
    """The lines of a file, each with its end."""
    if form == "csv":
        yield _csv_line("id", "rank", "candidate", "score")
    for request, one in zip(requests, ranked, strict=True):
        if form == "trec":
            yield from _trec_lines(request, one, tag)
        elif form == "csv":
            for rank, document in enumerate(request.list_documents(one.order), 1):
                score = one.scores[rank - 1] if rank <= len(one.scores) else ""
                yield _csv_line("" if request.name is None else request.name, rank, document, score)
        else:
            yield json.dumps(_json_line(request, one), ensure_ascii=False) + "\n"


def _trec_lines(request: RankRequest, one: Ranked, tag: str) -> Iterator[str]:
    """Scores fall by one a rank: a reader of runs goes by scores, and ties would be its own to break."""
    order = request.list_documents(one.order)
    for rank, document in enumerate(order, 1):
        yield f"{request.name} Q0 {document} {rank} {len(order) + 1 - rank} {tag}\n"


def _json_line(request: RankRequest, one: Ranked) -> dict[str, Any]:
    """`unordered` counts the first candidates that --top-k left in the order shown."""
    line: dict[str, Any] = {} if request.name is None else {"id": request.name}
    line |= {"ranking": request.list_documents(one.order)}
    line |= {"indices": [*one.order, *range(len(one.order), len(one.order) + len(request.rest))]}
    if one.scores:
        line["scores"] = list(one.scores)
    if one.unordered:
        line["unordered"] = one.unordered
    return line


def _csv_line(*values: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
