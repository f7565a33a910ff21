"""Names of candidates as an answer spells them: their token ids, and whether a tokenizer tells those of a pool apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from r1ranker.data.chat_template import ChatTemplate
from r1ranker.data.tokenise import ANSWER, BREAK, encode_continuation
from r1ranker.errors import UserError
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.tasks.text import sanitise

CLOSING = "</answer>"
_NAMES = AnswerFormat("name", think=False)


@dataclass(frozen=True)
class Spelling:
    """A name in an answer."""

    ids: tuple[int, ...]
    """of the name and of what follows it"""
    reading: str
    """what they are read as"""
    is_plain: bool
    """they are read as the name is shown in prompts"""


@lru_cache(maxsize=2**16)
def spell(template: ChatTemplate, name: str, before: str, after: str) -> Spelling:
    """A name between what comes before it (the opening tag or a line break) and after it. Kept: candidates stand in many pools."""
    # behind a line break, as the tag stands in a prompt or behind a thought
    context = BREAK + ANSWER if before == ANSWER else before
    written = sanitise(name) + after
    ids = tuple(encode_continuation(template.tokenizer, context, written))
    reading = str(template.tokenizer.decode(list(ids), skip_special_tokens=False))
    return Spelling(ids, reading, reading == written)


def check_told_apart(template: ChatTemplate, candidates: Sequence[str], where: str = "") -> None:
    """Raise UserError, naming `where`, unless an answer by name says which candidate it means.

    A tokenizer that makes all letters small, or knows only some, can write two names with the same tokens, or one with tokens
    that do not read as it.
    """
    spellings = [spell(template, name, ANSWER, CLOSING) for name in candidates]
    if len({spelling.ids for spelling in spellings}) < len(spellings):
        ids = [spelling.ids for spelling in spellings]
        second = next(place for place, own in enumerate(ids) if own in ids[:place])
        found = f"{candidates[ids.index(ids[second])]!r} and {candidates[second]!r} are the same tokens"
    else:
        for place, spelling in enumerate(spellings):
            if not spelling.is_plain and _read(spelling, candidates) != (place,):
                found = f"{candidates[place]!r} reads as {spelling.reading.removesuffix(CLOSING)!r}"
                break
        else:
            return
    raise UserError(
        f"{where}{': ' if where else ''}candidates: to the tokenizer of {template.name}, {found}, so that no answer by name "
        "can be right; answer_style=label is wanted"
    )


def _read(spelling: Spelling, candidates: Sequence[str]) -> tuple[int, ...]:
    """The candidates that an answer of this spelling names."""
    return parse_answer(ANSWER + spelling.reading, candidates, "iterative", _NAMES).named
