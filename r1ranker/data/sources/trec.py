"""TREC files: queries, a collection, a run of candidates and graded judgments (qrels)."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from r1ranker.data.files.tab_separated import unquote
from r1ranker.data.files.tally import TaskTally
from r1ranker.data.files.text_rows import json_rows
from r1ranker.data.sources.source_example import SourceExample
from r1ranker.data.sources.trec_columns import (
    PAIRS,
    QRELS,
    RUN,
    IdColumn,
    check_common,
    check_scores,
    parse_number,
    trec_lines,
)  # fmt: skip
from r1ranker.errors import UserError
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import HIGHEST_GRADE, RankingExample

_RANK = re.compile(r"-?[0-9]{1,18}")


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
    queries = dict(_pairs(files.queries, "a query"))
    run = _run(files.run)
    grades = _qrels(files.qrels)
    tally.read["queries of the run"] += len(run)
    pools = {query: documents[: candidates * 2] for query, documents in run.items()}
    shown = {document for documents in pools.values() for document in documents}
    texts = _texts(files.collection, shown)
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
        names = tuple(f"passage {place}" for place in range(len(pool)))
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


def _pairs(path: str, what: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for number, line in trec_lines(path):
        name, tab, text = line.rstrip("\n").partition("\t")
        if not tab or not name or not text.strip():
            raise UserError(f"{path}: line {number}: found {line[:80].rstrip()!r}; an id, a tab and {what} are wanted")
        if name in seen:
            raise UserError(f"{path}: line {number}: id {name!r} stands there twice")
        seen.add(name)
        yield name, _unquoted(text)


def _unquoted(text: str) -> str:
    """A text whose quotes a csv writer doubled, or that it quoted for a tab, as it was; one that only stands in quotes keeps them."""
    return unquote(text) if '""' in text or "\t" in text else text


def _texts(path: str, wanted: set[str]) -> dict[str, str]:
    """Text of each wanted document; the rest of the collection is read past."""
    texts: dict[str, str] = {}

    def keep(number: int, name: str, text: str) -> None:
        if name in wanted and texts.setdefault(name, text) != text:
            raise UserError(f"{path}: line {number}: document {name!r} stands there twice, with two texts")

    if not path.removesuffix(".gz").endswith((".jsonl", ".json")):
        for number, line in trec_lines(path):
            name, tab, text = line.rstrip("\n").partition("\t")
            if not tab:
                raise UserError(
                    f"{path}: line {number}: found {line[:80].rstrip()!r}; an id, a tab and a text are wanted"
                )
            keep(number, name, _unquoted(text))
        return texts
    for number, row in json_rows(path):
        name = next((str(row[key]) for key in ("id", "docid", "_id") if isinstance(row.get(key), str | int)), "")
        found = next((row[key] for key in ("text", "contents", "passage") if key in row), None)
        if not name or not isinstance(found, str):
            raise UserError(f"{path}: line {number}: found {', '.join(row)[:80]}; id and text are wanted")
        title = row.get("title")
        keep(number, name, f"{title} {found}" if isinstance(title, str) and title else found)
    return texts


def _run(path: str) -> dict[str, list[str]]:
    """Documents of each query, best first by score, then as in the file."""
    scored: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in trec_lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise UserError(f"{path}: line {number}: found {len(fields)} fields; {RUN} are wanted")
        query, q0, document, rank, score, _ = fields
        if "Q0" in fields and q0 != "Q0":
            raise UserError(f"{path}: line {number}: found Q0 in column {fields.index('Q0') + 1}; {RUN} are wanted")
        documents = scored.setdefault(query, {})
        if document in documents:
            raise UserError(f"{path}: line {number}: document {document!r} stands there twice for query {query!r}")
        if not _RANK.fullmatch(rank):
            raise UserError(f"{path}: line {number}: rank: found {rank!r}; a whole number is wanted; {RUN} are wanted")
        documents[document] = parse_number(score, path, number, "score", RUN), int(rank)
    check_scores(path, scored)
    return {
        query: [document for document, _ in sorted(documents.items(), key=lambda item: -item[1][0])]
        for query, documents in scored.items()
    }


def _qrels(path: str) -> dict[str, dict[str, float]]:
    grades: dict[str, dict[str, float]] = {}
    for number, line in trec_lines(path):
        fields = line.split()
        if len(fields) != 4:
            raise UserError(f"{path}: line {number}: found {len(fields)} fields; {QRELS} are wanted")
        query, iteration, document, written = fields
        if document in ("0", "Q0") and not iteration.isdigit() and iteration != "Q0":
            raise UserError(f"{path}: line {number}: found {document} in column 3; {QRELS} are wanted")
        grade = parse_number(written, path, number, "grade", QRELS)
        if grade > HIGHEST_GRADE:
            raise UserError(f"{path}: line {number}: grade: found {grade:g}; at most {HIGHEST_GRADE} is wanted")
        if grades.setdefault(query, {}).setdefault(document, grade) != grade:
            found = f"{document!r} is judged twice for query {query!r}, differently"
            raise UserError(f"{path}: line {number}: {found}; {QRELS} are wanted")
    return grades
