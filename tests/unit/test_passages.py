"""Long passages and long pools: texts that are cut, labels of one token, and requests of unusual sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from r1ranker.data.passages import cut_text
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.pretrained import load_tokenizer
from r1ranker.ranking.ranker import Ranker
from r1ranker.rollout.constraint import count_single_token_labels
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import AnswerStyle
from r1ranker.tasks.prompts import AnswerFormat, Mode

Call = Callable[..., tuple[int, str, str]]
TREC = Path(__file__).resolve().parents[2] / "examples" / "own_data" / "trec"
FILES = [
    *("--queries", str(TREC / "queries.tsv"), "--collection", str(TREC / "collection.tsv")),
    *("--run", str(TREC / "run.txt"), "--qrels", str(TREC / "qrels.txt")),
]
SMALL = ("--engine", "hf", "--no-think", "--constrain", "candidates", "--max_tokens", "64")


def test_passages_are_cut_in_training_rows_and_for_the_evaluated_model(
    call: Call, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, most = load_tokenizer(tiny_model), 9
    given = ["prepare", "--from", "trec", *FILES, "--output", str(tmp_path), "--no-think", "--candidates", "5"]
    given += ["--tokenizer", tiny_model, "--max-passage-tokens", str(most), "--cold-start"]
    assert call(*given)[0] == 0
    texts = dict(line.split("\t") for line in (TREC / "collection.tsv").read_text().splitlines())
    shorter = {text: cut_text(text, tokenizer, most) for text in texts.values()}
    assert all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= most for text in shorter.values())
    for file in ("train", "test", "sft"):
        for row in pq.read_table(tmp_path / "direct_ranking" / f"{file}.parquet").to_pylist():
            asked = row["prompt"][1]["content"]
            shown = [line.split(": ", 1)[1] for line in asked.splitlines() if line.startswith("- passage ")]
            assert len(shown) == 5
            assert set(shown) <= set(shorter.values())
    card = (tmp_path / "direct_ranking" / "README.md").read_text()
    assert "candidates' texts that were cut" in card
    asked: list[str] = []
    to_request = Ranker._to_request

    def listen(self: Ranker, question: Any) -> Any:
        asked.extend(question.example.texts)
        return to_request(self, question)

    monkeypatch.setattr(Ranker, "_to_request", listen)
    options = EvaluationOptions(
        str(tmp_path / "bench"),
        output_dir=str(tmp_path / "results"),
        constrain="candidates",
        think=False,
        max_tokens=64,
    )
    for limit in (most, None):
        asked.clear()
        results = run_evaluation("all", tiny_model, replace(options, passage_tokens=limit))
        assert set(asked) <= set(shorter.values() if limit else texts.values())
    assert {("passages-9" in file.name) for file in (tmp_path / "results").glob("*.json")} == {True, False}
    assert results[0]["settings"]["passage_tokens"] is None
    code, _, said = call(*given[:-2], "0")
    assert code == 2
    assert said.endswith("error: --max-passage-tokens: found 0; at least 1 is wanted\n")
    without = [one for one in given if one not in ("--tokenizer", tiny_model)]
    assert call(*without)[2] == "error: --max-passage-tokens: of no use without --tokenizer\n"


@pytest.mark.parametrize("mode", ["direct", "iterative"])
@pytest.mark.parametrize("style", ["label", "label_after", "letter", "letter_after", "name"])
def test_as_many_labels_as_are_said_take_one_call(tiny_model: str, style: AnswerStyle, mode: Mode) -> None:
    ranker = Ranker.from_pretrained(tiny_model, "logits", think=False, answer_style=style, trained=mode)
    count = count_single_token_labels(ranker.tokenizer, mode, AnswerFormat(style, think=False))
    if style == "name":
        assert count == 0
        return
    assert count >= (26 if style.startswith("letter") else 9)
    for size, alone in ((count, True), (count + 1, False)):
        names = tuple(f"passage {place}" for place in range(size))
        (result,) = ranker.rank_many([RankingExample("Passage-9", names, query="q", texts=names)])
        assert (result.calls == 1) == alone


def test_requests_of_unusual_sizes(call: Call, tiny_model: str, tmp_path: Path) -> None:
    """One candidate, a thousand, ids with spaces; a request without candidates is one line."""
    many = [f"Silent Harbour {number}" for number in range(1000)]
    rows = [
        {"id": "a b", "query": "one", "candidates": ["only one"]},
        {"id": "c", "query": "many", "candidates": many},
        {"id": "d", "query": "two", "candidates": ["x", "y"]},
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["rank", str(file), "--model", tiny_model, "--strategy", "windows", "--inside", "logits", *SMALL]
    code, printed, said = call(*given, "--answer-style", "letter-after", "--mode", "direct")
    assert code == 0, said
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["id"] for line in lines] == ["a b", "c", "d"]
    assert said.splitlines()[-1].startswith("2 queries; of each 50.0 calls, 50.0 of them one after the other, ")
    for line, row in zip(lines, rows, strict=True):
        assert sorted(line["ranking"]) == sorted(row["candidates"])
    # one prompt with all of them is too long: windows take its place, which is said
    code, printed, said = call(
        *given[:4], "--strategy", "logits", "--answer-style", "label", "--mode", "direct", *SMALL
    )
    assert code == 0, said
    assert "1 requests have prompts that are too long for the 4,096 tokens" in said
    assert sorted(json.loads(printed.splitlines()[1])["ranking"]) == sorted(many)
    file.write_text('{"query": "none", "candidates": []}\n')
    code, printed, said = call(*given)
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert "line 1: candidates is empty" in said
