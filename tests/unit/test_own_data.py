"""One's own data: files of each kind, TREC, a task's own words, graded labels on their whole way."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from r1ranker.data.files.parquet import read_training_rows, reword_row, row_to_example
from r1ranker.data.files.tally import Tally, TaskTally
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.trec import TrecFiles, read_trec
from r1ranker.data.sources.user_files import read_user_file
from r1ranker.errors import UserError
from r1ranker.rewards import compute_score, get_reward
from r1ranker.rewards.parts import iterative_task_score
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.custom import read_task
from r1ranker.tasks.parsing import parse_problem
from r1ranker.tasks.prompts import AnswerFormat, render_problem

ROOT = Path(__file__).parents[2]
OWN = ROOT / "examples" / "own_data"
ROWS = [
    {
        "query": f"q{number}",
        "candidates": ["a, b", "c|d", 'e "f"'],
        "labels": [0, 2, 1 + number % 2],
        "id": f"i{number}",
    }
    for number in range(6)
]


def examples_of(path: Path, task: str = "Mine") -> list:
    return list(read_user_file(str(path), task, False, 1, Tally()))


def test_all_kinds_of_files_give_the_same_examples(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(text)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(text)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [delimiter.join(ROWS[0])]
        for row in ROWS:
            cells = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
            lines.append(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in cells))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    expected = examples_of(tmp_path / "rows.jsonl")
    assert [one.example.positive for one in expected] == ["c|d"] * 6
    assert [one.key for one in expected] == [f"i{number}" for number in range(6)]
    for name in ("rows.jsonl.gz", "bom.jsonl", "rows.parquet", "rows.csv", "rows.tsv"):
        assert examples_of(tmp_path / name) == expected, name


def test_rows_that_cannot_be_ranked_are_counted_and_a_shared_best_is_noted(tmp_path: Path) -> None:
    rows = [
        {"query": "none", "candidates": ["a", "b"], "labels": [0, 0]},
        {"query": "one", "candidates": ["a"], "labels": [1]},
        {"query": "shared", "candidates": ["a", "b", "c"], "labels": [0, 3, 3]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tally = Tally()
    (kept,) = read_user_file(str(tmp_path / "rows.jsonl"), "Mine", False, 1, tally)
    assert kept.example.positive == "b"
    counts = tally.for_task("Mine")
    assert counts.left_out == {"rows whose labels are all 0": 1, "rows with fewer than two candidates": 1}
    assert counts.noted["rows whose highest label is shared"] == 1


def test_sides_follow_the_column_split_and_ids_keep_requests_together(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{number}", "candidates": ["a", "b", "c"], "positive": "a", "id": f"u{number % 10}"}
        for number in range(60)
    ]
    rows += [{"query": "q0", "candidates": ["a", "b", "d"], "positive": "d", "id": "another"}]  # the same request
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PrepareOptions(str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), tasks=["Mine"], test_share=0.3))
    ids = {row["query"]: row["id"] for row in rows[:60]}
    sides = [
        {
            ids[e.request.splitlines()[1]]
            for _, e in read_ranking_bench(str(tmp_path / "out" / "bench"), "direct", split)
        }
        for split in ("train", "test")
    ]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (7, 3)
    named = [row | {"split": "test" if number % 3 == 0 else "train"} for number, row in enumerate(rows)]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    with pytest.raises(UserError, match=r"no direct train row is left.*test side"):  # each id has a test row
        prepare(PrepareOptions(str(tmp_path / "named.jsonl"), str(tmp_path / "other"), tasks=["Mine"]))
    assert not (tmp_path / "other").exists()


TREC = {
    "queries.tsv": "1\tfirst\n2\tsecond\n3\tthird\n4\tfourth\n",
    "collection.tsv": "d1\tone\nd2\ttwo\nd3\tthree\nd4\tTWO\nd9\tnine\n",
    "run.txt": "1 Q0 d1 1 3.0 t\n1 Q0 d2 2 9.0 t\n1 Q0 d4 3 1.0 t\n1 Q0 d3 4 0.5 t\n1 Q0 d7 5 0.4 t\n"
    "2 Q0 d1 1 2 t\n2 Q0 d3 2 1 t\n3 Q0 d1 1 2 t\n3 Q0 d2 2 1 t\n5 Q0 d1 1 1 t\n",
    "qrels.txt": "1 0 d1 1\n1 0 d3 3\n1 0 d2 -2\n2 0 d9 1\n",
}


def trec(directory: Path) -> TrecFiles:
    for name, text in TREC.items():
        (directory / name).write_text(text)
    return TrecFiles(*(str(directory / name) for name in TREC))


def test_trec_pools_are_the_run_in_its_order_with_the_grades_of_the_qrels(tmp_path: Path) -> None:
    tally = TaskTally()
    (one,) = read_trec(trec(tmp_path), "Mine", 3, False, 1, tally)
    example = one.example
    assert example.texts == ("two", "one", "three")  # by score; d4 says the same as d2, d7 is not in the collection
    assert example.candidates == ("passage 0", "passage 1", "passage 2")
    assert example.grades == (0.0, 1.0, 3.0)
    assert example.positive == "passage 2"
    assert tally.left_out == {
        "documents with the text of another in the pool": 1,
        "queries without a relevant document among the candidates": 1,
        "queries without judgments": 1,
        "queries without a text": 1,
    }
    (shuffled,) = read_trec(trec(tmp_path), "Mine", 3, True, 3, TaskTally())
    graded = dict(zip(shuffled.example.texts, shuffled.example.grades, strict=True))
    assert graded == {"one": 1.0, "two": 0.0, "three": 3.0}


def test_a_collection_may_be_json_lines(tmp_path: Path) -> None:
    files = trec(tmp_path)
    lines = [line.split("\t") for line in TREC["collection.tsv"].splitlines()]
    path = tmp_path / "collection.jsonl"
    path.write_text("".join(json.dumps({"_id": name, "title": "T", "text": text}) + "\n" for name, text in lines))
    (one,) = read_trec(TrecFiles(files.queries, str(path), files.run, files.qrels), "Mine", 3, False, 1, TaskTally())
    assert one.example.texts == ("T two", "T one", "T three")


def test_own_words_are_undone_and_put_on_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(PrepareOptions(str(OWN / "support.jsonl"), str(output), template=str(OWN / "support.yaml")))
    for mode in ("direct", "iterative"):
        for row in read_training_rows([str(output / f"{mode}_ranking" / "train.parquet")]):
            example = row_to_example(row)
            assert example.request.startswith("A customer writes:\n")
            assert example.grades == tuple(row["reward_model"]["ground_truth"]["grades"])
            other = reword_row(row, AnswerFormat("label", think=False))
            assert "\n[1] " in other["prompt"][1]["content"]
            assert reword_row(other, AnswerFormat()) == row
    smaller = row_to_example(row).with_pool(row_to_example(row).candidates[:2])
    assert "how well it solves the customer's problem" in render_problem(smaller, "iterative")


@given(
    st.text(min_size=1, max_size=60).filter(lambda text: text.strip() != ""),
    st.lists(st.text(min_size=1, max_size=20), max_size=3),
)
def test_a_request_in_own_words_comes_back_from_its_problem(query: str, history: list[str]) -> None:
    from r1ranker.tasks.custom import default_task, ensure_registered
    from r1ranker.tasks.example import RankingExample

    task = default_task("Round-Trip", by_history=False)
    ensure_registered(task)
    first = RankingExample("Round-Trip", ("a", "b"), "a", query=query)
    problem = render_problem(first, "direct")
    parsed = parse_problem("Round-Trip", problem, ("a", "b"))
    assert render_problem(parsed, "direct") == problem
    assert "<think>" not in problem


def test_a_task_of_ones_own_is_refused_where_it_is_known_by_other_words(tmp_path: Path) -> None:
    for number, goal in enumerate(("one thing", "another")):
        (tmp_path / f"{number}.yaml").write_text(f"name: Twice\ngoal: {goal}\nrequest: '{{{{ query }}}}'\n")
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows)
    prepare(PrepareOptions(str(tmp_path / "rows.jsonl"), str(tmp_path / "a"), template=str(tmp_path / "0.yaml")))
    assert get_task("Twice").goal == "one thing"
    with pytest.raises(UserError, match="'Twice' is known by other words"):
        prepare(PrepareOptions(str(tmp_path / "rows.jsonl"), str(tmp_path / "b"), template=str(tmp_path / "1.yaml")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("- 1", "found list"),
        ("nmae: X", r"unknown key 'nmae' \(did you mean 'name'\?\)"),
        ("name: X\ngoal: g", "no key 'request'"),
        ("name: a b\ngoal: g\nrequest: r", "name: found 'a b'"),
        ("name: X\ngoal: g\nrequest: '{{ qurey }}'", "request: 'qurey' is undefined"),
        ("name: X\ngoal: g\nrequest: '{% for %}'", "request: .*jinja2"),
        ("name: X\ngoal: g\nrequest: '{{ query.__class__.__mro__ }}'", "request: .*unsafe"),
        ("name: X\ngoal: g\nrequest: r\ncutoffs: [0]", "cutoffs"),
        ("name: X\ngoal: 3\nrequest: r", "goal: found 3"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(UserError, match=f"task.yaml: {message}"):
        read_task(str(tmp_path / "task.yaml"))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(any), st.randoms(use_true_random=False))
def test_the_reward_of_a_graded_ranking_is_scikit_learns_ndcg(grades: list[int], rng) -> None:  # type: ignore[no-untyped-def]
    names = [f"name {place}" for place in range(len(grades))]
    order = rng.sample(names, len(names))
    truth = {"candidate_text": names, "gt": names[grades.index(max(grades))], "grades": np.array(grades, dtype=float)}
    response = "t</think>\n<answer>" + "\n".join(order) + "</answer>"
    scores = [[-order.index(name) for name in names]]
    exponential = ndcg_score([[2.0**grade - 1 for grade in grades]], scores, k=20)
    assert compute_score("direct_ranking", response, truth)["score"] == pytest.approx(exponential, abs=1e-9)
    linear = get_reward("compute_score_linear")("direct_ranking", response, truth)["score"]
    assert linear == pytest.approx(ndcg_score([grades], scores, k=20), abs=1e-9)


def test_an_elimination_earns_the_more_the_lower_the_grade() -> None:
    truth = {"candidate_text": ["a1", "b2", "c3"], "gt": "a1", "grades": [4, 1, 0]}
    rewards = [
        compute_score("iterative_ranking", f"t</think>\n<answer>{name}</answer>", truth)["task"]
        for name in ("a1", "b2", "c3", "x")
    ]
    assert rewards == [0.0, 0.75, 1.0, -0.5]
    assert [iterative_task_score([place], 0, [4, 3, 2]) for place in range(3)] == [0.5, 0.75, 1.0], "little to lose"
    equal = truth | {"grades": [2, 2, 2]}
    assert compute_score("iterative_ranking", "t</think>\n<answer>b2</answer>", equal)["task"] == 1.0
    binary = {"candidate_text": ["a1", "b2", "c3"], "gt": "a1"}
    for name in ("a1", "b2", "c3", "x"):
        response = f"t</think>\n<answer>{name}</answer>"
        graded = compute_score("iterative_ranking", response, binary | {"grades": [1, 0, 0]})
        assert graded == compute_score("iterative_ranking", response, binary)
