"""TREC files have no header: columns in another order are told by their ids, in one line, and not by an empty data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from r1ranker.data.files.tally import TaskTally
from r1ranker.data.sources.trec import TrecFiles, read_trec
from r1ranker.errors import UserError

RUN: list[list[Any]] = [
    [f"q{query}", "Q0", f"d{place}", place + 1, 9.5 - place, "bm25"] for query in (1, 2) for place in range(4)
]
QRELS: list[list[Any]] = [["q1", 0, "d1", 1], ["q1", 0, "d2", 0], ["q2", 0, "d3", 2]]
COLLECTION = [[f"d{place}", text] for place, text in enumerate(["zero", 'The "best" of', '"Weird Al" live', '"All quoted."'])]  # fmt: skip


def written(directory: Path, **changed: str) -> TrecFiles:
    """Files of two queries over four documents, but for those whose text is given."""

    def lines(rows: list[list], separator: str) -> str:
        return "".join(separator.join(map(str, row)) + "\n" for row in rows)

    texts = {
        "queries.tsv": lines([["q1", "first"], ["q2", "second"]], "\t"),
        "collection.tsv": lines(COLLECTION, "\t"),
        "run.txt": lines(RUN, " "),
        "qrels.txt": lines(QRELS, "\t"),
    }
    for name, text in texts.items():
        (directory / name).write_text(changed.get(name.split(".")[0], text))
    return TrecFiles(*(str(directory / name) for name in texts))


def read(files: TrecFiles) -> list:
    return [one.example for one in read_trec(files, "Mine", 20, False, 1, TaskTally())]


def put(rows: list[list], order: str) -> str:
    return "".join(" ".join(str(row[int(place)]) for place in order) + "\n" for row in rows)


def test_files_in_the_usual_order_are_read(tmp_path: Path) -> None:
    one, two = read(written(tmp_path))
    assert one.texts == tuple(text for _, text in COLLECTION)
    assert one.grades == (0.0, 1.0, 0.0, 0.0)
    assert two.grades == (0.0, 0.0, 0.0, 2.0)


def test_texts_that_pandas_quoted_are_as_they_were_and_others_keep_their_quotes(tmp_path: Path) -> None:
    texts = [*(text for _, text in COLLECTION[:3]), "a\ttab"]
    frame = pd.DataFrame({"id": [name for name, _ in COLLECTION], "text": texts})
    collection = frame.to_csv(sep="\t", index=False, header=False)
    assert '"The ""best"" of"' in collection
    (one, _) = read(written(tmp_path, collection=collection))
    assert one.texts == tuple(texts)


COUNTED: list[list[Any]] = [[*row[:3], row[3], int(20 - row[3]), row[5]] for row in RUN]  # whole scores


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qrels": put(QRELS, "0213")}, "qrels.txt: line 1: found 0 in column 3; lines of query 0 document grade, without a header, are wanted"),
        ({"qrels": put([["q1", 4, "d1", 1]], "0213")}, "qrels.txt: the document ids of .*run.txt stand in column 2; lines of query 0 document grade, without a header, are wanted"),
        ({"qrels": put(QRELS, "2103")}, "qrels.txt: the query ids of .*run.txt stand in column 3"),
        ({"qrels": put(QRELS, "1023")}, "qrels.txt: the query ids of .*run.txt stand in column 2"),
        ({"qrels": put(QRELS, "0132")}, "qrels.txt: line 1: grade: found 'd1'; a finite number is wanted; lines of query 0"),
        ({"qrels": "query_id\tdoc_id\titer\trel\n" + put(QRELS, "0213")}, "qrels.txt: line 1: grade: found 'rel'; .* without a header"),
        ({"qrels": "query-id corpus-id score\nq1 d1 1\n"}, "qrels.txt: line 1: found 3 fields; lines of query 0 document grade"),
        ({"qrels": put(RUN, "012345")}, "qrels.txt: line 1: found 6 fields; lines of query 0 document grade"),
        ({"run": put(QRELS, "0123")}, "run.txt: line 1: found 4 fields; lines of query Q0 document rank score tag"),
        ({"run": put(RUN, "021345")}, "run.txt: line 1: found Q0 in column 3; lines of query Q0 document rank score tag"),
        ({"run": put(RUN, "210345")}, "run.txt: line 5: document 'q2' stands there twice|queries.tsv: the query ids of .* stand|run.txt: the query ids of .*queries.tsv stand in column 3"),
        ({"run": put(RUN, "013245")}, "run.txt: line 1: rank: found 'd0'; a whole number is wanted"),
        ({"run": put(RUN, "012435")}, "run.txt: line 1: rank: found '9.5'; a whole number is wanted"),
        ({"run": put(COUNTED, "012435")}, "run.txt: the scores of each query count 1, 2, ..., as ranks do"),
        ({"run": "qid Q0 docno rank score tag\n" + put(RUN, "012345")}, "run.txt: line 1: rank: found 'rank'.*without a header"),
        ({"queries": "first\tq1\nsecond\tq2\n"}, "queries.tsv: the query ids of .*run.txt stand in column 2; lines of id, tab, text are wanted"),
        ({"queries": "1\tfirst\n2\tsecond\n"}, "queries.tsv: column 1 has no query of .*run.txt, such as 'q1'"),
        ({"collection": "".join(f"{text}\t{name}\n" for name, text in COLLECTION)}, "collection.tsv: the document ids of .*run.txt stand in column 2"),
        ({"collection": "d7\tseven\n"}, "collection.tsv: column 1 has no document of .*run.txt, such as 'd0'"),
    ],
)  # fmt: skip
def test_columns_in_another_order_are_named(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, **changed))


def test_a_collection_in_json_without_the_runs_documents_is_named(tmp_path: Path) -> None:
    files = written(tmp_path)
    path = tmp_path / "collection.jsonl"
    path.write_text(json.dumps({"id": "x1", "text": "one"}) + "\n")
    with pytest.raises(UserError, match=r"collection.jsonl: .* has no document of .*run.txt, such as 'd0'"):
        read(TrecFiles(files.queries, str(path), files.run, files.qrels))


@pytest.mark.parametrize(
    "rows",
    [
        COUNTED,
        [[*row[:3], 0, row[4], row[5]] for row in RUN],  # ranks that nobody filled in
        [[*row[:4], 5 - row[3], row[5]] for row in RUN],  # scores made of ranks
        [[*row[:3], 5 - row[3], row[3], row[5]] for row in RUN],  # the other way round
        [[*row[:4], -float(row[3]), row[5]] for row in RUN],
    ],
)
def test_a_run_in_the_usual_order_is_read_whatever_its_scores(tmp_path: Path, rows: list[list]) -> None:
    (one, _) = read(written(tmp_path, run=put(rows, "012345")))
    best = sorted((-float(row[4]), row[2]) for row in rows[:4])
    assert one.texts == tuple(dict(map(tuple, COLLECTION))[name] for _, name in best)  # type: ignore[arg-type]
