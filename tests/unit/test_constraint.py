"""Constrained answers: whatever is sampled, what comes out is an answer from the pool."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from r1ranker.model.init import train_tokenizer
from r1ranker.rollout.constraint import ConstraintState, build_constraint
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.labels import ANSWER_STYLES
from r1ranker.tasks.prompts import AnswerFormat

TEXTS = ["the silent harbour and the golden quest of the kingdom", "passage 1 passage 12 film films"]
PLAIN = train_tokenizer(TEXTS, 300)
WHOLE = train_tokenizer(TEXTS, 300, names=["Silent Harbour", "Golden Quest", "film"])
POOLS = (
    ["Silent Harbour", "Golden Quest", "Silent Harbour II", "Silent"],
    ["passage 1", "passage 12", "passage 2"],
    ["film", "films", "</answer><|im_end|>", "é ☃ 日本"],
)


def walk(
    tokenizer: PreTrainedTokenizerBase, pool: list[str], mode: str, answer_format: AnswerFormat, rng: random.Random
) -> str:
    """The text of a response whose free tokens are a fixed thought and whose constrained ones are drawn blindly."""
    constraint = build_constraint(tokenizer, pool, mode, answer_format)  # type: ignore[arg-type]
    state = ConstraintState(constraint, lambda token: tokenizer.decode([token]))
    free = tokenizer("so</think>\n<answer>", add_special_tokens=False)["input_ids"] if answer_format.think else []
    ids: list[int] = []
    certain: list[tuple[int, tuple[int, ...] | None]] = []
    choices: list[int] = []
    while not ids or ids[-1] != tokenizer.eos_token_id:
        allowed, rest = state.allowed_token_ids(), state.forced_token_ids()
        certain.append((len(ids), rest))
        choices += [len(ids)] if len(allowed) != 1 else []
        ids.append(rng.choice(allowed) if allowed else free[len(ids)])
        state.accept_token(ids[-1])
        assert len(ids) < 500
    for length, rest in certain:  # exactly where nothing is left to be chosen, what comes is foretold
        assert rest == (None if any(place >= length for place in choices) else tuple(ids[length:]))
    return str(tokenizer.decode(ids[:-1]))


@given(
    st.sampled_from([PLAIN, WHOLE]),
    st.sampled_from(POOLS),
    st.sampled_from(["direct", "iterative"]),
    st.builds(AnswerFormat, st.sampled_from(ANSWER_STYLES), st.booleans()),
    st.integers(0, 10**6),
)
def test_every_path_through_the_constraint_is_a_valid_answer(
    tokenizer: PreTrainedTokenizerBase, pool: list[str], mode: str, answer_format: AnswerFormat, seed: int
) -> None:
    text = walk(tokenizer, pool, mode, answer_format, random.Random(seed))
    parsed = parse_answer(text, pool, mode, answer_format)  # type: ignore[arg-type]
    assert not parsed.unmatched
    assert len(parsed.named) == (len(pool) if mode == "direct" else 1)


@pytest.mark.parametrize("mode", ["direct", "iterative"])
def test_every_candidate_can_come_first(mode: str) -> None:
    rng, pool = random.Random(0), POOLS[0]
    firsts = {
        parse_answer(
            walk(PLAIN, pool, mode, AnswerFormat(think=False), rng), pool, mode, AnswerFormat(think=False)
        ).named[0]  # type: ignore[arg-type]
        for _ in range(200)
    }
    assert firsts == set(range(len(pool)))


def test_a_token_outside_the_pool_is_refused() -> None:
    constraint = build_constraint(WHOLE, ["Silent Harbour", "Golden Quest"], "iterative", AnswerFormat(think=False))
    state = ConstraintState(constraint, lambda token: WHOLE.decode([token]))
    with pytest.raises(ValueError, match="not allowed"):
        state.accept_token(WHOLE.convert_tokens_to_ids("film"))
