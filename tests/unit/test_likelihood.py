"""Query likelihood: against transformers' own forward pass, one candidate at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.evaluation.baselines import likelihood
from r1ranker.evaluation.baselines.likelihood import (
    INSTRUCTION,
    QueryLikelihood,
    base_model_of,
    likelihood_baselines,
)
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.tasks.custom import query_in, render_request
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import sanitise_lines

EXAMPLE = RankingExample(
    "Passage-5",
    tuple(f"passage {place}" for place in range(5)),
    "passage 2",
    query="amber, question 7",
    texts=(
        "Almanac on amber",
        "Blog on inks: there are many kinds",
        "Herald",
        "Forum on jade " * 9,
        "Gazette on harps",
    ),
)


def plain_scores(path: str, example: RankingExample) -> list[float]:
    """log P(query | text) by transformers' eager attention in float64."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    scores = []
    for text in example.texts:
        user = {"role": "user", "content": INSTRUCTION.format(passage=text.strip())}
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        whole = tokenizer(prompt + example.query, add_special_tokens=False)["input_ids"]
        assert whole[: len(before)] == before
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(dim=-1)
        targets = torch.tensor(whole[1:])
        scores.append(logprobs.gather(1, targets[:, None])[len(before) - 1 :].sum().item())
    return scores


@pytest.mark.parametrize("most_tokens", [8192, 1], ids=["one row", "several rows"])
def test_it_is_the_likelihood_of_the_query(tiny_model: str, monkeypatch: pytest.MonkeyPatch, most_tokens: int) -> None:
    monkeypatch.setattr(likelihood, "MOST_TOKENS", most_tokens)
    rows: list[int] = []
    packed = likelihood.pack
    monkeypatch.setattr(likelihood, "pack", lambda some: rows.append(len(some)) or packed(some))
    found = QueryLikelihood(tiny_model, "query likelihood").scores(EXAMPLE)
    assert sum(rows) == len(EXAMPLE.texts)
    assert (len(rows) == 1) == (most_tokens > 1)
    assert found == pytest.approx(plain_scores(tiny_model, EXAMPLE), abs=1e-3)
    assert len(set(found)) == len(found)


def test_the_base_is_the_one_that_training_began_with(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(tiny_model, actor)

    def names(base: object) -> list[str]:
        (actor / "r1ranker.json").write_text(json.dumps({"base_model": base}))
        return [one.name for one in likelihood_baselines(str(actor), [EXAMPLE])]

    assert [one.name for one in likelihood_baselines(str(actor), [EXAMPLE])] == ["query likelihood"]
    assert names(tiny_model) == ["query likelihood", "query likelihood before training"]
    assert base_model_of(str(actor)) == tiny_model
    assert not capsys.readouterr().err
    for base, said in {str(tmp_path): "no config.json", "Qwen/none-such": "Qwen/none-such"}.items():
        assert names(base) == ["query likelihood"]
        error = capsys.readouterr().err
        assert error.startswith("note: query likelihood before training is left out: ")
        assert said in error
    for base in (3, "", None):
        assert names(base) == ["query likelihood"]


def test_texts_that_the_model_does_not_hold_are_said_and_left_out(
    tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    long = replace(EXAMPLE, texts=("long " * 40_000, *EXAMPLE.texts[1:]))
    assert likelihood_baselines(tiny_model, [EXAMPLE, long]) == []
    assert "shorter texts are wanted" in capsys.readouterr().err
    assert likelihood_baselines(tiny_model, [RankingExample("Router-Cost", ("a", "b"), query="who?")]) == []


def test_an_evaluation_with_baselines_has_it_where_there_is_a_query_to_ask(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    options = EvaluationOptions(
        data=str(toy / "bench"), limit=2, output_dir=str(tmp_path), strategy="direct", think=False,
        constrain="candidates", baselines=True,
    )  # fmt: skip
    (report,) = run_evaluation("Passage-5,Rec-Movie,Router-Cost", tiny_model, options, show=False)
    with_it = [task for task, found in report["tasks"].items() if "query likelihood" in found["baselines"]]
    assert with_it == ["Passage-5"]


def test_the_query_of_a_task_of_ones_own_is_told_from_the_words_around_it() -> None:
    template = "A customer writes:\n{{ query }}\nThey are in a hurry."
    request = render_request(template, "Where is my parcel?", ())
    assert query_in(template, request) == "Where is my parcel?"
    spaced = "A  customer:\n   <answer> {{ query }}"
    assert query_in(spaced, sanitise_lines(render_request(spaced, "Where?", ()))) == "Where?"
    assert query_in(template, "A customer writes:\n") == ""
    assert query_in("{{ query }} {{ query }}", "a a") == ""
    assert query_in("{% for one in history %}{{ one }}{% endfor %}", "a") == ""
    assert query_in("Chosen: {{ history }}, asked: {{ query }}", "Chosen: [], asked: a") == ""
