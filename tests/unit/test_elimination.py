"""Pools that the policy itself leaves before a batch is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from r1ranker.data.prompts import Prompt
from r1ranker.data.tokenise import encode_chat
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, render_problem
from r1ranker.trainer.elimination import ROUNDS, survivors, with_candidates

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


@pytest.mark.parametrize("style", ["name", "label"])
def test_a_prompt_with_fewer_candidates_reads_as_if_it_had_been_written_so(
    style: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = prompt_of(tokenizer, style=style)
    fewer = with_candidates(prompt, [0, 2, 5])
    form, left = prompt.answer_format, [FILMS[0], FILMS[2], FILMS[5]]
    problem = render_problem(example_of(left), "iterative", form.answer_style)
    assert fewer.messages == chat_messages(problem, form, "iterative")
    assert fewer.ground_truth == {"candidate_text": left, "gt": FILMS[0], "grades": [3.0, 0.0, 0.0]}
    assert (fewer.extra_info, fewer.mode) == (prompt.extra_info, prompt.mode)


def test_other_turns_and_wordings_stay_as_they_are(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of(tokenizer)
    prompt.messages[0]["content"] = "Be brief."
    prompt.messages[1]["content"] = "Which of the films that I sent you is the worst?"
    fewer = with_candidates(prompt, [1, 0])
    assert [fewer.messages[place] for place in (0, 2)] == [prompt.messages[place] for place in (0, 2)]
    asked = fewer.messages[1]["content"]
    assert asked.startswith("Which of the films that I sent you is the worst?")
    assert "- Golden Quest\n- Silent Harbour\n" in asked
    assert "Paper Moon" not in asked


@pytest.mark.parametrize("style", ["name", "label"])
def test_the_candidates_named_most_often_go_out_and_the_positive_stays(
    style: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked: list[tuple[int, list[list[str]]]] = []

    def ask(prompts: Sequence[Prompt], number: int) -> list[list[str]]:
        asked.append((number, [prompt.candidates for prompt in prompts]))
        votes = {1: [0, 0, 0, 2, 2, 1, 4], 2: [2]}[number]  # places in the pool as it is then
        texts = [
            [f"[{vote + 1}]" if style == "label" else prompt.candidates[vote] for vote in votes] for prompt in prompts
        ]
        return [[f"{text}</answer>" for text in own] + ["no idea"] for own in texts]

    prompt, direct = prompt_of(tokenizer, style=style), prompt_of(tokenizer, "direct")
    left, untouched = survivors([prompt, direct], 3, ask, tokenizer)
    assert untouched is direct
    # round 1: places 2, 4 and 1 are named, two votes before one and of equals the later one; round 2: place 2 is not the positive
    assert asked == [(1, [list(FILMS)])]
    assert left.candidates == ["Silent Harbour", "Silent", "Iron Lake"]
    assert left.ground_truth["grades"] == [3.0, 0.0, 0.0]
    assert left.ground_truth["gt"] == "Silent Harbour"
    expected = render_problem(example_of(left.candidates), "iterative", style)  # type: ignore[arg-type]
    assert left.messages[1]["content"].startswith(expected)
    assert left.token_ids == encode_chat(tokenizer, left.messages)
    (second,) = survivors([left], 2, lambda prompts, number: ask(prompts, 2), tokenizer)
    assert second.candidates == ["Silent Harbour", "Silent"]
    assert prompt.candidates == list(FILMS), "what was dealt stays as it was"


def test_a_round_in_which_nothing_can_go_out_is_followed_by_others_up_to_a_bound(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rounds: list[int] = []

    def ask(prompts: Sequence[Prompt], number: int) -> list[list[str]]:
        rounds.append(number)
        return [[f"{FILMS[0]}</answer>"] for _ in prompts]  # the positive, which stays

    prompt = prompt_of(tokenizer)
    (left,) = survivors([prompt], 3, ask, tokenizer)
    assert left is prompt
    assert rounds == list(range(1, ROUNDS + 1))
