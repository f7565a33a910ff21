"""Files of a test collection as they are read: queries, documents, runs and qrels, each of which may be gzipped."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from r1ranker.data.files.tab_separated import unquote
from r1ranker.data.files.text_rows import json_rows
from r1ranker.data.sources.trec_columns import QRELS, RUN, check_scores, parse_number, trec_lines
from r1ranker.errors import UserError
from r1ranker.tasks.example import HIGHEST_GRADE

_RANK = re.compile(r"-?[0-9]{1,18}")


def read_pairs(path: str, what: str) -> Iterator[tuple[str, str]]:
    """(id, text) of each line; raises UserError naming file and line."""
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


def read_texts(path: str, wanted: Collection[str]) -> dict[str, str]:
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


def read_run(path: str) -> dict[str, list[str]]:
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


def read_qrels(path: str) -> dict[str, dict[str, float]]:
    """Grades of each query's documents."""
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
