"""Requests to be ranked, of a file of rows or of a run of a search engine, with the names that their rankings are told by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from r1ranker.data.sources.trec_columns import PAIRS, RUN, IdColumn, check_common
from r1ranker.data.sources.trec_files import read_pairs, read_run, read_texts
from r1ranker.data.sources.user_files import read_requests
from r1ranker.errors import UserError, note
from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.custom import default_task, ensure_registered
from r1ranker.tasks.example import RankingExample, number_passages

PASSAGES = "Passage-9"
"""whose words ask for passages, where no other task is named"""


@dataclass(frozen=True)
class RankRequest:
    """A request and what its candidates are called outside."""

    name: str | int | None
    """id of the request; None: it has none"""
    example: RankingExample
    documents: tuple[str, ...]
    """ids of the candidates that are ranked, in the order shown; their names where they have no ids"""
    rest: tuple[str, ...] = ()
    """ids of those that follow behind, as they are"""

    def list_documents(self, order: Sequence[int] | None = None) -> list[str]:
        """All of them: the candidates by their places in `order` (None: as shown), then the rest."""
        first = self.documents if order is None else [self.documents[place] for place in order]
        return [*first, *self.rest]


@dataclass(frozen=True)
class RunFiles:
    """A search engine's run and what it is of; each may be gzipped (.gz)."""

    run: str
    queries: str
    collection: str


def requests_of_file(path: str, task: str | None) -> Iterator[RankRequest]:
    """Of JSON lines, CSV or parquet; `-`: of JSON lines on stdin. Raises UserError naming file and row."""
    for name, example in read_requests(path, task):
        yield RankRequest(name, example, example.candidates)


def requests_of_run(files: RunFiles, task: str | None, depth: int) -> list[RankRequest]:
    """Every query of a run with its first `depth` documents, in the run's order by score; the others are kept behind them.

    Documents without a text go behind, and queries without a text keep their order: both are said. Raises UserError naming file and
    line, or two files that have no query or no document in common.
    """
    name = task or PASSAGES
    if name not in TASKS:
        ensure_registered(default_task(name, by_history=False))
    queries = dict(read_pairs(files.queries, "a query"))
    run = read_run(files.run)
    shown = {document for documents in run.values() for document in documents[:depth]}
    texts = read_texts(files.collection, shown)
    of_run = IdColumn(files.run, RUN, 0, run)
    check_common("query", IdColumn(files.queries, PAIRS, 0, queries), of_run)
    check_common("document", IdColumn(files.collection, PAIRS, 0, texts), IdColumn(files.run, RUN, 2, shown))
    requests, silent, mute = [], 0, 0
    for query, documents in run.items():
        first = documents[:depth] if query in queries else []
        silent += query not in queries
        known = [document for document in first if texts.get(document, "").strip()]
        mute += len(first) - len(known)
        kept = set(known)
        example = RankingExample(
            name,
            number_passages(len(known)),
            query=queries.get(query, ""),
            texts=tuple(texts[document] for document in known),
        )
        rest = tuple(document for document in documents if document not in kept)
        requests.append(RankRequest(query, example, tuple(known), rest))
    if silent:
        note(f"{files.queries}: {silent:,} queries of {files.run} have no text there; they keep their order")
    if mute:
        note(f"{files.collection}: {mute:,} documents of {files.run} have no text there; they follow behind the others")
    return requests


def first_requests(requests: Iterator[RankRequest] | Sequence[RankRequest], limit: int | None) -> list[RankRequest]:
    """The first `limit` of them (None: all); raises UserError where there is none."""
    found = list(islice(requests, limit))
    if not found:
        raise UserError("found no request; a row or a query at least is wanted")
    return found
