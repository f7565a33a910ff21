"""Words that a chat template and its tokenizer keep for themselves, and texts in which they are only text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from r1ranker.tasks.text import write_look_alikes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BRACKETED = re.compile(r"<<?[^\s<>]+>>?|\[[^\s\[\]]+\]")
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
"""answers are made of these: prompts and answers may hold them"""
_LETTER = re.compile(r"[^\W\d_]")
_NAMED = re.compile(r"(?:#+ *)?\w(?:[\w ]*\w)?:\s*\Z")
"""a turn's marker in words, as `USER:` and `### Response:` are, at the end of what stands before a text"""
_SAME = {
    place: unicodedata.normalize("NFKC", chr(place))
    for place in (*range(0xFE50, 0xFE70), *range(0xFF01, 0xFF5F))
    if len(unicodedata.normalize("NFKC", chr(place))) == 1
}
"""other widths of ASCII characters, which some tokenizers make one"""


class ControlWords:
    """The special tokens of a tokenizer, and the words in brackets or with a colon by which its template marks turns.

    `written`: of conversations, what the template writes around the texts; empty where a text stands.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: Iterable[Sequence[str]]) -> None:
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        known = {place: str(token) for place, token in decoder.items() if token.special}
        known |= zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        # one that cannot be written otherwise, as a special `!`, is ordinary text as well
        special = {place: word for place, token in known.items() if _is_control(word := token.strip("▁ \n"))}
        self.ids = frozenset(special) - {tokenizer.unk_token_id}
        """of special tokens, but that of unknown characters, which any text can have"""
        words: set[str] = set(special.values())
        marks: set[str] = set()
        for pieces in written:
            for place, piece in enumerate(pieces):
                words.update(word for word in _BRACKETED.findall(piece) if _is_control(word) and _LETTER.search(word))
                if place + 1 == len(pieces) or not pieces[place + 1]:
                    marks.update(match.group().strip() for match in _NAMED.finditer(piece))
        self.words = tuple(sorted(words))
        """as they are written in a text"""
        self.marks = tuple(sorted(marks))
        """those in words"""

    def neutralise(self, text: str) -> str:
        """`text` with its control words in look-alike characters; all else is as it was."""
        for words in self._patterns:
            while True:
                flat = text if text.isascii() else text.translate(_SAME)
                found = [match.span() for match in words.finditer(flat)]
                if not found:
                    break
                for start, end in reversed(found):
                    text = text[:start] + write_look_alikes(flat[start:end]) + text[end:]
        return text

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        words, marks = ({word.translate(_SAME) for word in known} for known in (self.words, self.marks))
        # apart: expressions that begin with a bracket are searched for much faster
        bracketed = [re.compile(_any_of(words), re.IGNORECASE)] if words else []
        named = [re.compile(rf"(?<![\w#])(?:{_any_of(marks)})")] if marks else []
        return (*bracketed, *named)


def _is_control(word: str) -> bool:
    return len(word) > 1 and not _TAG.fullmatch(word) and write_look_alikes(word) != word


def _any_of(words: Iterable[str]) -> str:
    """An expression for any of the words, beginnings that they share written once: there can be thousands of them."""
    following: dict[str, list[str]] = {}
    for word in words:
        if word:
            following.setdefault(word[0], []).append(word[1:])
    branches = []
    for first, rests in sorted(following.items()):
        rest = _any_of(rests)
        branches.append(re.escape(first) + (f"(?:{rest})?" if rest and "" in rests else f"(?:{rest})" if rest else ""))
    return "|".join(branches)
