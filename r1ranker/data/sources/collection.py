"""Test collections as BEIR, BRIGHT and R2MED publish them, and the files of a search engine's first stage made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r1ranker.atomic import atomic_path
from r1ranker.data.files.text_rows import json_rows, text_lines
from r1ranker.data.sources.ranking_bench import hub_rows
from r1ranker.data.sources.trec_files import read_qrels
from r1ranker.errors import UserError
from r1ranker.tasks.text import one_line

Layout = Literal["beir", "bright", "r2med"]
Row = dict[str, Any]
K1, B = 0.9, 0.4
"""of BM25, as Anserini has them for passages"""


@dataclass
class Collection:
    """Queries that are judged, and all documents."""

    documents: dict[str, str] = field(default_factory=dict)
    """id -> text, behind its title where it has one"""
    queries: dict[str, str] = field(default_factory=dict)
    grades: dict[str, dict[str, int]] = field(default_factory=dict)
    """query -> document -> grade"""
    excluded: dict[str, set[str]] = field(default_factory=dict)
    """query -> documents that its answer may not hold (BRIGHT)"""


def read_collection(layout: Layout, source: str, split: str) -> Collection:
    """The collection of a hub data set, of a local copy of one, or of a directory with the published files.

    Raises UserError for a source that cannot be read, naming the table and the column that it lacks.
    """
    found = Collection()
    if layout == "bright":
        _read_bright(found, source, split)
    else:
        queries, of_query = ("queries", "query-id") if layout == "beir" else ("query", "q_id")
        of_document = "corpus-id" if layout == "beir" else "p_id"
        for name, row in _rows(source, "corpus", "corpus"):
            title = row.get("title")
            text = _cell(name, row, "text")
            found.documents[_id(name, row)] = f"{title} {text}" if isinstance(title, str) and title else text
        every = {_id(name, row): one_line(_cell(name, row, "text")) for name, row in _rows(source, queries, queries)}
        for name, row in _judgments(layout, source, split):
            query, document = _word(_cell(name, row, of_query)), _word(_cell(name, row, of_document))
            found.grades.setdefault(query, {})[document] = _grade(name, row)
        found.queries = {query: text for query, text in every.items() if query in found.grades}
    if not found.queries:
        raise UserError(f"{source}: none of its queries is judged; queries and judgments of one collection are wanted")
    return found


def _read_bright(found: Collection, source: str, split: str) -> None:
    for name, row in _rows(source, "documents", split):
        found.documents[_id(name, row)] = _cell(name, row, "content")
    for name, row in _rows(source, "examples", split):
        query = _id(name, row)
        found.queries[query] = one_line(_cell(name, row, "query"))
        found.grades[query] = {_word(one): 1 for one in row.get("gold_ids") or () if one != "N/A"}
        found.excluded[query] = {_word(one) for one in row.get("excluded_ids") or () if one != "N/A"}


def _judgments(layout: Layout, source: str, split: str) -> Iterator[tuple[str, Row]]:
    if layout == "r2med":
        plain = Path(source) / "qrels.txt"
        if plain.is_file():
            for query, of_query in read_qrels(str(plain)).items():
                yield from ((str(plain), {"q_id": query, "p_id": name, "score": of_query[name]}) for name in of_query)
            return
        yield from _rows(source, "qrels", "qrels")
        return
    file = Path(source) / "qrels" / f"{split}.tsv"
    if not Path(source).is_dir():
        yield from _load(f"{source}-qrels", None, split)
        return
    if not file.is_file():
        raise UserError(f"{file}: no such file; judgments with query-id, corpus-id and score are wanted")
    names: list[str] = []
    for number, line in text_lines(str(file)):
        cells = line.rstrip("\n").split("\t")
        if not names:
            names = cells
            continue
        yield f"{file}: line {number}", dict(zip(names, cells, strict=False))


def _rows(source: str, table: str, split: str) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of a table: of a file of its name in a directory, else of a hub data set or its copy."""
    for ending in (".jsonl", ".jsonl.gz"):
        file = Path(source) / f"{table}{ending}"
        if file.is_file():
            yield from ((f"{file}: line {number}", row) for number, row in json_rows(str(file)))
            return
    yield from _load(source, table, split)


def _load(source: str, config: str | None, split: str) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(hub_rows(source, config, split), 1):
        yield f"{source}: {config or 'data'}: row {number}", dict(row)


def _cell(where: str, row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str | int):
        raise UserError(f"{where}: {name}: found {value!r:.80}; a text is wanted (columns: {', '.join(row)})")
    return str(value)


def _id(where: str, row: Row) -> str:
    return _word(_cell(where, row, "_id" if "_id" in row else "id"))


def _word(name: str) -> str:
    """An id without white space, which no TREC file could hold."""
    return "_".join(str(name).split())


def _grade(where: str, row: Row) -> int:
    try:
        return int(row["score"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: score: found {row.get('score')!r}; a whole number is wanted") from error


def write_collection(collection: Collection, directory: str, depth: int) -> None:
    """queries.tsv, collection.jsonl, qrels.txt and run.bm25.txt, the first `depth` documents of each query by BM25."""
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        _write(temporary / "queries.tsv", (f"{query}\t{text}" for query, text in collection.queries.items()))
        documents = collection.documents.items()
        lines = (json.dumps({"id": name, "text": text}, ensure_ascii=False) for name, text in documents)
        _write(temporary / "collection.jsonl", lines)
        grades = ((query, *one) for query, of_query in collection.grades.items() for one in of_query.items())
        _write(temporary / "qrels.txt", (f"{query} 0 {document} {grade}" for query, document, grade in grades))
        _write(temporary / "run.bm25.txt", _first_stage(collection, depth))


def _first_stage(collection: Collection, depth: int) -> Iterator[str]:
    """Lines of a run by BM25 (Lucene's variant, bm25s), without the documents that a query excludes."""
    import bm25s

    names = list(collection.documents)
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(bm25s.tokenize(list(collection.documents.values()), show_progress=False), show_progress=False)
    for query, text in collection.queries.items():
        excluded = collection.excluded.get(query, set())
        words = bm25s.tokenize([text], show_progress=False)
        places, scores = index.retrieve(words, k=min(len(names), depth + len(excluded)), show_progress=False)
        kept = [(names[place], score) for place, score in zip(places[0], scores[0], strict=True)]
        kept = [(name, score) for name, score in kept if name not in excluded][:depth]
        for rank, (name, score) in enumerate(kept, 1):
            yield f"{query} Q0 {name} {rank} {score:.6f} bm25"


def _write(file: Path, lines: Iterator[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as written:
        written.writelines(f"{line}\n" for line in lines)
