"""Labels of candidates: what stands in brackets beside each, and which candidate is meant by one."""

from __future__ import annotations

import re
from typing import Literal, get_args

AnswerStyle = Literal["name", "label", "label_after", "letter", "letter_after"]
ANSWER_STYLES: tuple[AnswerStyle, ...] = get_args(AnswerStyle)

_NUMBER, _LETTERS = r"\d{1,3}", r"[A-Za-z]{1,2}"
_ALPHABET = 26


def by_letter(style: AnswerStyle) -> bool:
    """Whether labels are letters."""
    return style.startswith("letter")


def is_behind(style: AnswerStyle) -> bool:
    """Whether labels stand behind the candidates."""
    return style.endswith("_after")


def write_label(style: AnswerStyle, place: int) -> str:
    """The label of the candidate at `place`, from 0: [1], [2], ... or [A], ..., [Z], [AA], ..."""
    return f"[{_letters(place) if by_letter(style) else place + 1}]"


def _letters(place: int) -> str:
    return (_letters(place // _ALPHABET - 1) if place >= _ALPHABET else "") + chr(ord("A") + place % _ALPHABET)


def place_of(label: str) -> int:
    """The place that what stands in a label means, from 0; -1 for the number 0."""
    if label.isdigit():
        return int(label) - 1
    place = 0
    for letter in label.upper():
        place = place * _ALPHABET + ord(letter) - ord("A") + 1
    return place - 1


def label_pattern(style: AnswerStyle) -> re.Pattern[str]:
    """Of a label in brackets, whose group is what stands in it."""
    return _IN_BRACKETS[by_letter(style)]


def bare_label_pattern(style: AnswerStyle) -> re.Pattern[str]:
    """Of an answer that is what stands in a label, and nothing else but signs."""
    return _BARE[by_letter(style)]


_IN_BRACKETS = tuple(re.compile(rf"\[\s*({what})\s*\]") for what in (_NUMBER, _LETTERS))
_BARE = tuple(re.compile(rf"\W*({what})\W*") for what in (_NUMBER, _LETTERS))
