"""Runs in and out: ids, order and ties survive, what is cut off is gone on with, and figures are ir-measures' own."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from transformers import AutoTokenizer

from r1ranker.data.passages import cut_text
from r1ranker.errors import UserError
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import RankerSettings
from r1ranker.reranking.measure import check_judged, measure
from r1ranker.reranking.outputs import Ranked, check_ids, format_of, write_lines
from r1ranker.reranking.rank import JOURNAL, open_journal, rank_requests
from r1ranker.reranking.requests import RankRequest, RunFiles, requests_of_run
from r1ranker.tasks.example import RankingExample

DL19 = Path(__file__).parents[2].parent / "shared" / "data" / "trec" / "dl19-bm25-100"


Call = Callable[..., tuple[int, str, str]]


class Identity:
    """Leaves candidates in their order, and fails after some."""

    def __init__(self, fails_after: int | None = None, turned: bool = False) -> None:
        self.fails_after, self.turned, self.asked = fails_after, turned, 0

    def rank_stream(self, examples: Iterable[RankingExample]) -> Iterator[tuple[int, RankingResult]]:
        for place, example in enumerate(examples):
            if self.asked == self.fails_after:
                raise KeyboardInterrupt
            self.asked += 1
            order = example.candidates[::-1] if self.turned else example.candidates
            yield place, RankingResult(order, calls=1, depth=1, prompt_tokens=10)


def ranked_by(model: Any, requests: list[RankRequest]) -> list[Ranked]:
    return rank_requests(model, requests, None, "model")[0]


def collection_of(directory: Path) -> tuple[RunFiles, list[tuple[str, str, float]]]:
    """Two queries of unequal depth, with ties and scores below 0, one without a text, and documents without one."""
    lines = [
        ("q1", "d3", -1.5), ("q1", "d1", -0.5), ("q1", "d2", -1.5), ("q1", "gone", -2.0), ("q1", "d4", -3.0),
        ("q 2".replace(" ", ""), "d4", 7.0), ("mute", "d1", 2.0), ("mute", "d2", 1.0), ("q3", "d2", 0.0),
    ]  # fmt: skip
    run = "".join(
        f"{query} Q0 {document} {rank} {score} bm25\n" for rank, (query, document, score) in enumerate(lines, 1)
    )
    with gzip.open(directory / "run.txt.gz", "wt") as file:
        file.write(run)
    (directory / "queries.tsv").write_text("q1\twho ?\nq2\twhere ?\nq3\twhy ?\n")
    texts = {"d1": "one", "d2": "two", "d3": "two", "d4": "four"}  # two of them alike
    (directory / "collection.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in texts.items()))
    files = RunFiles(*(str(directory / name) for name in ("run.txt.gz", "queries.tsv", "collection.tsv")))
    return files, lines


def test_the_run_comes_back_through_a_model_that_changes_nothing(tmp_path: Path) -> None:
    files, _ = collection_of(tmp_path)
    requests = requests_of_run(files, None, 100)
    written = "".join(write_lines(requests, ranked_by(Identity(), requests), "trec", "mine"))
    rows = [line.split() for line in written.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("q1", "d1"), ("q1", "d3"), ("q1", "d2"), ("q1", "d4"), ("q1", "gone"), ("q2", "d4"), ("mute", "d1"), ("mute", "d2"),
        ("q3", "d2"),
    ]  # fmt: skip
    assert {(row[1], row[5]) for row in rows} == {("Q0", "mine")}
    for query in ("q1", "q2", "mute", "q3"):
        scores = [float(row[4]) for row in rows if row[0] == query]
        assert scores == sorted(set(scores), reverse=True)
        assert [int(row[3]) for row in rows if row[0] == query] == list(range(1, len(scores) + 1))
    (tmp_path / "again.txt").write_text(written)
    again = requests_of_run(RunFiles(str(tmp_path / "again.txt"), files.queries, files.collection), None, 100)
    assert "".join(write_lines(again, ranked_by(Identity(), again), "trec", "mine")) == written


def test_what_is_beyond_the_depth_follows_in_its_order(tmp_path: Path) -> None:
    files, _ = collection_of(tmp_path)
    requests = requests_of_run(files, None, 2)
    assert [one.documents for one in requests] == [("d1", "d3"), ("d4",), (), ("d2",)]
    model = Identity(turned=True)
    ranked = ranked_by(model, requests)
    assert model.asked == 1  # of one candidate, or none, nothing is asked
    lines = [json.loads(line) for line in write_lines(requests, ranked, "json", "")]
    assert [line["ranking"] for line in lines] == [["d3", "d1", "d2", "gone", "d4"], ["d4"], ["d1", "d2"], ["d2"]]
    assert [line["indices"] for line in lines] == [[1, 0, 2, 3, 4], [0], [0, 1], [0]]


def test_a_table_has_what_a_request_and_its_ranking_say() -> None:
    example = RankingExample("Passage-9", ("a", "b, c"), query="q")
    request = RankRequest(7, example, example.candidates, ("z",))
    lines = list(write_lines([request], [Ranked((1, 0), (0.75, 0.25))], "csv", ""))
    assert lines == ["id,rank,candidate,score\n", '7,1,"b, c",0.75\n', "7,2,a,0.25\n", "7,3,z,\n"]
    assert [format_of(name) for name in ("x.csv", "x.TREC", "x.run", "x.txt", "x.jsonl", "x")] == [
        "csv", "trec", "trec", "trec", "json", "json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        (None, "d", "request 1: id: found ''; a TREC run wants ids without white space"),
        ("q 1", "d", "request 1: id: found 'q 1'"),
        ("q", "two words", "request 1: candidate: found 'two words'"),
    ],
)
def test_ids_that_a_run_cannot_hold_are_named(name: Any, document: str, message: str) -> None:
    request = RankRequest(name, RankingExample("Passage-9", (document,), query="q"), (document,))
    with pytest.raises(UserError, match=message):
        check_ids([request])
    twice = RankRequest("q", RankingExample("Passage-9", ("d",), query="q"), ("d",))
    with pytest.raises(UserError, match="request 2: id 'q' stands there twice"):
        check_ids([twice, twice])


def test_a_call_that_was_cut_off_goes_on_where_it_ended(tiny_model: str, tmp_path: Path) -> None:
    rng, output = random.Random(0), str(tmp_path / "out.trec")
    requests = [
        RankRequest(f"q{number}", RankingExample("Passage-9", tuple(f"passage {n}" for n in range(5)), query="q"), tuple(
            f"d{n}" for n in rng.sample(range(100), 5)
        ))
        for number in range(10)
    ]  # fmt: skip

    def open_it(settings: RankerSettings | None = None) -> Any:
        return open_journal(output, requests, tiny_model, settings or RankerSettings(), "hf auto")

    whole = ranked_by(Identity(turned=True), requests)
    with pytest.raises(KeyboardInterrupt), open_it() as kept:
        rank_requests(Identity(4, turned=True), requests, kept, "model")  # type: ignore[arg-type]
    with Path(output + JOURNAL).open("ab") as file:
        file.write(b'{"task": "", "row": 9, "rec')  # a line that was cut short
    rest = Identity(turned=True)
    with open_it() as kept:
        ranked, costs = rank_requests(rest, requests, kept, "model")  # type: ignore[arg-type]
    assert rest.asked == 6
    assert costs.queries == 10
    assert list(write_lines(requests, ranked, "trec", "t")) == list(write_lines(requests, whole, "trec", "t"))
    with open_it(RankerSettings(seed=1)) as kept:  # another way of asking takes nothing over
        assert kept.done == {}


def test_measures_are_those_that_ir_measures_finds_in_the_written_files(tmp_path: Path) -> None:
    rng = random.Random(2)
    documents = [f"d{n}" for n in range(40)]
    orders = {f"q{n}": rng.sample(documents, 25) for n in range(12)}
    grades = {
        query: {document: float(rng.choice([0, 0, 1, 2, 3])) for document in rng.sample(documents, 30)}
        for query in orders
    }
    grades["q3"] = dict.fromkeys(documents[:5], 0.0)  # nothing relevant
    del grades["q4"]  # not judged
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"{q} 0 {d} {int(g)}\n" for q, of in grades.items() for d, g in of.items()))
    requests = [
        RankRequest(
            query, RankingExample("Passage-9", tuple(f"passage {n}" for n in range(25)), query="q"), tuple(order)
        )
        for query, order in orders.items()
    ]
    judged = check_judged(str(qrels), requests)
    run = tmp_path / "x.trec"
    run.write_text("".join(write_lines(requests, ranked_by(Identity(), requests), "trec", "t")))
    found = measure(judged, orders)
    measures = [ir_measures.parse_measure(name) for name in judged.measures]
    theirs = ir_measures.calc_aggregate(
        measures, ir_measures.read_trec_qrels(str(qrels)), ir_measures.read_trec_run(str(run))
    )
    assert str(measures[0]) == "nDCG@10"
    for one, name in zip(measures, judged.measures, strict=True):
        assert len(found[name]) == 11
        assert sum(found[name].values()) / 11 == pytest.approx(theirs[one], abs=1e-9)


@pytest.mark.skipif(not DL19.is_dir(), reason="shared/data is not there")
def test_bm25_through_a_model_that_changes_nothing_has_its_published_figure() -> None:
    files = RunFiles(*(str(DL19 / name) for name in ("run.bm25.txt.gz", "queries.tsv", "collection.tsv.gz")))
    requests = requests_of_run(files, None, 100)
    assert len(requests) == 43
    assert {len(one.documents) for one in requests} == {100}
    judged = check_judged(str(DL19 / "qrels.txt"), requests)
    ranked = ranked_by(Identity(), requests)
    orders = {str(one.name): [one.documents[n] for n in r.order] for one, r in zip(requests, ranked, strict=True)}
    values = measure(judged, orders)["nDCG@10"]
    assert sum(values.values()) / 43 == pytest.approx(0.5058, abs=5e-5)


def test_passages_are_cut_between_words(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "Silent Harbour and the Golden Station, of which nobody knows"
    for most in range(1, 40):
        cut = cut_text(text, tokenizer, most)
        assert text.startswith(cut)
        whole = text[len(cut) : len(cut) + 1] in ("", " ")
        assert whole or " " not in cut
        assert len(tokenizer(cut, add_special_tokens=False)["input_ids"]) <= most
    assert cut_text("one", tokenizer, 100) == "one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "r"], "--run: --queries and --collection are wanted with it"),
        (["--qrels", "q"], "--qrels: found without --run"),
        (["--depth", "0"], "--depth: found 0; at least 1 is wanted"),
        (["--tag", "two words"], "--tag: found 'two words'"),
        (["--window", "1"], "--window: found 1; at least 2 is wanted"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    options: list[str], message: str, tiny_model: str, call: Call
) -> None:
    code, printed, error = call("rank", "--model", tiny_model, *options)
    assert (code, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_windows_rank_a_run_from_the_command_line(tiny_model: str, tmp_path: Path, call: Call) -> None:
    own = Path(__file__).parents[2] / "examples" / "own_data" / "trec"
    output = tmp_path / "out.trec"
    given = [
        "rank", "--model", tiny_model, "--engine", "hf", "--no-think", "--run", str(own / "run.txt"), "--queries",
        str(own / "queries.tsv"), "--collection", str(own / "collection.tsv"), "--qrels", str(own / "qrels.txt"), "--strategy",
        "windows", "--inside", "logits", "--answer-style", "letter-after", "--window", "3", "--step", "2",
        "--max_passage_tokens", "12", "--output", str(output),
    ]  # fmt: skip
    code, printed, said = call(*given)
    assert code == 0
    assert "nDCG@10" in printed
    assert "72 texts of candidates were cut" in said
    written = output.read_text()
    before = {tuple(line.split()[:3:2]) for line in (own / "run.txt").read_text().splitlines()}
    assert {tuple(line.split()[:3:2]) for line in written.splitlines()} == before
    assert list(tmp_path.iterdir()) == [output]
    assert Ranker.from_pretrained(tiny_model).settings.strategy in ("iterative", "direct")
    call(*given)
    assert output.read_text() == written
