"""Taking a problem's text apart again: our own wording and Ranking-bench's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1ranker.tasks.catalog import TASKS, Task
from r1ranker.tasks.example import RankingExample, names_are_numbers
from r1ranker.tasks.labels import AnswerStyle, is_behind, write_label
from r1ranker.tasks.text import sanitise

_BENCH_HISTORY = re.compile(r"in order:\n(\[.*\])$", re.MULTILINE)
_BENCH_QUERY = re.compile(r"\A[^\n]*following query:\n(.*?)\n\nThe LLM names and their descriptions are:\n", re.DOTALL)
_BENCH_PASSAGES = re.compile(r"\A## Here is a query: (.*?) and candidate passages:\n(.*)\Z", re.DOTALL)


def parse_problem(
    task_name: str, problem: str, candidates: Sequence[str], answer_style: AnswerStyle = "name"
) -> RankingExample:
    """The request in `problem`, whose pool is `candidates`; wording that is not known stays whole, in `problem`."""
    pool = tuple(candidates)
    task = TASKS.get(task_name)  # one that is not registered here has wording that is not known
    if task is not None:
        example = _own(task, problem, pool, answer_style) or _bench(task, problem, pool)
        if example is not None:
            return example
    return RankingExample(task_name, pool, problem=problem)


def _own(task: Task, problem: str, pool: tuple[str, ...], answer_style: AnswerStyle) -> RankingExample | None:
    own_words = task.scenario == "own"
    parts = problem.rpartition if own_words else problem.partition  # a template may say anything before its pool
    head, separator, tail = parts(f"\n\nCandidate {task.plural}:\n")
    if not separator or not (own_words or head.startswith(task.request + "\n")):
        return None
    lines = tail.split("\n")[: len(pool)]
    texts: list[str] = []
    nameless = answer_style != "name" and names_are_numbers(pool)
    for place, (line, name) in enumerate(zip(lines, pool, strict=False)):
        label = write_label(answer_style, place)
        if is_behind(answer_style):
            line = line.removesuffix(f" {label}")
        content = line[2:] if line.startswith("- ") else line.removeprefix(f"{label} ")
        written = sanitise(name)
        if content == written:
            continue
        if nameless:
            texts.append(content)
            continue
        if not content.startswith(written + ":"):
            return None
        texts.append(content[len(written) + 2 :])
    if len(lines) != len(pool) or len(texts) not in (0, len(pool)):
        return None
    if own_words:
        return RankingExample(task.name, pool, request=head, texts=tuple(texts))
    body = head[len(task.request) + 1 :]
    if task.scenario == "recommendation":
        history = tuple(line.removeprefix("- ") for line in body.split("\n") if line)
        return RankingExample(task.name, pool, history=history, texts=tuple(texts))
    return RankingExample(task.name, pool, query=body, texts=tuple(texts))


def _bench(task: Task, problem: str, pool: tuple[str, ...]) -> RankingExample | None:
    if task.scenario == "recommendation":
        found = _BENCH_HISTORY.search(problem)
        items = _numbered_items(found.group(1)) if found else None
        return RankingExample(task.name, pool, history=items) if items else None
    if task.scenario == "routing":
        found = _BENCH_QUERY.match(problem)
        if not found:
            return None
        texts = _after_names(problem[found.end() :], "# ", pool)
        return RankingExample(task.name, pool, query=found.group(1), texts=texts) if texts else None
    found = _BENCH_PASSAGES.match(problem)
    if not found:
        return None
    body = found.group(2)
    end = body.rfind("\n\nPlease think step by step")
    texts = _after_names(body if end < 0 else body[:end], "", pool)
    return RankingExample(task.name, pool, query=found.group(1), texts=texts) if texts else None


def _after_names(body: str, mark: str, pool: tuple[str, ...]) -> tuple[str, ...]:
    """The text behind `<mark><name>: ` of each name, in the order of the pool; empty where one is missing."""
    texts = []
    for name in pool:
        found = re.search(
            rf"^{re.escape(mark + name)}: ?(.*?)(?=\n{re.escape(mark)}(?:{_any(pool)}): |\n\nNow there are|\Z)",
            body,
            re.DOTALL | re.MULTILINE,
        )
        if not found:
            return ()
        texts.append(found.group(1).strip())
    return tuple(texts)


def _any(pool: tuple[str, ...]) -> str:
    return "|".join(re.escape(name) for name in pool)


def _numbered_items(text: str) -> tuple[str, ...] | None:
    """Items of `['0. first', '1. second', ...]`; the numbers part them, since quotes inside items are not escaped."""
    items: list[str] = []
    opening = re.match(r"\[(['\"])0\. ", text)
    if not opening:
        return None
    start = opening.end()
    while True:
        following = re.compile(rf"(['\"]), (['\"]){len(items) + 1}\. ").search(text, start)
        if following is None:
            items.append(text[start:].removesuffix("]")[:-1])
            return tuple(items)
        items.append(text[start : following.start()])
        start = following.end()
