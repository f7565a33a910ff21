"""Probabilities of a first choice, beside those that plain transformers gives the same answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker import RankingExample
from r1ranker.data.tokenise import encode_chat
from r1ranker.ranking.ranker import Ranker
from r1ranker.rollout.constraint import build_constraint
from r1ranker.tasks.labels import AnswerStyle
from r1ranker.tasks.prompts import AnswerFormat, Mode, chat_messages, render_problem

FILMS = tuple(f"Silent {word}" for word in (
    "Harbour", "Mirror", "Station", "Garden", "River", "Orchard", "Summer", "Winter", "Letter", "Street", "Voyage", "Island",
))  # fmt: skip


@pytest.mark.parametrize("mode", ["direct", "iterative"])
@pytest.mark.parametrize("style", ["label", "letter_after", "name"])
def test_scores_are_those_of_plain_transformers(tiny_model: str, style: AnswerStyle, mode: Mode) -> None:
    ranker = Ranker.from_pretrained(tiny_model, "logits", think=False, answer_style=style, trained=mode)
    example = RankingExample("Rec-Movie", FILMS, history=("Golden Station",))
    (result,) = ranker.rank_many([example])
    expected = dict(zip(FILMS, _first_choice(tiny_model, example, mode, AnswerFormat(style, think=False)), strict=True))
    for name, chance in expected.items():
        assert result.scores[name] == pytest.approx(chance if mode == "direct" else 1 - chance, abs=1e-5)
    assert sum(expected.values()) == pytest.approx(1)
    assert list(result.ranking) == sorted(result.scores, key=lambda name: -result.scores[name])
    if style == "letter_after":
        assert result.calls == result.depth == 1
        assert result.response_tokens == 1


@torch.inference_mode()
def _first_choice(directory: str, example: RankingExample, mode: Mode, form: AnswerFormat) -> list[float]:
    """Of each candidate: the product of what its tokens have of the mass of all that may stand in their places."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = encode_chat(tokenizer, chat_messages(render_problem(example, mode, form.answer_style), form, mode))
    pool = build_constraint(tokenizer, example.candidates, mode, form)
    paths = (pool.first_ids or pool.separated_ids) if mode == "direct" else pool.final_ids
    chances = []
    for path in paths:
        logits = model(torch.tensor([[*prompt, *path]])).logits[0, len(prompt) - 1 : -1].double()
        chance = 1.0
        for place, token in enumerate(path):
            may = sorted({other[place] for other in paths if other[:place] == path[:place] and len(other) > place})
            chance *= float(logits[place, may].softmax(-1)[may.index(token)])
        chances.append(chance)
    return chances
