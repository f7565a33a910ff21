"""Our own rank bodies: a query or a history, candidates with or without texts, and what an elimination does on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from r1ranker.errors import UserError
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.settings import Strategy
from r1ranker.serving.dialects import BadRequest, check_characters
from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.example import RankingExample

FIELDS = ("query", "history", "candidates", "task", "strategy", "stream")


@dataclass(frozen=True)
class RankCall:
    """What a body asks for."""

    example: RankingExample
    strategy: Strategy | None
    stream: bool


def parse_rank(body: Any, task: str) -> RankCall:
    """What is asked for; `task` is the one of a body that names none. Raises BadRequest naming the field."""
    if not isinstance(body, dict):
        raise BadRequest("the body is no object; one with query or history, and candidates, is wanted")
    unknown = sorted(set(body) - set(FIELDS))
    if unknown:
        raise BadRequest(f"{unknown[0][:40]}: no such field; those of {', '.join(FIELDS)} are wanted")
    name = body.get("task") or task
    if not isinstance(name, str) or name not in TASKS:
        raise BadRequest(f"task: found {str(name)[:40]!r}; one of {', '.join(TASKS)} is wanted")
    strategy = body.get("strategy")
    if strategy is not None and strategy not in get_args(Strategy):
        raise BadRequest(f"strategy: found {str(strategy)[:40]!r}; one of {', '.join(get_args(Strategy))} is wanted")
    query, history = body.get("query") or "", body.get("history") or []
    is_history = TASKS[name].scenario == "recommendation"
    if (
        not isinstance(query, str)
        or not _are_texts(history)
        or bool(query) == bool(history)
        or is_history == bool(query)
    ):
        raise BadRequest(
            f"{name} wants {'history, a list of texts' if is_history else 'query, a text'}, and nothing else"
        )
    candidates = body.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise BadRequest("candidates: found none; a list of names, or of objects with name and text, is wanted")
    pairs = [_pair(candidate, f"candidates[{place}]") for place, candidate in enumerate(candidates)]
    texts = tuple(text for _, text in pairs) if any(text for _, text in pairs) else ()
    example = RankingExample(name, tuple(own for own, _ in pairs), query=query, history=tuple(history), texts=texts)
    try:
        example.validate("candidates")
    except UserError as error:
        raise BadRequest(str(error)) from error
    check_characters((query, *history, *example.candidates, *texts))
    return RankCall(example, strategy, body.get("stream") is True)


def answer_rank(call: RankCall, result: RankingResult, model: str) -> dict[str, Any]:
    """The body of the answer."""
    place_of = {name: place for place, name in enumerate(call.example.candidates)}
    return {
        "model": model,
        "ranking": list(result.ranking),
        "indices": [place_of[name] for name in result.ranking],
        **({"scores": [result.scores[name] for name in result.ranking]} if result.scores else {}),
        **({"out_in_round": result.out_in_round} if result.out_in_round else {}),
        "thoughts": [thought for thought in result.thoughts if thought],
        "cost": {
            name: getattr(result, name)
            for name in ("calls", "depth", "fallbacks", "prompt_tokens", "cached_tokens", "response_tokens")
        },
    }


def round_event(result: RankingResult, told: int) -> dict[str, Any]:
    """What has happened since so many candidates were out: who went out in which round, and the last thought."""
    out = list(result.out_in_round.items())[told:]
    thought = result.thoughts[-1] if result.thoughts else ""
    return {"out": [{"name": name, "round": number} for name, number in out]} | (
        {"thought": thought} if thought else {}
    )


def _pair(candidate: Any, where: str) -> tuple[str, str]:
    name, text = (
        (candidate.get("name"), candidate.get("text") or "") if isinstance(candidate, dict) else (candidate, "")
    )
    if not isinstance(name, str) or not isinstance(text, str):
        raise BadRequest(f"{where}: a name, or an object with name and text, is wanted")
    return name, text


def _are_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)
