"""A short fingerprint of texts, to tell examples apart without holding them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def digest(parts: Iterable[str]) -> int:
    """64 bits of the parts, in their order."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
