"""Properties of what is made of text in words: prompts, token ids, answers, rewards."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from r1ranker.data.chat_template import chat_template_of
from r1ranker.data.tokenise import encode_chat
from r1ranker.model.init import train_tokenizer
from r1ranker.rewards import REWARDS, compute_score
from r1ranker.rollout.constraint import ConstraintState, build_constraint
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import ANSWER_STYLES, write_label
from r1ranker.tasks.parsing import parse_problem
from r1ranker.tasks.prompts import (
    AnswerFormat,
    candidate_lines,
    chat_messages,
    render_problem,
    user_problem,
)
from r1ranker.tasks.text import canonical, sanitise

from .hostile import examples, text, texts

FORBIDDEN = re.compile(r"<\|[^<>|]*\|>|<\s*/?\s*(?:think|answer)\s*>", re.IGNORECASE)
modes = st.sampled_from(["direct", "iterative"])
formats = st.builds(AnswerFormat, st.sampled_from(ANSWER_STYLES), st.booleans())


def calm(example: RankingExample) -> RankingExample:
    """An example of the same shape with harmless words."""
    return RankingExample(
        example.task,
        tuple(f"name {place}" for place in range(len(example.candidates))),
        "name 0",
        query="words" if sanitise(example.query) else "",
        history=tuple("words" for _ in example.history),
        texts=tuple("words" for _ in example.texts),
    )


@given(examples(), modes, formats)
def prompts(example: RankingExample | None, mode: Any, form: AnswerFormat) -> None:
    """Text of users adds no line, no tag and no control token to a prompt, and the wording can be undone."""
    assume(example is not None)
    assert example is not None
    problem = render_problem(example, mode, form.answer_style)
    assert len(problem.split("\n")) == len(render_problem(calm(example), mode, form.answer_style).split("\n"))
    assert problem.splitlines() == problem.split("\n")
    assert not FORBIDDEN.search(problem)
    assert problem.isprintable() or set(problem) - {"\n"} == {one for one in problem if one.isprintable()}
    assert user_problem(chat_messages(problem, form, mode), form, mode) == problem
    parsed = parse_problem(example.task, problem, example.candidates, form.answer_style)
    assert parsed.candidates == example.candidates
    if not parsed.problem:  # a name that ends like another's text is left as it was worded
        assert render_problem(parsed, mode, form.answer_style) == problem


@given(examples(), text, modes, formats)
def kept_wordings(example: RankingExample | None, wording: str, mode: Any, form: AnswerFormat) -> None:
    """A problem in words that are not known can bring lines, but neither tags nor control tokens."""
    assume(example is not None)
    assert example is not None
    odd = RankingExample(example.task, example.candidates, example.positive, problem=wording or "x")
    problem = render_problem(odd, mode, form.answer_style)
    assert not FORBIDDEN.search(problem)
    assert problem.endswith("\n" + "\n".join(candidate_lines(odd, form.answer_style)))


@cache
def tokenizer() -> Any:
    return train_tokenizer(["a few words of an answer, Alien, Rocky II"], 400)


@given(texts, formats, modes)
def chats(content: str, form: AnswerFormat, mode: Any) -> None:
    """Whatever a turn holds, its token ids hold the chat's own control tokens and no other, and its text comes back, its control
    words in look-alikes."""
    content = content.encode("utf-8", "replace").decode()
    special = set(tokenizer().all_special_ids)
    ids = encode_chat(tokenizer(), chat_messages(content, form, mode))
    calm_ids = encode_chat(tokenizer(), chat_messages("words", form, mode))
    assert [one for one in ids if one in special] == [one for one in calm_ids if one in special]
    whole = tokenizer().decode(ids, skip_special_tokens=False)
    content = chat_template_of(tokenizer()).control_words.neutralise(content)
    assert whole == tokenizer().decode(calm_ids, skip_special_tokens=False).replace("words", content, 1)


pools = st.lists(text, min_size=2, max_size=6, unique_by=canonical).filter(lambda names: all(map(sanitise, names)))


@given(texts, pools, modes, formats)
def answers(completion: str, pool: list[str], mode: Any, form: AnswerFormat) -> None:
    """Any completion is parsed into distinct places of the pool."""
    parsed = parse_answer(completion, pool, mode, form)
    assert len(set(parsed.named)) == len(parsed.named)
    assert all(0 <= place < len(pool) for place in parsed.named)
    assert len(parsed.named) <= (1 if mode == "iterative" else len(pool))
    assert not (parsed.is_valid(mode, len(pool)) and parsed.unmatched)


@given(pools, st.randoms(use_true_random=False), modes, formats, text)
def named(pool: list[str], random: Any, mode: Any, form: AnswerFormat, thought: str) -> None:
    """An answer in the form that is asked for, names as they are listed or their labels, means those that it names."""
    order = random.sample(range(len(pool)), len(pool) if mode == "direct" else 1)
    style = form.answer_style
    written = "\n".join(write_label(style, place) if form.by_label else sanitise(pool[place]) for place in order)
    begun = f"{thought.replace('<', '(')}</think>\n<answer>" if form.think else ""
    parsed = parse_answer(f"{begun}{written}</answer>", pool, mode, form)
    assert list(parsed.named) == order
    assert parsed.is_valid(mode, len(pool))


@given(pools, st.randoms(use_true_random=False), modes, formats)
def constrained(pool: list[str], random: Any, mode: Any, form: AnswerFormat) -> None:
    """Any walk that a constraint allows is an answer that can be used as it is."""
    state = ConstraintState(build_constraint(tokenizer(), pool, mode, form), lambda token: tokenizer().decode([token]))
    ids: list[int] = []
    begun = "x</think>\n<answer>" if form.think else ""
    for token in tokenizer()(begun, add_special_tokens=False)["input_ids"]:
        state.accept_token(token)
    while not ids or ids[-1] != tokenizer().eos_token_id:
        ids.append(random.choice(state.allowed_token_ids()))
        state.accept_token(ids[-1])
    written = begun + tokenizer().decode(ids[:-1], skip_special_tokens=False)
    assert parse_answer(written, pool, mode, form).is_valid(mode, len(pool))


@given(examples(), texts, modes, formats, st.sampled_from(sorted(REWARDS)))
def rewards(example: RankingExample | None, completion: str, mode: Any, form: AnswerFormat, name: str) -> None:
    """A reward is finite, within its bounds, and the sum of those of its parts that count."""
    assume(example is not None)
    assert example is not None
    truth = {"candidate_text": list(example.candidates), "gt": example.positive, "grades": list(example.grades) or None}
    parts = REWARDS[name](
        f"{mode}_ranking", completion, truth, {"think": form.think, "answer_style": form.answer_style}
    )
    assert all(math.isfinite(value) for value in parts.values())
    assert -1 <= parts["task"] <= 1 + 1e-9
    assert parts["format"] in (-1, 0)
    assert -1 <= parts["tags"] <= 0
    assert 0 <= parts["coverage"] <= 1
    assert parts["valid"] in (0, 1)
    form_counts = name != "compute_score_task"
    assert parts["score"] == parts["task"] + (parts["format"] + parts["tags"] if form_counts else 0)


assert compute_score in REWARDS.values()
