"""One's own tables: columns by name in any order and case, and one line on what pandas or Python made of a cell."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.data.files.parquet import example_to_row, read_training_rows, write_rows
from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.ranking_bench import bench_schema, example_to_bench_row, read_ranking_bench
from r1ranker.data.sources.routing import LLMS, read_routing
from r1ranker.data.sources.user_files import read_requests, read_user_file
from r1ranker.errors import UserError
from r1ranker.tasks.example import RankingExample

ROW = {"query": "q", "candidates": ["a", "b"], "labels": [0, 1], "id": "u", "split": "test"}


def write(directory: Path, suffix: str, rows: list[dict[str, Any]]) -> str:
    """A file of the rows, as pandas writes it; lists are JSON in CSV."""
    path = directory / f"rows{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = frame.map(lambda cell: json.dumps(cell) if isinstance(cell, list) else cell)
        cells.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    return str(path)


def read(path: str) -> list[tuple]:
    return [(one.key, one.split, one.example) for one in read_user_file(path, "Mine", False, 1, Tally())]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_columns_go_by_their_names_in_any_order_and_case(tmp_path: Path, suffix: str) -> None:
    expected = [("u", "test", RankingExample("Mine", ("a", "b"), "b", query="q", grades=(0.0, 1.0)))]
    assert read(write(tmp_path, suffix, [ROW])) == expected
    turned = {key.upper(): ROW[key] for key in reversed(ROW)}
    assert read(write(tmp_path, suffix, [turned])) == expected
    spaced = {f" {key.title()} ": value for key, value in ROW.items()}
    assert read(write(tmp_path, suffix, [{"Unnamed: 0": 5, "score": 0.5, **spaced}])) == expected


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match="column 'query' stands there twice"):
        read(write(tmp_path, suffix, [ROW | {"Query": "r"}]))


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q", "candidates": ["a", "b"], "positive": "a", "query": "r"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl: line 1: not JSON \(the key 'query' stands there twice"):
        read(str(path))


@pytest.mark.parametrize("printed", [list, np.array, tuple, lambda names: dict.fromkeys(names, 1), pd.array, pd.Index])
@pytest.mark.parametrize("column", ["candidates", "history", "texts"])
def test_a_list_as_python_prints_it_is_named_with_what_is_wanted(tmp_path: Path, printed: Any, column: str) -> None:
    path = tmp_path / "rows.csv"
    cells = {"query": "q", "candidates": "a|b", "positive": "a"} | {column: str(printed(["a", "b's"]))}
    if column == "history":
        del cells["query"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    wanted = rf'rows.csv: line 2: {column}: found .*, a list as Python prints it; JSON such as \["a", "b"\] is wanted'
    with pytest.raises(UserError, match=wanted):
        read(str(path))


@pytest.mark.parametrize(
    "printed",
    [np.array([1.0, 0.0]), np.array([1, 0]), (1, 0), (1,), {1.0, 0.0}, [np.float64(1), np.float64(0)], [1.0, None], [True, False],
     np.array([1e-30, 1.5]), np.arange(40.0)],
)  # fmt: skip
def test_labels_as_python_prints_them_are_named_with_what_is_wanted(tmp_path: Path, printed: Any) -> None:
    path = write(tmp_path, ".csv", [{"query": "q", "candidates": "a|b", "labels": str(printed)}])
    wanted = r"line 2: labels: found .*, a list as Python prints it; JSON such as \[1, 0\] is wanted"
    with pytest.raises(UserError, match=wanted):
        read(path)


def test_labels_that_are_none_are_not_said_to_be_printed(tmp_path: Path) -> None:
    for cell in ("[1, 0", "[1, 0,]", "(1|0)", "[a b]"):
        with pytest.raises(UserError, match="line 2: labels: ") as caught:
            read(write(tmp_path, ".csv", [{"query": "q", "candidates": "a|b", "labels": cell}]))
        assert "as Python prints it" not in str(caught.value)


@pytest.mark.parametrize("missing", ["NaN", "nan", "None", "null", "NULL", "<NA>", " nan ", ""])
def test_a_missing_cell_of_csv_is_missing_however_pandas_writes_it(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "rows.csv"
    rows = [
        {"query": "q", "candidates": "a|b", "positive": "a"},
        {"query": "r", "candidates": "a|b", "labels": "0|1", "task": "Yours", "id": "u", "split": "test"},
        {"history": "x|y", "candidates": "a|b", "texts": "s|t", "positive": "b", "task": "Past"},
    ]
    pd.DataFrame(rows).to_csv(path, index=False, na_rep=missing)
    assert read(str(path)) == [
        ("q", None, RankingExample("Mine", ("a", "b"), "a", query="q")),
        ("u", "test", RankingExample("Yours", ("a", "b"), "b", query="r", grades=(0.0, 1.0))),
        ("x\ny", None, RankingExample("Past", ("a", "b"), "b", history=("x", "y"), texts=("s", "t"))),
    ]
    assert [name for name, _ in read_requests(str(path), "Mine")] == [None, "u", None]
    pd.DataFrame([{"query": None, "candidates": "a|b", "positive": "a"}]).to_csv(path, index=False, na_rep=missing)
    with pytest.raises(UserError, match=r"line 2: found neither of query and history"):
        read(str(path))


def test_a_candidate_may_be_called_none(tmp_path: Path) -> None:
    rows = [{"query": "q", "candidates": "None|b", "positive": "None"}]
    assert [one[2].positive for one in read(write(tmp_path, ".csv", rows))] == ["None"]


def test_other_cells_in_brackets_are_texts(tmp_path: Path) -> None:
    for cell in ("(500) Days of Summer|[REC]", "{x}|(a)", "[REC]|[REC 2]", "(1, 2)|('a')"):
        names = cell.split("|")
        rows = [{"query": "q", "candidates": cell, "positive": names[1]}]
        assert [one[2].candidates for one in read(write(tmp_path, ".csv", rows))] == [tuple(names)]


@pytest.mark.parametrize(
    ("suffix", "rows", "message"),
    [
        (".csv", {"candidates": ["1|2", "3|4"], "positive": [1, None], "labels": [None, "0|1"]}, r"line 2: positive: found '1.0', but candidates holds '1'; the same text is wanted .pandas writes 1 as 1.0 where"),
        (".csv", {"candidates": ["1.0|2.0"], "positive": ["1"]}, "line 2: positive: found '1', but candidates holds '1.0'"),
        (".csv", {"candidates": ["[1, 2]"], "positive": ["1"]}, r'line 2: candidates: found \[1, 2\]; a list of texts is wanted, such as \["a", "b"\]'),
        (".csv", {"candidates": ["a|b"], "labels": ["[1.0, nan]"]}, r"line 2: labels: found '\[1.0, nan\]', a list as Python prints it; JSON such as \[1, 0\] is wanted"),
        (".csv", {"candidates": ["a|b"], "labels": [np.array([1.0, 0.0])]}, r"line 2: labels: found '\[1. 0.\]', a list as Python prints it; JSON such as \[1, 0\] is wanted"),
        (".parquet", {"candidates": [["1", "2"]], "positive": ["1.0"]}, "row 0: positive: found '1.0', but candidates holds '1'"),
        (".parquet", {"candidates": [[1, 2]], "positive": ["1"]}, r'row 0: candidates: found \[1, 2\]; a list of texts is wanted, such as'),
        (".parquet", {"candidates": ["['a', 'b']"], "positive": ["a"]}, "row 0: candidates: found .*; a list of texts is wanted, such as"),
        (".jsonl", {"candidates": [["a", "b"]], "positive": ["a"], "id": [0.5]}, "line 1: id: found 0.5; a text or a whole number is wanted"),
    ],
)  # fmt: skip
def test_what_pandas_made_of_a_cell_is_named(tmp_path: Path, suffix: str, rows: dict[str, list], message: str) -> None:
    count = len(rows["candidates"])
    records = pd.DataFrame({"query": [f"q{number}" for number in range(count)], **rows}).to_dict("records")
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, suffix, records))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_ids_that_pandas_made_numbers_of_are_whole_again_and_nan_is_none(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"query": f"q{place}", "candidates": ["a", "b"], "positive": "a", "id": one}
        for place, one in enumerate((123.0, float("nan")))
    ]
    path = write(tmp_path, suffix, rows)
    assert [key for key, *_ in read(path)] == ["123", "q1"]
    assert [name for name, _ in read_requests(path, "Mine")] == [123, None]


EXAMPLES = [RankingExample("Passage-5", ("passage 0", "passage 1"), "passage 1", query=f"q{n}", texts=("x", f"y{n}")) for n in range(3)]  # fmt: skip


def as_category(field: pa.Field) -> pa.Field:
    """The field with every text in it as pandas' categories are stored, also within lists and records."""

    def changed(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_string(kind):
            return pa.dictionary(pa.int32(), kind)
        return pa.struct([as_category(one) for one in kind]) if pa.types.is_struct(kind) else kind

    return field.with_type(changed(field.type))


def test_training_rows_with_categories_of_pandas_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_rows([example_to_row(one, "direct", "train", place) for place, one in enumerate(EXAMPLES)], str(path))
    expected = list(read_training_rows([str(path)]))
    frame = pd.read_parquet(path)
    frame[["data_source", "ability"]] = frame[["data_source", "ability"]].astype("category")
    frame.to_parquet(path)
    assert pa.types.is_dictionary(pq.read_schema(path).field("data_source").type)
    assert list(read_training_rows([str(path)])) == expected


def test_the_layout_with_categories_of_pandas_is_read(tmp_path: Path) -> None:
    file = tmp_path / "direct" / "test.parquet"
    file.parent.mkdir()
    rows = [example_to_bench_row(one, "direct") | {"subject": f"s{place}"} for place, one in enumerate(EXAMPLES)]
    table = pa.Table.from_pylist(rows, schema=bench_schema(subjects=True))
    pq.write_table(table, file)
    expected = list(read_ranking_bench(str(tmp_path), "direct", "test"))
    assert [one.query for _, one in expected] == ["q0", "q1", "q2"]
    table.to_pandas().astype(dict.fromkeys(("problem", "gt", "task_name", "subject"), "category")).to_parquet(file)
    assert pa.types.is_dictionary(pq.read_schema(file).field("gt").type)
    assert list(read_ranking_bench(str(tmp_path), "direct", "test")) == expected
    categories = table.cast(pa.schema([as_category(field) for field in table.schema]))
    pq.write_table(categories, file)
    assert list(read_ranking_bench(str(tmp_path), "direct", "test")) == expected
    pq.write_table(table.set_column(1, "candidates", table["candidates"].cast(pa.list_(pa.string(), 2))), file)
    assert list(read_ranking_bench(str(tmp_path), "direct", "test")) == expected


def test_ones_own_parquet_with_categories_is_read(tmp_path: Path) -> None:
    expected = read(write(tmp_path, ".parquet", [ROW, ROW | {"id": "v"}]))
    frame = pd.DataFrame([ROW, ROW | {"id": "v"}]).astype(dict.fromkeys(("query", "id", "split"), "category"))
    frame.to_parquet(tmp_path / "rows.parquet")
    assert read(str(tmp_path / "rows.parquet")) == expected


@pytest.mark.parametrize(
    "name", ["model", "llm_name", "LLMs", "model name", "Model", "ModelName", "llmname", "name", "Names"]
)
def test_a_router_table_whose_llms_go_by_another_name_is_not_read_by_position(tmp_path: Path, name: str) -> None:
    rows = [("quiz", "q", llm, float(place == 0), 0.1) for place, llm in enumerate(reversed(LLMS))]
    path = str(tmp_path / "router_data.csv")
    pd.DataFrame(rows, columns=["task_id", "query", name, "effect", "cost"]).to_csv(path, index=False)
    with pytest.raises(
        UserError, match=f"router_data.csv: line 1: no column 'llm', but '{name.lower()}'; the names of"
    ):
        list(read_routing(path, None, 1, Tally()))


@pytest.mark.parametrize("name", ["engine", "answered_by", "provider"])
def test_a_router_table_whose_texts_come_again_with_every_query_is_not_read_by_position(
    tmp_path: Path, name: str
) -> None:
    rows = [("quiz", query, llm, 1.0, 0.1) for query in ("q", "q", "r") for llm in sorted(LLMS, reverse=query == "r")]
    path = str(tmp_path / "router_data.csv")
    pd.DataFrame(rows, columns=["task_id", "query", name, "effect", "cost"]).to_csv(path, index=False)
    with pytest.raises(UserError, match=f"router_data.csv: line 1: no column 'llm', but '{name}'; the names of"):
        list(read_routing(path, None, 1, Tally()))


def test_other_columns_of_a_router_table_are_no_names(tmp_path: Path) -> None:
    rows = [
        ("quiz", query, place, f"{query}{place}", f"answer {place % 9}", 1.0, 0.1)
        for query in ("q", "q", "r")
        for place in range(len(LLMS))
    ]
    path = str(tmp_path / "router_data.csv")
    columns = ["task_id", "query", "place", "response", "metric", "effect", "cost"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    assert len(list(read_routing(path, None, 1, Tally()))) == 6


def test_a_router_table_is_read_by_name_in_any_order_and_case(tmp_path: Path) -> None:
    rows = [(0.1, llm, "q", "quiz", float(place == 0)) for place, llm in enumerate(reversed(LLMS))]
    path = str(tmp_path / "router_data.csv")
    pd.DataFrame(rows, columns=["Cost", "LLM", "Query", "task_id", "EFFECT"]).to_csv(path)
    examples = [one for _, one in read_routing(path, None, 1, Tally())]
    assert {one.positive for one in examples} == {LLMS[-1]}
    pd.DataFrame(rows, columns=["cost", "llm", "query", "task_id", "effect"]).assign(LLM="x").to_csv(path)
    with pytest.raises(UserError, match="column 'llm' stands there twice"):
        list(read_routing(path, None, 1, Tally()))
