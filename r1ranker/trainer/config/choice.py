"""A value that has to be one of a few words."""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.errors import UserError, suggest


def one_of(key: str, value: str, known: Sequence[str]) -> None:
    """Raise UserError where the value of `key` is none of the known ones."""
    if value not in known:
        raise UserError(f"{key}: found {value!r}{suggest(value, known)}; one of {', '.join(known)} is wanted")
