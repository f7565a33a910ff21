"""Files that cannot be used: one line naming file and row each, and nothing half-written remains."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.toy_raw import PASSAGES, write_toy_raw
from r1ranker.data.sources.trec import TrecFiles
from r1ranker.errors import UserError

INTER, ITEM = "rec/ml-1m.inter", "rec/ml-1m.item"
ROUTER, DESCRIPTIONS = "router/router_data.csv.gz", "router/llm_descriptions.json"
PASSAGE = "passage/train-00000-of-00001.parquet"
Change = Callable[[Path], None]


def line(number: int, text: str) -> Change:
    """Put `text` in place of a line (from 1) of a text file, plain or gzipped."""

    def change(path: Path) -> None:
        packed = path.suffix == ".gz"
        data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        lines = data.split(b"\n")
        lines[number - 1] = text.encode("latin-1")
        path.write_bytes(gzip.compress(b"\n".join(lines)) if packed else b"\n".join(lines))

    return change


def content(data: bytes) -> Change:
    return lambda path: path.write_bytes(data) and None  # type: ignore[func-returns-value]


def cut(share: float) -> Change:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)]) and None  # type: ignore[func-returns-value]


def remade(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None  # type: ignore[func-returns-value]


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def passages(selected: list, texts: list, query: str | None = "q") -> Change:
    rows = [{"query": query, "query_id": 1, "passages": {"is_selected": selected, "passage_text": texts}}]
    return lambda path: pq.write_table(pa.Table.from_pylist(rows, schema=PASSAGES), path)


def columns(**changed: object) -> Change:
    return lambda path: pq.write_table(pa.Table.from_pylist([{"query": "q", "passages": {"a": 1}} | changed]), path)


RAW: list[tuple[str, str, str, Change, str]] = [
    ("Rec-Movie", "commas for tabs", INTER, remade(lambda b: b.replace(b"\t", b",")), r"line 1: no column 'user_id'; columns are separated by commas, tabs are wanted"),
    ("Rec-Movie", "no header", INTER, remade(lambda b: b.partition(b"\n")[2]), r"line 1: no column 'user_id'"),
    ("Rec-Movie", "header and no rows", INTER, remade(lambda b: b.partition(b"\n")[0] + b"\n"), "a header and no rows"),
    ("Rec-Movie", "empty file", INTER, content(b""), "empty; at least one row"),
    ("Rec-Movie", "UTF-16", INTER, remade(lambda b: b.decode().encode("utf-16")), "line 1: found UTF-16; UTF-8 is wanted"),
    ("Rec-Movie", "NUL byte", INTER, line(5, "u1\t1\0\t3\t1000"), "line 5: found a NUL byte"),
    ("Rec-Movie", "invalid UTF-8", ITEM, line(7, "5\tCaf\xe9\tkind"), "line 7: found byte 0xe9 at 5; UTF-8 is wanted"),
    ("Rec-Movie", "column missing in a row", INTER, line(9, "u1\t1\t3"), "line 9: found 3 columns; 4 are wanted"),
    ("Rec-Movie", "column too many in a row", INTER, line(9, "u1\t1\t3\t4\t5"), "line 9: found 5 columns; 4 are wanted"),
    ("Rec-Movie", "timestamp no number", INTER, line(4, "u1\t1\t3\tyesterday"), "line 4: timestamp: found 'yesterday'; a finite number"),
    ("Rec-Movie", "timestamp NaN", INTER, line(4, "u1\t1\t3\tnan"), "line 4: timestamp: found 'nan'"),
    ("Rec-Movie", "user missing", INTER, line(6, "\t1\t3\t4"), "line 6: user_id is empty"),
    ("Rec-Movie", "item missing", INTER, line(6, "u1\t\t3\t4"), "line 6: item_id is empty"),
    ("Rec-Movie", "item twice", ITEM, line(5, "2\tAgain\tkind"), "line 5: item '2' stands there twice"),
    ("Rec-Movie", "item id missing", ITEM, line(5, "\tNameless\tkind"), "line 5: item_id is empty"),
    ("Rec-Movie", "items without titles", ITEM, content(b"item_id:token\n1\n2\n"), "line 1: no column .title.; found .item_id:token.; a header such as"),
    ("Rec-Movie", "few items", ITEM, content(b"item_id:token\ttitle:token_seq\n1\tA\n2\tB\n"), "2 titles; at least 40"),
    ("Rec-Movie", "a directory", INTER, directory, "found a directory; a file is wanted"),
    ("Rec-Movie", "gzip without its name", INTER, remade(gzip.compress), "line 1: found gzip; a name that ends in .gz"),
    ("Rec-Movie", "parquet", INTER, content(b"PAR1\x15\x04"), "line 1: found parquet; text is wanted"),
    ("Router-Cost", "gzip cut short", ROUTER, cut(0.6), r"line \d+: not gzip, or cut short"),
    ("Router-Cost", "no gzip", ROUTER, content(b"task_id,query\n"), "line 1: not gzip, or cut short"),
    ("Router-Cost", "effect NaN", ROUTER, line(2, "quiz,q,LLaMA-3 (8b),nan,0"), r"router_data.csv.gz: line 2: effect: found 'nan'"),
    ("Router-Cost", "cost infinite", ROUTER, line(2, "quiz,q,LLaMA-3 (8b),1,inf"), "line 2: cost: found 'inf'"),
    ("Router-Cost", "no column", ROUTER, line(1, "task_id,query,llm,efect,cost"), r"no column 'effect' \(did you mean 'efect'\?\)"),
    ("Router-Cost", "semicolons", ROUTER, content(gzip.compress(b"task_id;query;effect;cost\na;b;1;0\n")), "separated by semicolons, commas are wanted"),
    ("Router-Cost", "quote left open", ROUTER, content(gzip.compress(b'task_id,query,llm,effect,cost\nquiz,"q,a,1,0\n')), r"line 2: not a row of the table"),
    ("Router-Cost", "other LLMs", ROUTER, content(gzip.compress(b"task_id,query,llm,effect,cost\nt,q,Mixtral-8x7B,1,0\nt,q,Mistral-7b,1,0\nt,r,Mixtral-8x7B,1,0\nt,r,LLaMA-2 (7b),1,0\n")), r"line 4: 2 rows of one query, other LLMs than before .Mistral-7b."),
    ("Router-Cost", "one LLM", ROUTER, content(gzip.compress(b"task_id,query,llm,effect,cost\nt,q,a,1,0\nt,r,a,1,0\n")), "line 2: one row of a query"),
    ("Router-Cost", "nine rows", ROUTER, content(gzip.compress(b"task_id,query,effect,cost\n" + b"t,q,1,0\n" * 9)), "line 2: 9 rows of one query; 10 are wanted"),
    ("Router-Cost", "no query", ROUTER, content(gzip.compress(b"task_id,query,effect,cost\n" + b"t,,1,0\n" * 10)), "line 2: query is empty"),
    ("Router-Cost", "descriptions no JSON", DESCRIPTIONS, content(b"{"), "not JSON"),
    ("Router-Cost", "an LLM not described", DESCRIPTIONS, content(b'{"LLaMA-3 (8B)": "x"}'), r"no description of 'LLaMA-3 \(8b\)' \(did you mean"),
    ("Passage-5", "parquet cut short", PASSAGE, cut(0.7), "not a parquet file, or cut short"),
    ("Passage-5", "text for parquet", PASSAGE, content(b"query,passages\n"), "not a parquet file"),
    ("Passage-5", "no such column", PASSAGE, columns(passages=None, passage={"a": 1}), "column 'passages' holds"),
    ("Passage-5", "other fields", PASSAGE, columns(), "row 0: passages holds a; lists is_selected and passage_text"),
    ("Passage-5", "lists of two lengths", PASSAGE, passages([1, 0], ["a"]), "row 0: 2 is_selected for 1 passage_text"),
    ("Passage-5", "selected no 0 or 1", PASSAGE, passages([2], ["a"]), "row 0: passages holds other than texts and 0 or 1"),
    ("Passage-5", "query null", PASSAGE, passages([1], ["a"], None), "row 0: query or passages is null"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "kind", "file", "change", "message"), RAW, ids=[row[1] for row in RAW])
def test_a_bad_source_is_named_and_leaves_nothing(
    tmp_path: Path, task: str, kind: str, file: str, change: Change, message: str
) -> None:
    write_toy_raw(str(tmp_path / "raw"), users=12, queries=12)
    change(tmp_path / "raw" / file)
    with pytest.raises(UserError, match=message) as error:
        prepare(PrepareOptions(str(tmp_path / "raw"), str(tmp_path / "new" / "out"), tasks=[task]))
    assert Path(file).name in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


GOOD = {"query": "q", "candidates": ["a", "b"], "positive": "a"}
OWN: list[tuple[str, str, str, str]] = [
    ("not JSON", "rows.jsonl", "{\n", "line 1: not JSON"),
    ("a list", "rows.jsonl", "[1]\n", "line 1: found list; an object"),
    ("only blank lines", "rows.jsonl", "\n\n", "no rows"),
    ("neither query nor history", "rows.jsonl", json.dumps({"candidates": ["a"]}), "line 1: found neither of query and history"),
    ("both", "rows.jsonl", json.dumps(GOOD | {"history": ["x"]}), "line 1: found both of query and history"),
    ("no label", "rows.jsonl", json.dumps(GOOD | {"positive": None}), "line 1: found neither positive nor labels"),
    ("positive elsewhere", "rows.jsonl", json.dumps(GOOD | {"positive": "c"}), "line 1: the positive 'c' is not among"),
    ("a name twice", "rows.jsonl", json.dumps(GOOD | {"candidates": ["a", "a "]}), "line 1: candidates holds 'a ' twice"),
    ("candidates a text", "rows.jsonl", json.dumps(GOOD | {"candidates": "a"}), "line 1: candidates: found 'a'; a list of texts"),
    ("labels too few", "rows.jsonl", json.dumps(GOOD | {"labels": [1]}), "line 1: 1 labels for 2 candidates"),
    ("label negative", "rows.jsonl", json.dumps(GOOD | {"labels": [1, -1]}), r"line 1: labels: found \[1, -1\]; numbers from 0 to 1000"),
    ("label NaN", "rows.jsonl", json.dumps(GOOD | {"labels": [1, float("nan")]}), "line 1: labels: found"),
    ("labels texts", "rows.jsonl", json.dumps(GOOD | {"labels": ["1", "0"]}), "line 1: labels: found"),
    ("positive not the best", "rows.jsonl", json.dumps(GOOD | {"labels": [0, 1]}), "line 1: the positive 'a' is not of the highest"),
    ("a side there is not", "rows.jsonl", json.dumps(GOOD | {"split": "dev"}), "line 1: split: found 'dev'"),
    ("a task's name", "rows.jsonl", json.dumps(GOOD | {"task": "a task"}), "task: found 'a task'; a name of letters"),
    ("query for a history", "rows.jsonl", json.dumps(GOOD | {"task": "Rec-Movie"}), "line 1: found a query, but the words of the task Rec-Movie are of a history"),
    ("texts too few", "rows.jsonl", json.dumps(GOOD | {"texts": ["x"]}), "line 1: 1 texts for 2 candidates"),
    ("no column", "rows.csv", "query,candidate,positive\nq,a|b,a\n", r"no column 'candidates' \(did you mean 'candidate'"),
    ("labels in words", "rows.csv", "query,candidates,labels\nq,a|b,x|y\n", "line 2: labels: found 'x|y'"),
    ("a list cut short", "rows.csv", 'query,candidates,positive\nq,"[""a",a\n', "line 2: candidates: not JSON"),
    ("half a surrogate pair", "rows.jsonl", '{"query": "q", "candidates": ["a\\ud800", "b"], "positive": "b"}', r"line 1: found '\\ud800', half a surrogate pair"),
    ("label too high", "rows.jsonl", json.dumps(GOOD | {"labels": [1001, 0]}), "line 1: labels: found .* from 0 to 1000"),
    ("label beyond numbers", "rows.jsonl", json.dumps(GOOD | {"labels": [10**400, 0]}), "line 1: labels: found"),
    ("all labels 0 or below", "rows.jsonl", json.dumps(GOOD | {"positive": None, "labels": [0, -1]}), "line 1: labels: found"),
    ("brackets without end", "rows.csv", "query,candidates,labels\nq,a|b," + "[" * 100_000 + "]\n", "line 2: labels: not JSON"),
    ("a blank query", "rows.jsonl", json.dumps(GOOD | {"query": "\u200b "}), "line 1: found neither of query and history"),
    ("a blank in a history", "rows.jsonl", json.dumps(GOOD | {"query": "", "history": [" "]}), "line 1: history holds a blank"),
    ("both kinds in a task", "rows.jsonl", json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"query": None, "history": ["x"]}), "line 2: found a history, but the words of the task Own are of a query"),
    ("a task that is a list", "rows.jsonl", json.dumps(GOOD | {"task": []}), r"line 1: task: found \[\]; a text"),
    ("an id that is true", "rows.jsonl", json.dumps(GOOD | {"id": True}), "line 1: id: found True"),
    ("a key that is missing", "rows.jsonl", json.dumps({"query": "q", "candidate": ["a"]}), r"line 1: no key 'candidates' \(did you mean 'candidate'"),
    ("a column twice", "rows.csv", "query,query,candidates,positive\nq,q,a|b,a\n", "line 1: column 'query' stands there twice"),
    ("a lone carriage return", "rows.csv", "query,candidates,positive\nq\rr,a|b,a\n", "line 2: not a row of the table .a carriage return"),
    ("one row", "rows.jsonl", json.dumps(GOOD), "no direct (train|test) row is left"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "text", "message"), OWN, ids=[row[0] for row in OWN])
def test_bad_rows_of_ones_own_are_named_and_leave_nothing(
    tmp_path: Path, kind: str, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(UserError, match=message):
        prepare(PrepareOptions(str(tmp_path / name), str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_bad_parquet_of_ones_own_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    twice = pa.table([["q"], ["r"], [["a", "b"]], ["a"]], ["query", "query", "candidates", "positive"])
    binary = pa.array([b"caf\xe9"]).view(pa.string())
    other = pa.table([binary, pa.array([["a", "b"]]), ["a"]], ["query", "candidates", "positive"])
    for table, message in ((twice, "column 'query' stands there twice"), (other, "damaged parquet")):
        pq.write_table(table, path)
        with pytest.raises(UserError, match=rf"rows.parquet: {message}"):
            prepare(PrepareOptions(str(path), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("request", "{{ '{a}'.format() }} {{ query }}", "request: 'a'"),
        ("request", "{{ query.encode('nope') }}", "request: unknown encoding"),
        ("request", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ query }}", "request: maximum recursion"),
        ("request", "Rank these.", "request: uses neither query nor history"),
        ("request", "{{ query", "request: "),
        ("goal", "how\u2028well", "goal: found .*; one line"),
        ("noun", " ", "noun: found ''; one line"),
        ("cutoffs", [True], "cutoffs: found"),
        ("plural", "x\ud800", "not YAML"),
    ],
)
def test_bad_words_of_a_task_are_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    words = {"name": "Mine", "goal": "how well it fits", "request": "{{ query }}"} | {key: value}
    (tmp_path / "words.yaml").write_text(json.dumps(words))  # JSON is YAML
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match=message):
        prepare(
            PrepareOptions(str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), template=str(tmp_path / "words.yaml"))
        )
    assert not (tmp_path / "out").exists()


TREC = [
    ("queries", "1 first\n", "queries: line 1: found '1 first'; an id, a tab and a query"),
    ("queries", "1\tfirst\n1\tagain\n", "queries: line 2: id '1' stands there twice"),
    ("collection", "d1 one\n", "collection: line 1: found 'd1 one'"),
    ("run", "1 Q0 d1 1 t\n", "run: line 1: found 5 fields; lines of query Q0 document rank score tag"),
    ("run", "1 Q0 d1 1 best t\n", "run: line 1: score: found 'best'"),
    ("run", "1 Q0 d1 1 2 t\n1 Q0 d1 2 1 t\n", "run: line 2: document 'd1' stands there twice"),
    ("qrels", "1 d1 1\n", "qrels: line 1: found 3 fields"),
    ("qrels", "1 0 d1 good\n", "qrels: line 1: grade: found 'good'"),
    (
        "collection",
        "d1\tone\nd2\ttwo\nd1\tother\n",
        "collection: line 3: document 'd1' stands there twice, with two texts",
    ),
    ("qrels", "1 0 d1 1\n1 0 d1 0\n", "qrels: line 2: 'd1' is judged twice for query '1', differently"),
    ("qrels", "1 0 d1 1e9\n", "qrels: line 1: grade: found 1e.09; at most 1000"),
    ("qrels", "1 0 d9 1\n", "qrels: column 3 has no document of .*run, such as 'd1'; lines of query 0 document grade"),
    ("qrels", "1 0 d1 0\n", "no direct (train|test) row is left; see the counts: .*without a relevant document"),
]


@pytest.mark.parametrize(("file", "text", "message"), TREC)
def test_bad_trec_files_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    good = {
        "queries": "1\tfirst\n2\tsecond\n",
        "collection": "d1\tone\nd2\ttwo\n",
        "run": "1 Q0 d1 1 2 t\n1 Q0 d2 2 1 t\n2 Q0 d1 1 2 t\n2 Q0 d2 2 1 t\n",
        "qrels": "1 0 d1 1\n2 0 d2 1\n",
    }
    for name, right in good.items():
        (tmp_path / name).write_text(right)
    files = TrecFiles(*(str(tmp_path / name) for name in good))
    prepare(PrepareOptions("trec", str(tmp_path / "fine"), trec=files))
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(PrepareOptions("trec", str(tmp_path / "out"), trec=files))
    assert not (tmp_path / "out").exists()


def test_what_can_be_put_right_is_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy_raw(str(tmp_path / "raw"))
    options = {"tasks": ["Rec-Movie"]}
    prepare(PrepareOptions(str(tmp_path / "raw"), str(tmp_path / "plain"), **options))  # type: ignore[arg-type]
    for file in (INTER, ITEM):
        path = tmp_path / "raw" / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    capsys.readouterr()
    prepare(PrepareOptions(str(tmp_path / "raw"), str(tmp_path / "windows"), **options))  # type: ignore[arg-type]
    said = capsys.readouterr().err
    for file in (INTER, ITEM):
        assert said.count(f"note: {tmp_path / 'raw' / file}: line 1: a byte-order mark was left out") == 1
        assert said.count(f"note: {tmp_path / 'raw' / file}: line 1: Windows line ends") == 1
    both = [
        list(read_ranking_bench(str(tmp_path / name / "bench"), "direct", "train")) for name in ("plain", "windows")
    ]
    assert both[0] == both[1]


def test_a_changed_or_truncated_data_set_is_noticed_at_load(tmp_path: Path) -> None:
    prepare(PrepareOptions("toy", str(tmp_path), size=5))
    file = tmp_path / "bench" / "direct" / "test.parquet"
    whole = file.read_bytes()

    def read() -> list:
        return list(read_ranking_bench(str(tmp_path / "bench"), "direct", "test"))

    rows = read()
    other = tmp_path / "bench" / "direct" / "train.parquet"
    file.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"test.parquet: [\d,]+ bytes, but .*manifest.json says"):
        read()
    table = pq.read_table(other)
    changed = bytearray(whole)
    changed[whole.index(b"Silent")] ^= 1
    file.write_bytes(bytes(changed))
    with pytest.raises(UserError, match=r"test.parquet: its checksum is not the one in"):
        read()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"test.parquet: not a parquet file, or cut short"):
        read()
    file.write_bytes(whole)
    assert read() == rows
    assert table.num_rows == 45
    (tmp_path / "bench" / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest.json: not the manifest of a data set"):
        read()


def test_nothing_remains_where_the_target_cannot_be_written(tmp_path: Path) -> None:
    write_toy_raw(str(tmp_path / "raw"), users=12, queries=12)
    (tmp_path / "file").write_text("in the way")
    options = PrepareOptions(str(tmp_path / "raw"), str(tmp_path / "file" / "out"), tasks=["Router-Cost"])
    with pytest.raises(UserError, match="cannot be written"):
        prepare(options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "raw"]


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
sys.argv = ["r1ranker", "prepare", "--from", sys.argv[1], "--output", sys.argv[2], "--task", "Rec-Movie", "--history", "20"]
from r1ranker.cli import main
main()
"""


def test_nothing_remains_where_the_disk_is_full(tmp_path: Path) -> None:
    """The limit on a file's size makes writing fail as a full disk does, in the middle of a file."""
    write_toy_raw(str(tmp_path / "raw"))
    prepare(PrepareOptions(str(tmp_path / "raw"), str(tmp_path / "out"), tasks=["Rec-Movie"], seed=1))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    sizes = sorted(len(data) for data in before.values())
    for limit in (1000, sizes[-1] - 100):
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path / "raw"), str(tmp_path / "out"), str(limit)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 2, done.stderr
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
