"""Pools that are too long for a model are ranked part by part: every prompt fits, every candidate is ranked, and it is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError
from r1ranker.pretrained import load_tokenizer
from r1ranker.ranking.lengths import longest_prompts, part_to_fit
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.required_length import required_length
from r1ranker.ranking.settings import RankerSettings, Strategy, WindowSettings
from r1ranker.rollout.engine import Request, SamplingParams
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, render_problem

ANSWER = AnswerFormat("letter_after", think=False)
NAMES = tuple(f"Silent Harbour {number}" for number in range(40))
LONG = RankingExample("Rec-Movie", NAMES, history=("Golden Station",))
SHORT = RankingExample("Rec-Movie", NAMES[:3], history=("Golden Station",))


class Listening(Ranker):
    """Keeps the lengths of prompts."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.lengths: list[int] = []

    def _to_request(self, question: Any) -> tuple[Request, SamplingParams]:
        request, params = super()._to_request(question)
        self.lengths.append(len(request.token_ids))
        return request, params


@pytest.mark.parametrize("strategy", ["direct", "iterative", "logits", "windows", "tournament"])
def test_every_prompt_fits_and_every_candidate_is_ranked(
    strategy: Strategy, tiny_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1ranker.errors._NOTED", set())
    asked = {"constrain": "candidates", "think": False, "answer_style": "letter_after", "max_tokens": 48}
    ranker = Listening.from_pretrained(tiny_model, strategy, max_model_len=200, **asked)  # type: ignore[arg-type]
    assert longest_prompts(ranker.tokenizer, replace(ranker.settings, strategy="direct"), [LONG])[0] > 200 - 48
    long, short = ranker.rank_many([LONG, SHORT])
    assert sorted(long.ranking) == sorted(NAMES)
    assert sorted(short.ranking) == sorted(SHORT.candidates)
    assert max(ranker.lengths) <= 200 - 48
    assert (long.parted > 1, short.parted) == (True, 0)
    said = capsys.readouterr().err
    assert (
        f"a pool of 40 candidates is too long for the 200 tokens that the engine holds; it is ranked in parts of {long.parted}"
        in said
    )
    given = (tiny_model, ranker.tokenizer, ranker.settings, [LONG, SHORT])
    assert required_length(*given, max_model_len=200) == 200
    assert "1 requests have prompts that are too long for the 200 tokens" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_model")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    room=st.integers(120, 600),
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=30),
    strategy=st.sampled_from(["direct", "iterative", "logits", "windows", "tournament"]),
    size=st.integers(2, 30),
)
def test_parts_fit_whatever_they_hold(tiny_model: str, room: int, lengths: list[int], strategy: Any, size: int) -> None:
    tokenizer = load_tokenizer(tiny_model)
    names = tuple(f"{number} " + "harbour " * length for number, length in enumerate(lengths))
    example = RankingExample("Rec-Movie", names, history=("x",))
    asked = RankerSettings(strategy, ANSWER, windows=WindowSettings(size, 1), trained="direct")
    try:
        fitted, tokens = part_to_fit(tokenizer, asked, example, room)
    except UserError as error:
        assert "two of its candidates" in str(error)  # noqa: PT017
        two = replace(asked, strategy="windows", windows=WindowSettings(2, 1))
        assert longest_prompts(tokenizer, two, [example])[0] > room
        return
    assert tokens <= room
    part = fitted.windows.size if fitted.parts_pools else len(names)
    for start in range(0, len(names), part):
        shown = example.with_pool(names[start : start + part])
        problem = render_problem(shown, fitted.mode, ANSWER.answer_style)
        assert len(encode_chat(tokenizer, chat_messages(problem, ANSWER, fitted.mode))) <= room
    assert (fitted is asked) == (longest_prompts(tokenizer, asked, [example])[0] <= room)


def test_rank_many_streams(tiny_model: str) -> None:
    """Results come before all examples are taken, and in their order."""
    ranker = Ranker.from_pretrained(tiny_model, "logits", think=False, answer_style="letter_after")
    taken: list[int] = []

    def examples() -> Iterator[RankingExample]:
        for number in range(3000):
            taken.append(number)
            yield RankingExample("Rec-Movie", NAMES[number % 7 : number % 7 + 2], history=(f"film {number}",))

    results = ranker.rank_many(examples())
    first = next(results)
    assert first.ranking[0] in NAMES[:2]
    assert len(taken) < 3000
    rest = list(results)
    assert len(taken) == 3000
    assert all(set(one.ranking) == set(NAMES[n % 7 : n % 7 + 2]) for n, one in enumerate(rest, 1))
