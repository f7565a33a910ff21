"""BEIR, BRIGHT and R2MED, in directories of their layouts, as files that `r1ranker rank --run` takes."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.data.sources.collection import K1, B, Layout, read_collection, write_collection
from r1ranker.errors import UserError

Call = Callable[..., tuple[int, str, str]]
DOCUMENTS = {
    "a 1": ("Rivers", "The Danube crosses ten countries."),
    "b": ("", "Cats sleep most of every day;\nso do lions."),
    "c": ("Cats", "Cats hunt at night."),
    "d": ("", "Bread rises because of yeast."),
}
QUERIES = {"q1": "Where do cats hunt?", "q2": "Why does bread\nrise?", "idle": "Nobody judged this."}
GRADES = {("q1", "c"): 2, ("q1", "b"): 1, ("q2", "d"): 1}


def written(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def beir(directory: Path) -> None:
    written(directory / "corpus.jsonl", [{"_id": n, "title": t, "text": x} for n, (t, x) in DOCUMENTS.items()])
    written(directory / "queries.jsonl", [{"_id": n, "text": x, "metadata": {}} for n, x in QUERIES.items()])
    (directory / "qrels").mkdir()
    lines = [f"{query}\t{document}\t{grade}" for (query, document), grade in GRADES.items()]
    (directory / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def r2med(directory: Path) -> None:
    """A copy of the hub's repository."""
    named = {"corpus": [{"id": n, "text": f"{t} {x}".strip()} for n, (t, x) in DOCUMENTS.items()]}
    named["query"] = [{"id": n, "text": x} for n, x in QUERIES.items()]
    named["qrels"] = [{"q_id": q, "p_id": d, "score": grade} for (q, d), grade in GRADES.items()]
    configs = []
    for name, rows in named.items():
        written(directory / "data" / f"{name}.jsonl", rows)
        configs.append(f"- config_name: {name}\n  data_files:\n  - split: {name}\n    path: data/{name}.jsonl\n")
    (directory / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")


def bright(directory: Path) -> None:
    table(
        directory / "documents" / "test.parquet",
        [{"id": n, "content": f"{t} {x}".strip()} for n, (t, x) in DOCUMENTS.items()],
    )
    gold = {query: [d for (q, d), _ in GRADES.items() if q == query] for query in ("q1", "q2")}
    rows = [
        {"id": q, "query": QUERIES[q], "excluded_ids": ["a 1"] if q == "q1" else ["N/A"], "gold_ids": gold[q]}
        for q in gold
    ]
    table(directory / "examples" / "test.parquet", rows)
    configs = [
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test.parquet\n"
        for name in ("documents", "examples")
    ]
    (directory / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")


MAKE = {"beir": beir, "r2med": r2med, "bright": bright}


def lucene_bm25(query: str, documents: dict[str, str]) -> dict[str, float]:
    """The formula, word by word."""
    from bm25s.stopwords import STOPWORDS_EN

    def words_of(text: str) -> list[str]:
        return [word for word in re.findall(r"\w\w+", text.lower()) if word not in STOPWORDS_EN]

    cut = {name: words_of(text) for name, text in documents.items()}
    mean = sum(map(len, cut.values())) / len(cut)
    scores = dict.fromkeys(documents, 0.0)
    for word in set(words_of(query)):
        df = sum(word in words for words in cut.values())
        idf = math.log(1 + (len(cut) - df + 0.5) / (df + 0.5))
        for name, words in cut.items():
            tf = Counter(words)[word]
            scores[name] += idf * tf / (tf + K1 * (1 - B + B * len(words) / mean))
    return scores


@pytest.mark.parametrize("layout", ["beir", "r2med", "bright"])
def test_a_collection_becomes_files_that_rank_takes(
    layout: Layout, call: Call, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    MAKE[layout](tmp_path / "source")
    out = tmp_path / "out"
    write_collection(read_collection(layout, str(tmp_path / "source"), "test"), str(out), 3)
    assert (out / "queries.tsv").read_text() == "q1\tWhere do cats hunt?\nq2\tWhy does bread rise?\n"
    texts = [json.loads(line) for line in (out / "collection.jsonl").read_text().splitlines()]
    assert {one["id"]: one["text"] for one in texts} == {
        name.replace(" ", "_"): f"{title} {text}".strip() for name, (title, text) in DOCUMENTS.items()
    }
    grades = {(q, d): 1 if layout == "bright" else grade for (q, d), grade in GRADES.items()}
    qrels = list(ir_measures.read_trec_qrels(str(out / "qrels.txt")))
    assert {(one.query_id, one.doc_id): one.relevance for one in qrels} == grades
    run = list(ir_measures.read_trec_run(str(out / "run.bm25.txt")))
    expected = lucene_bm25(QUERIES["q1"], {name: f"{title} {text}" for name, (title, text) in DOCUMENTS.items()})
    for one in run:
        if one.query_id == "q1":
            assert one.score == pytest.approx(expected[one.doc_id.replace("_", " ")], abs=1e-5)
    of_q1 = [one.doc_id for one in run if one.query_id == "q1"]
    assert of_q1[:2] == ["c", "b"]
    assert layout != "bright" or "a_1" not in of_q1
    files = ["--run", out / "run.bm25.txt", "--queries", out / "queries.tsv", "--collection", out / "collection.jsonl"]
    given = ["rank", "--model", tiny_model, "--engine", "hf", "--strategy", "logits", "--mode", "direct", "--no-think"]
    code, _, said = call(*given, *map(str, files), "--qrels", str(out / "qrels.txt"), "--output", str(out / "r.trec"))
    assert code == 0, said
    assert len(list(ir_measures.read_trec_run(str(out / "r.trec")))) == len(run)


def test_what_a_collection_lacks_is_one_line(tmp_path: Path) -> None:
    beir(tmp_path / "one")
    written(tmp_path / "one" / "queries.jsonl", [{"_id": "q1", "question": "x"}])
    with pytest.raises(
        UserError, match=r"queries.jsonl: line 1: text: found None; a text is wanted \(columns: _id, question\)"
    ):
        read_collection("beir", str(tmp_path / "one"), "test")
    beir(tmp_path / "two")
    with pytest.raises(UserError, match=r"dev.tsv: no such file; judgments with query-id"):
        read_collection("beir", str(tmp_path / "two"), "dev")
    written(tmp_path / "two" / "queries.jsonl", [{"_id": "other", "text": "x"}])
    with pytest.raises(UserError, match="none of its queries is judged"):
        read_collection("beir", str(tmp_path / "two"), "test")
