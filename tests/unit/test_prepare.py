"""Preparing: options that do not fit, preparing again, two at once, a signal in the middle, what is told apart and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.atomic import lock_directory
from r1ranker.cli import main
from r1ranker.data.files.parquet import read_training_rows
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.toy_raw import write_toy_raw
from r1ranker.data.sources.trec import TrecFiles
from r1ranker.errors import UserError
from r1ranker.tasks.answers import normalise

OWN = Path(__file__).parents[2] / "examples" / "own_data"
PLANTS, SUPPORT, WORDS = str(OWN / "plants.csv"), str(OWN / "support.jsonl"), str(OWN / "support.yaml")
FILES = TrecFiles(*(str(OWN / "trec" / name) for name in ("queries.tsv", "collection.tsv", "run.txt", "qrels.txt")))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts_of(output: Path, split: str) -> list[str]:
    rows = read_training_rows([str(output / "direct_ranking" / f"{split}.parquet")])
    return [row["prompt"][1]["content"] for row in rows]


USELESS: list[tuple[str, dict[str, Any], str]] = [
    (PLANTS, {"trec": FILES}, "--queries, --collection, --run and --qrels: of no use with a file of one's own"),
    (PLANTS, {"history": ["3"]}, "--history: of no use with a file of one's own; raw sources is wanted"),
    (PLANTS, {"users": 3}, "--users: of no use"),
    (PLANTS, {"positions": 3}, "--positions: of no use"),
    (PLANTS, {"merits": True}, "--merits: of no use"),
    (PLANTS, {"recbole": ["Rec-Movie=ml-100k"]}, "--recbole: of no use"),
    (PLANTS, {"size": 9}, "--size: of no use"),
    (PLANTS, {"candidates": 3}, "--candidates: of no use with a file of one's own; raw sources or TREC files"),
    (PLANTS, {"max_prompt_length": 9}, "--max-prompt-length: of no use without --tokenizer"),
    (PLANTS, {"template": WORDS}, r"plants.csv: line 2: found a history, but the words of the task Support-Articles"),
    (SUPPORT, {"tasks": ["Other"]}, "support.jsonl: no row is of the task 'Other' that was named; its rows name Support"),
    (SUPPORT, {"tasks": ["Other"], "template": WORDS}, "no row is of the task 'Other'"),
    ("toy", {"template": WORDS}, "--template: of no use with the built-in world"),
    ("toy", {"test_share": 0.3}, "--test-share: of no use"),
    ("toy", {"shuffle": True}, "--shuffle: of no use"),
    ("toy", {"teacher": "right"}, "--teacher: of no use without --cold-start"),
    ("toy", {"teacher": "left", "cold_start": True}, "--teacher: found 'left'; one of frequent, right is wanted"),
    (PLANTS, {"teacher": "frequent", "cold_start": True}, "--teacher frequent: of no use with a file of one's own"),
    ("toy", {"size": 20_001}, "--size: found 20001; at most 20000 rows a task are wanted"),
    ("toy", {"tasks": ["Rec-Movies"]}, r"did you mean 'Rec-Movie'"),
    ("RAW", {"tasks": ["Passage-5"], "test_share": 0.5}, "--test-share: of no use with Passage-5, whose source is split"),
    ("RAW", {"tasks": ["Rec-Movie"], "merits": True}, "--merits: of no use with Rec-Movie; a routing task has them"),
    ("RAW", {"tasks": ["Router-Cost"], "history": ["3"]}, "--history: of no use with Router-Cost; a recommendation task"),
    ("RAW", {"tasks": ["Rec-Movie"], "history": ["Rec-Music=3"]}, "--history: Rec-Music is not among the tasks named"),
    ("RAW", {"history": ["²"]}, "--history: found '²'; a number"),
    ("RAW", {"shuffle": True}, "--shuffle: of no use with raw sources"),
    ("BENCH", {"tasks": ["Rec-Movie", "Passage-5"]}, "bench: no direct rows of Passage-5"),
    ("BENCH", {"test_share": 0.4}, "--test-share: of no use with a data set in Ranking-bench's layout"),
    ("TOY", {}, "found training rows that were prepared already; their source is wanted"),
    ("TEXT", {}, "notes.txt: a name that ends in one of .jsonl"),
    ("EMPTY", {}, "neither Ranking-bench's layout .* nor a raw source"),
    ("", {}, "--from: found ''; a name"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "options", "message"), USELESS)
def test_an_option_that_the_source_has_no_use_for_is_refused(
    tmp_path: Path, source: str, options: dict[str, Any], message: str
) -> None:
    prepare(PrepareOptions("toy", str(tmp_path / "TOY"), size=2, tasks=["Rec-Movie"]))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "EMPTY").mkdir()
    write_toy_raw(str(tmp_path / "RAW"), users=12, queries=12)
    places = {"BENCH": "TOY/bench", "TEXT": "notes.txt"}
    named = str(tmp_path / places.get(source, source)) if source.isupper() else source
    with pytest.raises(UserError, match=message):
        prepare(PrepareOptions(named, str(tmp_path / "out"), **options))
    assert not (tmp_path / "out").exists()


def test_preparing_again_leaves_nothing_of_the_data_set_before(tmp_path: Path) -> None:
    prepare(PrepareOptions(SUPPORT, str(tmp_path / "out"), template=WORDS, cold_start=True))
    assert (tmp_path / "out" / "direct_ranking" / "sft.parquet").is_file()
    (tmp_path / "out" / "direct_ranking" / "notes.md").write_text("mine")
    for output in ("out", "fresh"):
        prepare(PrepareOptions("toy", str(tmp_path / output), size=3, tasks=["Rec-Movie"]))
    again, fresh = contents(tmp_path / "out"), contents(tmp_path / "fresh")
    assert set(again) - set(fresh) == {"direct_ranking/notes.md"}
    assert {name: data for name, data in again.items() if name in fresh and name.endswith("t")} == {
        name: data for name, data in fresh.items() if name.endswith("t")
    }
    prepare(PrepareOptions(str(tmp_path / "out" / "bench"), str(tmp_path / "out")))
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"out/bench: holds another data set than .*fresh/bench"):
        prepare(PrepareOptions(str(tmp_path / "fresh" / "bench"), str(tmp_path / "out")))
    assert contents(tmp_path / "out") == before


def test_a_task_named_twice_is_written_once(tmp_path: Path) -> None:
    prepare(PrepareOptions("toy", str(tmp_path), size=3, tasks=["Rec-Movie", "Rec-Movie"]))
    assert len(prompts_of(tmp_path, "train")) == 3


def test_a_bad_iterative_file_leaves_no_direct_rows(tmp_path: Path) -> None:
    prepare(PrepareOptions("toy", str(tmp_path), size=3, tasks=["Rec-Movie"]))
    file = tmp_path / "bench" / "iterative" / "train.parquet"
    pq.write_table(pq.read_table(file).drop_columns("gt"), file)
    (tmp_path / "bench" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no column 'gt'"):
        prepare(PrepareOptions(str(tmp_path / "bench"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_directory_in_a_files_place_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "iterative_ranking" / "test.parquet" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"test.parquet: found a directory; the place of a file"):
        prepare(PrepareOptions(SUPPORT, str(tmp_path), template=WORDS))
    assert not contents(tmp_path)


def test_two_at_once_in_one_place_are_refused(tmp_path: Path) -> None:
    with (
        lock_directory(tmp_path / "out"),
        pytest.raises(UserError, match="out: another process is writing there"),
        lock_directory(tmp_path / "out"),
    ):
        pass
    prepare(PrepareOptions(PLANTS, str(tmp_path / "out")))
    with lock_directory(tmp_path / "other" / "place"):
        pass
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "r1ranker.cli", "prepare", "--from", "toy", "--size", "20000"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )  # fmt: skip
    while not list(tmp_path.rglob("*.parquet*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_requests_that_read_alike_are_one_and_never_on_both_sides(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        for query in (f"how to grow tree {number}", f"how to grow  tree {number} ", f"How to grow tree {number}"):
            rows.append({"query": query, "candidates": ["a", "b", "c"], "positive": "a"})
    prepare(PrepareOptions(write_jsonl(tmp_path / "rows.jsonl", rows), str(tmp_path / "out")))
    train, test = (prompts_of(tmp_path / "out", split) for split in ("train", "test"))
    assert len(train) == len(set(train)) == 64  # of three, two look the same
    assert len(test) == len(set(test)) == 16
    assert not set(map(normalise, train)) & set(map(normalise, test))


def test_a_row_said_to_be_a_test_row_is_one(tmp_path: Path) -> None:
    rows = [{"query": f"q{number}", "candidates": ["a", "b"], "positive": "a", "split": "train"} for number in range(5)]
    rows.append(rows[0] | {"split": "test"})
    prepare(PrepareOptions(write_jsonl(tmp_path / "rows.jsonl", rows), str(tmp_path / "out")))
    assert len(prompts_of(tmp_path / "out", "train")) == 4
    assert ["q0" in prompt for prompt in prompts_of(tmp_path / "out", "test")] == [True]


def test_rows_of_the_layout_that_stand_there_twice_or_leak_are_counted(tmp_path: Path) -> None:
    prepare(PrepareOptions("toy", str(tmp_path), size=10, tasks=["Rec-Movie"]))
    bench = tmp_path / "bench"
    tables = {split: pq.read_table(bench / "direct" / f"{split}.parquet") for split in ("train", "test")}
    pq.write_table(
        pa.concat_tables([tables["train"], tables["train"], tables["test"]]), bench / "direct" / "train.parquet"
    )
    (bench / "manifest.json").unlink()
    prepare(PrepareOptions(str(bench), str(tmp_path / "out")))
    card = (tmp_path / "out" / "direct_ranking" / "README.md").read_text()
    assert "| Rec-Movie | noted | rows that stand there twice | 10 |" in card
    leaked = tables["test"].num_rows
    assert f"| Rec-Movie | noted | training rows whose request is in the test file too | {leaked} |" in card


def test_the_order_dealt_does_not_hang_on_how_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{place}" for place in range(8)]
    rows = [{"query": f"q{number}", "candidates": names, "positive": "n0"} for number in range(6)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate((path, "rows.jsonl", "./rows.jsonl")):
        prepare(PrepareOptions(name, str(tmp_path / str(number)), shuffle=True))
    assert (
        prompts_of(tmp_path / "0", "train")
        == prompts_of(tmp_path / "1", "train")
        == prompts_of(tmp_path / "2", "train")
    )


def test_names_that_rich_or_markdown_could_read_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "[red]x" / "[" / "x]"
    prepare(PrepareOptions(PLANTS, str(output)))
    assert "[red]x" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--seed", "x"], "error: Invalid value for '--seed'"),
        (["prepare", "--sead", "1"], "error: No such option: --sead"),
        (["prepar"], "error: No such command 'prepar'"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["r1ranker", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test runner's own stay
    with pytest.raises(SystemExit) as error:
        main()
    said = capsys.readouterr().err
    assert error.value.code == 2
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_names_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"--output: found '.*caf\\udce9'; a name in UTF-8"):
        prepare(PrepareOptions("toy", str(tmp_path / odd)))
