"""Properties of files with text of users in them: training parquet, one's own data, the report."""

from __future__ import annotations

import atexit
import csv
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import assume, given
from hypothesis import strategies as st

from r1ranker.data.files.parquet import (
    example_to_row,
    read_training_rows,
    reword_row,
    row_format,
    row_mode,
    row_to_example,
    training_schema,
    write_rows,
)
from r1ranker.data.files.tally import Tally
from r1ranker.data.files.text_rows import MISSING
from r1ranker.data.prompt_store import tokenised_row
from r1ranker.data.sources.user_files import read_user_file
from r1ranker.errors import UserError
from r1ranker.report import page
from r1ranker.report.load import load_inputs
from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.custom import default_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import canonical, sanitise

from .hostile import clean, examples, rarely, text
from .markup import Markup
from .words import formats, modes


@cache
def _directory() -> Path:
    made = tempfile.mkdtemp(prefix="r1ranker-fuzz-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


@given(st.lists(examples(rarely(clean, text)), min_size=1, max_size=4), modes, formats)
def training_parquet(found: list[RankingExample | None], mode: Any, form: Any) -> None:
    """Rows come back from parquet as they went in, or are refused in a line; so do the examples they were made from."""
    known = [one for one in found if one is not None]
    assume(known)
    rows = [example_to_row(one, mode, "train", place, form) for place, one in enumerate(known)]
    path = str(_directory() / "rows.parquet")
    try:
        write_rows(rows, path, training_schema(graded=True))
    except UserError:
        assert any(_is_half(part) for one in known for part in (*one.candidates, one.positive))
        return
    back = list(read_training_rows([path]))
    assert len(back) == len(rows)
    for row, was, example in zip(back, rows, known, strict=True):
        row["reward_model"]["ground_truth"]["grades"] = row["reward_model"]["ground_truth"]["grades"] or []
        was["reward_model"]["ground_truth"].setdefault("grades", [])
        assert row == was
        assert (row_mode(row), row_format(row)) == (mode, form)
        again = row_to_example(row)
        assert (again.candidates, again.positive, again.grades) == (
            example.candidates,
            example.positive,
            example.grades,
        )
        assert reword_row(row, form)["prompt"] == row["prompt"] or again.problem
        held = json.loads(tokenised_row(row, [1], form)["row"])
        assert held["ground_truth"] == row["reward_model"]["ground_truth"]


def _is_half(part: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in part)


@st.composite
def user_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of one's own data that keep the rules, of hostile texts."""
    named = st.lists(clean, min_size=2, max_size=5, unique_by=canonical).filter(lambda names: all(map(sanitise, names)))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        names = draw(named)
        row: dict[str, Any] = {
            "query": draw(clean.filter(sanitise)),
            "candidates": names,
            "positive": draw(st.sampled_from(names)),
        }
        if draw(st.booleans()):
            row["texts"] = [draw(clean) for _ in names]
        if draw(st.booleans()):
            row["id"] = draw(clean)
        rows.append(row)
    return rows


def _forget() -> None:
    TASKS["Own"] = default_task("Own", by_history=False)


def _read(path: Path) -> list[Any] | None:
    """What is read of a file; None where it is refused."""
    with patch("sys.stderr", io.StringIO()):  # notes on what was put right
        try:
            return list(read_user_file(str(path), None, False, 1, Tally()))
        except UserError:
            return None


@given(user_rows(), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]))
def own_files(rows: list[dict[str, Any]], suffix: str) -> None:
    """Rows of hostile texts are read as they were written, whatever the kind of file, or refused in a line."""
    _forget()
    path = _directory() / f"own{suffix}"
    if suffix == ".parquet":
        names = {key for row in rows for key in row}
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in names}), path)
    elif suffix in (".csv", ".tsv"):
        names = list(dict.fromkeys(key for row in rows for key in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, delimiter="," if suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
                )
    else:
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows), encoding="utf-8"
        )
    found = _read(path)
    if found is None:
        # a NUL cannot stand in a text file, nor a carriage return alone in a table, where words for nothing mean it
        assert suffix != ".parquet"
        says_nothing = suffix in (".csv", ".tsv") and any(row["query"].strip().lower() in MISSING for row in rows)
        assert says_nothing or any(mark in json.dumps(rows, ensure_ascii=False) for mark in ("\0", "\\u0000", "\\r"))
        return
    assert [one.example.candidates for one in found] == [tuple(row["candidates"]) for row in rows]
    if suffix in (".csv", ".tsv"):  # line ends within a field are the file's own
        return
    assert [one.example.query for one in found] == [row["query"] for row in rows]
    assert [one.example.texts for one in found] == [tuple(row.get("texts") or ()) for row in rows]


