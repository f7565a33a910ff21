"""Ranking requests so that what is ranked is kept: a call that was cut off goes on where it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r1ranker.data.files.manifest import checksum
from r1ranker.evaluation.journal import Journal
from r1ranker.evaluation.records import Record
from r1ranker.pretrained import list_state
from r1ranker.progress import follow
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import RankerSettings
from r1ranker.reranking.outputs import Ranked
from r1ranker.reranking.requests import RankRequest

JOURNAL = ".journal"
COSTS = ("calls", "depth", "prompt_tokens", "cached_tokens", "response_tokens")


@dataclass
class Costs:
    """What rankings took, in all."""

    queries: int = 0
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COSTS, 0))

    def add(self, record: Record) -> None:
        """Count a ranking."""
        self.queries += 1
        for name in COSTS:
            self.totals[name] += record[name]

    def __str__(self) -> str:
        each = {name: total / max(1, self.queries) for name, total in self.totals.items()}
        return (
            f"{self.queries:,} queries; of each {each['calls']:.1f} calls, {each['depth']:.1f} of them one after the other, "
            f"{each['prompt_tokens']:,.0f} prompt tokens ({each['cached_tokens']:,.0f} from the cache), "
            f"{each['response_tokens']:,.0f} response tokens"
        )


def open_journal(
    output: str | None, requests: Sequence[RankRequest], model: str, settings: RankerSettings, engine: str
) -> AbstractContextManager[Journal | None]:
    """What is kept beside `output` until it is whole; nothing where there is no file to be written."""
    if output is None:
        return nullcontext()
    about = {
        "requests": hashlib.sha256(repr(requests).encode("utf-8", "surrogatepass")).hexdigest(),
        "model": list_state(model),
        "settings": asdict(settings),
        "thoughts": None if settings.shots.bank is None else checksum(Path(settings.shots.bank)),
        "engine": engine,
    }
    return Journal(Path(output + JOURNAL), about)


def rank_requests(
    ranker: Ranker, requests: Sequence[RankRequest], kept: Journal | None, name: str
) -> tuple[list[Ranked], Costs]:
    """The ranking of each request, in their order; what `kept` holds is taken over, and what is ranked is put there at once."""
    records: dict[int, Record] = {} if kept is None else {place: record for (_, place), record in kept.done.items()}
    left = [place for place, one in enumerate(requests) if place not in records and len(one.documents) > 1]
    stream = ranker.rank_stream(requests[place].example for place in left)
    with closing(follow(stream, len(left), name, pace=_pace)) as followed:
        for number, result in followed:
            place = left[number]
            records[place] = _record_of(requests[place], result)
            if kept is not None:
                kept.add("", place, records[place])
    costs = Costs()
    for record in records.values():
        costs.add(record)
    alone = {"order": [0], "scores": [], "unordered": 0}
    ranked = []
    for place, request in enumerate(requests):
        record = records.get(place, alone if request.documents else alone | {"order": []})
        ranked.append(Ranked(tuple(record["order"]), tuple(record["scores"]), record["unordered"]))
    return ranked, costs


def _pace(found: tuple[int, RankingResult]) -> dict[str, int]:
    _, result = found
    return {"calls": result.calls, "tokens": result.prompt_tokens + result.response_tokens}


def _record_of(request: RankRequest, result: RankingResult) -> Record:
    place = {name: number for number, name in enumerate(request.example.candidates)}
    record: dict[str, Any] = {
        "order": [place[name] for name in result.ranking],
        # what else is in a batch moves the digits behind these
        "scores": [round(result.scores[name], 6) for name in result.ranking] if result.scores else [],
        "unordered": result.unordered,
    }
    return record | {name: getattr(result, name) for name in COSTS}
