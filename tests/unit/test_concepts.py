"""docs/concepts.md computed anew: its prompt, rewards, elimination and advantages are those of the code."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1ranker.rewards import compute_score
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import Elimination
from r1ranker.tasks.prompts import AnswerFormat, Mode, chat_messages, render_problem
from r1ranker.trainer.algorithm.advantages import gae, grpo, maxrl, rloo

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "concepts.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text under a heading, up to the next one."""
    (text,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    return text


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, flags=re.DOTALL | re.MULTILINE)


def table(text: str) -> list[list[str]]:
    """The cells of the only table's rows, without its head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def rewards(request: RankingExample, answers: list[str], mode: Mode) -> list[dict[str, float]]:
    truth = {"candidate_text": list(request.candidates), "gt": request.positive}
    return [compute_score(f"{mode}_ranking", answer, truth) for answer in answers]


def shown(*values: float) -> list[str]:
    return [f"{value:.3f}" for value in values]


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """The names that the page's program sets, and `printed`."""
    (program,) = blocks(section("Follow one request"), "python")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, names)
    return names | {"printed": printed.getvalue()}


def test_the_program_prints_the_prompt_a_reward_and_the_advantages(run: dict[str, Any]) -> None:
    messages = chat_messages(render_problem(run["request"], "direct"), AnswerFormat(), "direct")
    prompt = "\n\n".join(f"{one['role']}:\n{one['content']}" for one in messages)
    assert blocks(section("1. The prompt"), "text") == [prompt]
    assert run["printed"].startswith(prompt)
    assert "'score': 0.63" in run["printed"]
    advantages = [row[2] for row in table(section("4. The advantages"))]
    printed = re.findall(r"-?\d+\.\d+", run["printed"].splitlines()[-1])
    assert shown(*map(float, printed)) == advantages


def test_the_rewards_and_advantages_of_the_four_answers(run: dict[str, Any]) -> None:
    answers = blocks(section("2. Four answers"), "text")
    parts = rewards(run["request"], answers, "direct")
    assert table(section("3. The rewards")) == [
        [str(number), *shown(one["task"]), f"{one['format']:g}", f"{one['tags'] + 0.0:g}", *shown(one["score"])]
        for number, one in enumerate(parts, start=1)
    ]
    scores, group = [one["score"] for one in parts], [0] * len(parts)
    assert len(scores) == 4
    columns = [scores, *(estimate(scores, group) for estimate in (grpo, rloo, maxrl))]
    assert table(section("4. The advantages")) == [
        [str(number), *shown(*row)] for number, row in enumerate(zip(*columns, strict=True), start=1)
    ]


def test_the_same_request_for_an_iranker(run: dict[str, Any]) -> None:
    text = section("The same request for an IRanker")
    (question,) = blocks(text, "text")
    user = chat_messages(render_problem(run["request"], "iterative"), AnswerFormat(), "iterative")[1]["content"]
    before, pool, after = user.partition("- Hidden Lantern\n\n")
    assert after == question
    assert f"{before}{pool}" in blocks(section("1. The prompt"), "text")[0]
    first, rounds = text.split("Ranking then goes round by round:")
    rows = table(first)
    answers = [row[1].strip("`").replace("\\n", "\n") for row in rows]
    scores = [one["score"] for one in rewards(run["request"], answers, "iterative")]
    advantages = grpo(scores, [0] * len(scores))
    assert [row[2:] for row in rows] == [shown(*pair) for pair in zip(scores, advantages, strict=True)]
    state = Elimination(run["request"].candidates)
    for number, pool_before, out in table(rounds):
        assert (int(number), pool_before) == (len(state.eliminated) + 1, ", ".join(state.pool))
        state.eliminate(out)
    assert state.done
    assert f"The ranking is {', '.join(state.ranking())}." in rounds


def test_the_advantages_of_ppo() -> None:
    text = section("Where does PPO's advantage come from?")
    rows = table(text)
    values = np.array([float(row[1]) for row in rows])
    assert "earns 1.000" in text
    ((advantages,), _) = gae([np.eye(len(rows))[-1]], [values], gamma=1.0, lam=1.0)
    assert [row[2] for row in rows] == shown(*advantages)
