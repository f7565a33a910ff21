"""Pools that the policy itself leaves before a batch is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt
from r1ranker.data.tokenise import encode_chat
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import ANSWER_STYLES, AnswerStyle, write_label
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, render_problem
from r1ranker.trainer.experience.elimination import count_votes, eliminate, narrow_pool

FILMS = ("Silent Harbour", "Golden Quest", "Silent Harbour II", "Silent", "Paper Moon", "Iron Lake")


def example_of(names: Sequence[str]) -> RankingExample:
    return RankingExample("Rec-Movie", tuple(names), FILMS[0], history=("Golden Quest", "Blue Door"))


def prompt_of(tokenizer: PreTrainedTokenizerBase, mode: str = "iterative", style: str = "name") -> Prompt:
    form = AnswerFormat(style, think=False)  # type: ignore[arg-type]
    messages = chat_messages(render_problem(example_of(FILMS), mode, style), form, mode)  # type: ignore[arg-type]
    truth = {"candidate_text": list(FILMS), "gt": FILMS[0], "grades": [3.0, 1.0, 0.0, 0.0, 2.0, 0.0]}
    extra = {"task_name": "Rec-Movie", "index": 7}
    ids = encode_chat(tokenizer, messages)
    return Prompt(ids, f"{mode}_ranking", truth, extra, mode, form, messages)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("style", ANSWER_STYLES)
def test_a_prompt_with_fewer_candidates_reads_as_if_it_had_been_written_so(
    style: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = prompt_of(tokenizer, style=style)
    fewer = narrow_pool(prompt, [0, 2, 5])
    form, left = prompt.answer_format, [FILMS[0], FILMS[2], FILMS[5]]
    problem = render_problem(example_of(left), "iterative", form.answer_style)
    assert fewer.messages == chat_messages(problem, form, "iterative")
    assert fewer.ground_truth == {"candidate_text": left, "gt": FILMS[0], "grades": [3.0, 0.0, 0.0]}
    assert (fewer.extra_info, fewer.mode) == (prompt.extra_info, prompt.mode)


def test_other_turns_and_wordings_stay_as_they_are(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of(tokenizer)
    prompt.messages[0]["content"] = "Be brief."
    prompt.messages[1]["content"] = "Which of the films that I sent you is the worst?"
    fewer = narrow_pool(prompt, [1, 0])
    assert [fewer.messages[place] for place in (0, 2)] == [prompt.messages[place] for place in (0, 2)]
    asked = fewer.messages[1]["content"]
    assert asked.startswith("Which of the films that I sent you is the worst?")
    assert "- Golden Quest\n- Silent Harbour\n" in asked
    assert "Paper Moon" not in asked


@pytest.mark.parametrize("style", ANSWER_STYLES)
def test_answers_vote_and_the_positive_stays(style: AnswerStyle, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, direct = prompt_of(tokenizer, style=style), prompt_of(tokenizer, "direct")
    votes = [0, 0, 0, 2, 2, 1, 4]
    texts = [write_label(style, vote) if style != "name" else FILMS[vote] for vote in votes]
    order = count_votes(prompt, [*(f"{text}</answer>" for text in texts), "no idea"])
    assert order == [0, 2, 4, 1], "most often named first, of equals the later one"
    asked: list[tuple[int, list[list[str]]]] = []

    def worst(prompts: Sequence[Prompt], number: int) -> list[list[int]]:
        asked.append((number, [one.candidates for one in prompts]))
        return [order for _ in prompts]

    left, untouched = eliminate([prompt, direct], 4, worst, tokenizer)
    assert untouched is direct
    assert asked == [(1, [list(FILMS)])]
    assert left.candidates == ["Silent Harbour", "Golden Quest", "Silent", "Iron Lake"]
    assert left.ground_truth["grades"] == [3.0, 1.0, 0.0, 0.0]
    expected = render_problem(example_of(left.candidates), "iterative", style)  # type: ignore[arg-type]
    assert left.messages[1]["content"].startswith(expected)
    assert left.token_ids == encode_chat(tokenizer, left.messages)
    assert prompt.candidates == list(FILMS), "what was dealt stays as it was"


def test_rounds_go_on_until_the_pool_is_small_and_no_longer(tokenizer: PreTrainedTokenizerBase) -> None:
    rounds: list[tuple[int, int]] = []

    def last(prompts: Sequence[Prompt], number: int) -> list[list[int]]:
        rounds.append((number, len(prompts[0].candidates)))
        return [[len(one.candidates) - 1] for one in prompts]

    (left,) = eliminate([prompt_of(tokenizer)], 3, last, tokenizer)
    assert rounds == [(1, 6), (2, 5), (3, 4)]
    assert left.candidates == list(FILMS[:3])
    rounds.clear()
    (left,) = eliminate([prompt_of(tokenizer)], 2, lambda prompts, number: [[0] for _ in prompts], tokenizer)
    assert left.candidates == list(FILMS), "the positive alone was named, four times"


def test_wording_that_would_grow_is_left_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of(tokenizer)
    prompt.messages[1]["content"] = "Which of the films that I sent you is the worst?"
    short = replace(prompt, token_ids=encode_chat(tokenizer, prompt.messages))
    (left,) = eliminate([short], 3, lambda prompts, number: [[5, 4, 3] for _ in prompts], tokenizer)
    assert left is short
