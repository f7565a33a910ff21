"""Wording a request: the problem text, and the chat around it with the assistant's turn already begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r1ranker.tasks.catalog import Task, get_task
from r1ranker.tasks.custom import render_request
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import AnswerStyle, by_letter, is_behind, write_label
from r1ranker.tasks.text import neutralise, sanitise, sanitise_lines

Mode = Literal["direct", "iterative"]


@dataclass(frozen=True)
class AnswerFormat:
    """How an answer is given."""

    answer_style: AnswerStyle = "name"
    """candidates in full, or by the label, [3] or [C], that stands before, or after, each in the list"""
    think: bool = True
    """reason before answering"""

    @property
    def by_label(self) -> bool:
        """Whether answers are labels."""
        return self.answer_style != "name"


SYSTEM = "You are a careful assistant. You reason about a request in your mind first and answer it afterwards."
PREFILL_THINK = "Let me solve this step by step.\n<think>"
PREFILL_ANSWER = "<answer>"
CURRENT_POOL_HEADER = "The candidates now are:"
NEXT_ROUND = " is out. Which one is the worst of the rest?"
"""what follows a candidate in the next turn of a conversation"""
HINTS_HEADER = "Thoughts on similar requests:"


def candidate_lines(example: RankingExample, style: AnswerStyle) -> list[str]:
    """The pool, one candidate a line, with its text behind a colon where there is one: `- name`, `[1] name` or `- name [1]`.

    Where labels are named, a name that only counts ('passage 0') is left out before its text.
    """
    lines = []
    behind, bare = is_behind(style), style == "name"
    nameless = not bare and example.has_numbers_for_names
    for place, name in enumerate(example.candidates):
        label = write_label(style, place)
        text = sanitise(example.texts[place]) if example.texts else ""
        described = text if nameless else f"{sanitise(name)}: {text}" if example.texts else sanitise(name)
        listed = f"{'-' if behind or bare else label} {described}"
        lines.append(f"{listed} {label}" if behind else listed)
    return lines


def render_problem(example: RankingExample, mode: Mode, answer_style: AnswerStyle = "name") -> str:
    """The problem's text. What stays the same from one elimination to the next comes first, the pool after it."""
    pool = "\n".join(candidate_lines(example, answer_style))
    before = [HINTS_HEADER, *(f"- {hint}" for hint in example.hints), ""] if example.hints else []
    if example.problem:
        text = neutralise(example.problem)
        if CURRENT_POOL_HEADER in text:
            text = text[: text.index(CURRENT_POOL_HEADER)].rstrip()
        return "\n".join([*before, text, "", CURRENT_POOL_HEADER, pool])
    task = get_task(example.task)
    return "\n".join(
        [*before, *_request(example, task), "", f"Candidate {task.plural}:", pool, "", _question(task, mode)]
    )


def _request(example: RankingExample, task: Task) -> list[str]:
    if task.scenario == "own":
        wording = example.request or render_request(
            task.request, sanitise_lines(example.query), [sanitise(item) for item in example.history], task.name
        )
        return [sanitise_lines(wording)]
    lines = [task.request]
    if task.scenario == "recommendation":
        return [*lines, *(f"- {sanitise(item)}" for item in example.history)]
    return [*lines, sanitise(example.query)]


def _question(task: Task, mode: Mode) -> str:
    if mode == "direct":
        return f"Rank all candidate {task.plural} by {task.goal}, best first, each exactly once."
    return f"Which one candidate {task.noun} is the worst by {task.goal}?"


def answer_instruction(mode: Mode, answer_format: AnswerFormat) -> str:
    """What the user asks of the answer's form."""
    style = answer_format.answer_style
    label = "[B]" if by_letter(style) else "[2]"
    what = f"label, such as {label}," if answer_format.by_label else "name, exactly as listed,"
    form = f"every candidate's {what} one a line" if mode == "direct" else f"only that candidate's {what}"
    form = form.removesuffix(",")
    if answer_format.think:
        return f"Show your work in <think> </think> tags. Then give {form} in <answer> </answer> tags."
    return f"Give {form} in <answer> </answer> tags, and nothing else."


def chat_messages(problem: str, answer_format: AnswerFormat, mode: Mode) -> list[dict[str, str]]:
    """System, user and begun assistant turn."""
    prefill = PREFILL_THINK if answer_format.think else PREFILL_ANSWER
    return [
        {"role": "system", "content": SYSTEM},
        user_message(problem, answer_format, mode),
        {"role": "assistant", "content": prefill},
    ]


def user_message(problem: str, answer_format: AnswerFormat, mode: Mode) -> dict[str, str]:
    """The user's turn."""
    return {"role": "user", "content": f"{problem}\n\n{answer_instruction(mode, answer_format)}"}


def next_round(example: RankingExample, out: int, answer_style: AnswerStyle) -> str:
    """The user's turn after the candidate at the place `out` was named: the pool is not shown again."""
    named = sanitise(example.candidates[out]) if answer_style == "name" else write_label(answer_style, out)
    return named + NEXT_ROUND


def user_problem(messages: Sequence[dict[str, str]], answer_format: AnswerFormat, mode: Mode) -> str:
    """The problem that `chat_messages` was given."""
    user = next(message["content"] for message in messages if message["role"] == "user")
    return user.removesuffix("\n\n" + answer_instruction(mode, answer_format))
