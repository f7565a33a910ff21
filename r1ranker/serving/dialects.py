"""Rerank bodies: what the clients of Cohere, Jina, Voyage, TEI, vLLM, Infinity and Weaviate send, and what each wants back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1ranker.ranking.conversation import RankingResult

Dialect = Literal["common", "tei", "voyage", "infinity", "weaviate"]
"""common: Cohere's, Jina's and vLLM's answers go together in one"""
API_VERSION = "2"
AS_PERCENTILE = (
    "relevance_score is a rank percentile, (n - rank) / n with rank 0 for the best: this strategy has no probabilities"
)


CLIENT_CLOSED = 499
"""nobody reads it: the client hung up"""


class BadRequest(Exception):
    """A request that cannot be served: a status below 500, and one line on what was found and what is wanted."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class RerankCall:
    """What a body asks for."""

    dialect: Dialect
    query: str
    documents: tuple[str, ...]
    top: int | None = None
    """documents that are wanted back; None: all"""
    return_documents: bool = False
    return_thoughts: bool = False


def dialect_of(body: Mapping[str, Any], prefix: str = "") -> Dialect:
    """By the prefix of the path (tei, voyage, infinity) or by what only one of them sends."""
    forced: dict[str, Dialect] = {"tei": "tei", "voyage": "voyage", "infinity": "infinity"}
    if prefix in forced:
        return forced[prefix]
    if "texts" in body:
        return "tei"
    if "top_k" in body or "truncation" in body:
        return "voyage"
    return "weaviate" if "property" in body else "common"


def parse_rerank(body: Any, prefix: str = "") -> RerankCall:
    """What is asked for; unknown fields and nulls are passed over.

    Raises BadRequest naming the field.
    """
    if not isinstance(body, dict):
        raise BadRequest(f"the body is {_kind(body)}; an object with query and documents is wanted")
    dialect = dialect_of(body, prefix)
    query = body.get("query")
    if not isinstance(query, str):
        raise BadRequest(f"query: found {_kind(query)}; a text is wanted")
    field = "texts" if dialect == "tei" and "texts" in body else "documents"
    documents = body.get(field)
    if not isinstance(documents, list) or not documents:
        found = "an empty list" if documents == [] else _kind(documents)
        raise BadRequest(f"{field}: found {found}; a list of texts is wanted")
    texts = tuple(_text_of(document, f"{field}[{place}]") for place, document in enumerate(documents))
    check_characters((query, *texts))
    top = _number(body, "top_k" if dialect == "voyage" else "top_n")
    asked = any(_flag(body, name) for name in ("return_documents", "return_text"))
    return RerankCall(
        dialect,
        query,
        texts,
        None if top == 0 or dialect in ("tei", "weaviate") else top,
        asked,
        _flag(body, "return_thoughts"),
    )


def relevance_scores(result: RankingResult) -> tuple[dict[str, float], bool]:
    """Each candidate's score, and whether it is a probability; else it is the percentile of its rank, (n - rank) / n."""
    if result.scores and len(result.scores) == len(result.ranking):
        return dict(result.scores), True
    count = len(result.ranking)
    return {name: (count - rank) / count for rank, name in enumerate(result.ranking)}, False


def answer_rerank(call: RerankCall, result: RankingResult, names: Sequence[str], model: str, number: str) -> Any:
    """The body of the answer. `names`: the candidates as they were ranked, in the order of the documents; `number`: its id.

    Items hold nothing beyond the dialect's keys, and nothing anywhere is null: clients fail on both.
    """
    scores, is_probability = relevance_scores(result)
    place_of = {name: place for place, name in enumerate(names)}
    order = [place_of[name] for name in result.ranking]
    tokens = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens + result.response_tokens}
    if call.dialect == "weaviate":
        return {
            "scores": [
                {"document": text, "score": scores[name]} for text, name in zip(call.documents, names, strict=True)
            ]
        }
    shown = order if call.top is None else order[: call.top]
    if call.dialect == "tei":
        return [
            {"index": place, "score": scores[names[place]]}
            | ({"text": call.documents[place]} if call.return_documents else {})
            for place in shown
        ]
    items = []
    for place in shown:
        item: dict[str, Any] = {"index": place, "relevance_score": scores[names[place]]}
        if call.return_documents:
            text = call.documents[place]
            item["document"] = text if call.dialect in ("voyage", "infinity") else {"text": text}
        items.append(item)
    thoughts = {"thoughts": list(result.thoughts)} if call.return_thoughts else {}
    if call.dialect == "voyage":
        return {"object": "list", "data": items, "model": model, "usage": tokens, **thoughts}
    meta = {"api_version": {"version": API_VERSION}, "billed_units": {"search_units": 1}}
    warnings = {} if is_probability else {"warnings": [AS_PERCENTILE]}
    return {"id": number, "model": model, "results": items, "usage": tokens, "meta": meta | warnings, **thoughts}


def error_body(dialect: Dialect, message: str, kind: str, status: int) -> dict[str, Any]:
    """What clients read an error in: `detail` is a text always."""
    if dialect == "tei":
        return {"error": message, "error_type": kind}
    return {"message": message, "detail": message, "error": {"message": message, "type": kind, "code": status}}


def check_characters(texts: Iterable[str]) -> None:
    """Raise BadRequest for half a surrogate pair, which JSON can escape and no tokenizer takes."""
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadRequest("a text holds half a surrogate pair, which is no character; Unicode is wanted")


def _text_of(document: Any, where: str) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise BadRequest(f"{where}: found {_kind(text)}; a text, or an object with one under 'text', is wanted")
    return text


def _number(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value[:20])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRequest(f"{name}: found {str(value)[:40]!r}; a whole number from 0 is wanted")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise BadRequest(f"{name}: found {str(value)[:40]!r}; true or false is wanted")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")
