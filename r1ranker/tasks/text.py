"""Names and texts of users as they stand in prompts: on one line, and unable to pass for control tokens or tags."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

LONGEST_CACHED = 300
"""characters; names come again in every sub-pool"""
_CONTROL = re.compile(r"<\|([^<>|]*)\|>")
_TAG = re.compile(r"<(\s*/?\s*(?:think|answer)\s*)>", re.IGNORECASE)
_BRACKETS = str.maketrans("<>[]{}", "‹›⟦⟧⦃⦄")
_SIGNS = str.maketrans(":#_=|/", "꞉♯ˍ꞊¦∕")
"""for a control word without brackets, such as `USER:`"""
_UNDONE = str.maketrans("‹›⟦⟧⦃⦄꞉♯ˍ꞊¦∕", "<>[]{}:#_=|/")


def one_line(text: str) -> str:
    """`text` with every run of white space and control characters as one space."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
    return " ".join(text.split())


def neutralise(text: str) -> str:
    """`text` in which chat control tokens and the four tags are written with look-alike brackets, so they are only text."""
    if "<" not in text:
        return text
    previous = None
    while previous != text:  # taking one apart may bring another together
        previous = text
        text = _TAG.sub(r"‹\1›", _CONTROL.sub(r"‹|\1|›", text))
    return text


def write_look_alikes(text: str) -> str:
    """A control word in look-alike brackets, or, where it has none, in look-alike signs; no Unicode normal form undoes them."""
    written = text.translate(_BRACKETS)
    return written if written != text else text.translate(_SIGNS)


def undo_look_alikes(text: str) -> str:
    """`text` with the brackets and signs that look-alikes stand for."""
    return text if text.isascii() else text.translate(_UNDONE)


def canonical(text: str) -> str:
    """The form in which names are compared: as in a prompt, and in Unicode's NFC. Names that are equal in it look the same."""
    return unicodedata.normalize("NFC", sanitise(text))


def find_name(names: Sequence[str], name: str) -> int | None:
    """The place of `name` among `names`, written as it is or, where that is nowhere, in another form that looks the same."""
    if name in names:
        return names.index(name)
    form = canonical(name)
    return next((place for place, other in enumerate(names) if canonical(other) == form), None)


def sanitise(text: str) -> str:
    """A name or text as it stands in a prompt."""
    return _sanitise_cached(text) if len(text) <= LONGEST_CACHED else neutralise(one_line(text))


@lru_cache(maxsize=65536)
def _sanitise_cached(text: str) -> str:
    return neutralise(one_line(text))


def sanitise_lines(text: str) -> str:
    """The same for a text of several lines."""
    return neutralise("\n".join(map(one_line, text.splitlines())).strip())
