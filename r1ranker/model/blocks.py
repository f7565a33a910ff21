"""Rows of a tensor in blocks, so that what is computed of them stays small, and on a CPU in the cache."""

from __future__ import annotations


def split_rows(count: int, width: int, numbers: int) -> list[slice]:
    """`count` rows of `width` in blocks of about `numbers` numbers, at least a row each."""
    size = max(1, numbers // max(1, width))
    return [slice(start, start + size) for start in range(0, count, size)]