FINE = json.dumps({"query": "a", "candidates": ["b", "c|d"], "positive": "b", "id": "1"})
TABLE = 'query,candidates,positive,labels\na,b|c,b,\nd,"[""e"", ""f""]",e,1|0\n'


@given(
    st.sampled_from([FINE + "\n", TABLE, TABLE.replace(",", "\t")]), st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz"]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4), st.binary(max_size=6) | clean.map(str.encode)), max_size=4),
)  # fmt: skip
def broken_files(content: str, suffix: str, changes: list[tuple[int, int, bytes]]) -> None:
    """Whatever bytes a file holds, it is read or refused in a line."""
    _forget()
    raw = content.encode()
    for place, gone, put in changes:
        raw = raw[:place] + put + raw[place + gone :]
    path = _directory() / f"broken{suffix}"
    path.write_bytes(raw)
    for one in _read(path) or []:
        one.example.validate()


@cache
def _allowed() -> set[tuple[str, tuple[str, ...]]]:
    """Elements with their attributes of pages about harmless texts."""
    return {element for shape in range(4) for element in _page(_report_on(["words", "more words"], shape)).elements}


def _report_on(words: list[str], shape: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result file's content and a run's lines in which every text is one of `words`."""

    def word(place: int) -> str:
        return words[place % len(words)]

    pool = [f"{word(place)} {place}" for place in range(3)]
    ranked: dict[str, Any] = {
        "ranking": pool, "positive": pool[1], "query": word(1), "history": [word(2)], "candidates": pool[::-1], "thoughts": [word(3), word(4)],
    }  # fmt: skip
    if shape % 2:
        ranked["out_in_round"] = {pool[2]: 1, pool[1]: 2}
    mean = {"mean": 0.5, "low": 0.4, "high": 0.6}
    task = {
        "queries": 1, "metrics": {"mrr": mean, word(0): mean}, "strict": {"mrr": mean}, "baselines": {word(1): {"mrr": mean}}, "calls_per_query": 2.0,
        "rankings": [ranked] * 2,
    }  # fmt: skip
    content = {
        "model": word(5), "data": word(6), "settings": {"strategy": "iterative" if shape > 1 else word(0), word(7): word(8)},
        "tasks": {f"{word(9)} task": task, "Rec-Movie": task},
    }  # fmt: skip
    line = {
        f"val-core/{word(10)}/reward/mean": 0.5,
        f"reward/{word(11)}/mean": 0.5,
        f"timing_s/{word(0)}": 1.0,
        "timing_s/step": 2.0,
    }
    return content, [{"step": step, **line} for step in (1, 2)]


def _page(made: tuple[dict[str, Any], list[dict[str, Any]]]) -> Markup:
    content, lines = made
    directory = _directory() / "report"
    directory.mkdir(exist_ok=True)
    (directory / "result.json").write_text(json.dumps(content))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with patch.object(page, "_plotly", lambda: "/* plotly.js */"):
        written = page.render(page.build(*load_inputs([str(directory)])))
    return Markup(written.encode("utf-8", "replace").decode())


@given(st.lists(text, min_size=1, max_size=12), st.integers(0, 3))
def reports(words: list[str], shape: int) -> None:
    """Text of results and runs makes no element, no attribute and no script of a report."""
    found = _page(_report_on(words, shape))
    assert not set(found.elements) - _allowed()
    assert len(found.scripts) == 3
    figures, _, own = found.scripts
    assert "<" not in figures
    json.loads(figures)
    assert own == _page_script()


@cache
def _page_script() -> str:
    return _page(_report_on(["words"], 0)).scripts[2]
