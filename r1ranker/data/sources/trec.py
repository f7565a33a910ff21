"""TREC files: queries, a collection, a run of candidates and graded judgments (qrels)."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from r1ranker.data.files.tally import TaskTally
from r1ranker.data.sources.source_example import SourceExample
from r1ranker.data.sources.trec_columns import PAIRS, QRELS, RUN, IdColumn, check_common
from r1ranker.data.sources.trec_files import read_pairs, read_qrels, read_run, read_texts
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import RankingExample, number_passages


@dataclass(frozen=True)
class TrecFiles:
    """The four files of a test collection; each may be gzipped (.gz)."""

    queries: str
    """id<tab>text"""
    collection: str
    """id<tab>text, or JSON lines with id (or docid, _id) and text (or contents, passage; title goes before it)"""
    run: str
    """query Q0 document rank score tag"""
    qrels: str
    """query 0 document grade; grades below 0 count as 0"""


def read_trec(
    files: TrecFiles, task: str, candidates: int, shuffle: bool, seed: int, tally: TaskTally
) -> Iterator[SourceExample]:
    """An example a query: the first `candidates` documents of the run, named 'passage 0', ..., graded by the qrels.

    Queries without a judged relevant document among them are left out. Raises UserError naming file and line, or two
    files that have no query or no document in common.
    """
    queries = dict(read_pairs(files.queries, "a query"))
    run = read_run(files.run)
    grades = read_qrels(files.qrels)
    tally.read["queries of the run"] += len(run)
    pools = {query: documents[: candidates * 2] for query, documents in run.items()}
    shown = {document for documents in pools.values() for document in documents}
    texts = read_texts(files.collection, shown)
    _check_files(files, queries, run, grades, shown, texts)
    for query, documents in pools.items():
        reason = (
            "queries without a text"
            if query not in queries
            else "queries without judgments"
            if query not in grades
            else ""
        )
        pool = [] if reason else _pool(documents, texts, candidates, tally)
        relevance = [max(0.0, grades.get(query, {}).get(document, 0.0)) for document in pool]
        if not reason and len(pool) < 2:
            reason = "queries with fewer than two documents"
        if not reason and max(relevance) == 0:
            reason = "queries without a relevant document among the candidates"
        if reason:
            tally.left_out[reason] += 1
            continue
        tally.noted["queries whose highest grade is shared"] += relevance.count(max(relevance)) > 1
        order = list(range(len(pool)))
        if shuffle:
            random.Random(f"{seed} {query}").shuffle(order)
        names = number_passages(len(pool))
        graded = tuple(relevance[place] for place in order)
        yield SourceExample(
            queries[query],
            RankingExample(
                task,
                names,
                names[graded.index(max(graded))],
                query=queries[query],
                texts=tuple(texts[pool[place]] for place in order),
                grades=graded,
            ),
        )


def _pool(documents: list[str], texts: dict[str, str], candidates: int, tally: TaskTally) -> list[str]:
    pool: list[str] = []
    seen: set[str] = set()
    for document in documents:
        if len(pool) == candidates:
            break
        form = normalise(texts.get(document, ""))
        if not form:
            tally.left_out["documents that the collection lacks, or without a text"] += 1
        elif form in seen:
            tally.left_out["documents with the text of another in the pool"] += 1
        else:
            seen.add(form)
            pool.append(document)
    return pool


def _check_files(
    files: TrecFiles,
    queries: Collection[str],
    run: Mapping[str, Collection[str]],
    grades: Mapping[str, Collection[str]],
    shown: Collection[str],
    texts: Collection[str],
) -> None:
    """Raise UserError unless queries, run and qrels share queries, and run, collection and qrels share documents."""
    of_run = IdColumn(files.run, RUN, 0, run)
    check_common("query", IdColumn(files.queries, PAIRS, 0, queries), of_run)
    check_common("query", IdColumn(files.qrels, QRELS, 0, grades), of_run)
    check_common("document", IdColumn(files.collection, PAIRS, 0, texts), IdColumn(files.run, RUN, 2, shown))
    judged = {document for query in run for document in grades.get(query, ())}
    every = {document for documents in run.values() for document in documents}
    check_common("document", IdColumn(files.qrels, QRELS, 2, judged), IdColumn(files.run, RUN, 2, every))
