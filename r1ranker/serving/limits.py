"""What a request may cost before anything is ranked: bytes, nesting, documents and characters; and who may ask."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect

from r1ranker.serving.dialects import CLIENT_CLOSED, BadRequest

_OPENING, _CLOSING, _QUOTE, _ESCAPE = b"[{", b"]}", ord('"'), ord("\\")


@dataclass(frozen=True)
class Limits:
    """Of a request, and of requests at once."""

    body_bytes: int = 8 * 2**20
    documents: int = 1000
    characters: int = 4_000_000
    """of query and documents together"""
    nesting: int = 16
    concurrency: int = 256
    """requests that are being ranked or wait for it; more are refused with 429"""
    timeout_s: float = 300.0
    body_s: float = 30.0
    """that a client has to send its body"""


async def read_body(stream: AsyncIterator[bytes], headers: Mapping[str, str], limits: Limits) -> Any:
    """The JSON of a body that comes in pieces.

    Raises BadRequest for one that is too long, too deep or no JSON, as soon as that is known; for one that takes too long
    to come (408), and for one that breaks off.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        raise _too_large(f"a body of {int(announced[:20]):,} bytes", limits)
    try:
        body = await asyncio.wait_for(_collect(stream, limits), limits.body_s)
    except asyncio.TimeoutError:
        raise BadRequest(f"the body has not come whole in {limits.body_s:g} s", 408, "timeout") from None
    except ClientDisconnect:
        raise BadRequest("the body broke off", CLIENT_CLOSED) from None
    depth = measure_nesting(body, limits.nesting)
    if depth > limits.nesting:
        raise BadRequest(f"the body is nested more than {limits.nesting} deep; a flat object is wanted")
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON ({str(error)[:100]})") from error


async def _collect(stream: AsyncIterator[bytes], limits: Limits) -> bytes:
    body = bytearray()
    async for piece in stream:
        body += piece
        if len(body) > limits.body_bytes:
            raise _too_large(f"a body of more than {limits.body_bytes:,} bytes", limits)
    return bytes(body)


def measure_nesting(body: bytes, most: int) -> int:
    """How deep lists and objects stand in one another; ends at one more than `most`."""
    depth = deepest = 0
    inside = escaped = False
    for byte in body:
        if inside:
            if escaped:
                escaped = False
            elif byte == _ESCAPE:
                escaped = True
            elif byte == _QUOTE:
                inside = False
        elif byte == _QUOTE:
            inside = True
        elif byte in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
            if deepest > most:
                break
        elif byte in _CLOSING:
            depth -= 1
    return deepest


def check_size(request: Sequence[str], documents: Sequence[str], limits: Limits) -> None:
    """Raise BadRequest for more documents or characters than are served."""
    if len(documents) > limits.documents:
        raise BadRequest(f"found {len(documents):,} documents; at most {limits.documents:,} are served", 413)
    characters = sum(map(len, request)) + sum(map(len, documents))
    if characters > limits.characters:
        raise BadRequest(f"found texts of {characters:,} characters; at most {limits.characters:,} are served", 413)


def check_key(headers: Mapping[str, str], keys: frozenset[str]) -> None:
    """Raise BadRequest (401) unless the headers hold one of `keys`; all are compared, each in constant time."""
    if not keys:
        return
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    matches = [hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()) for key in sorted(keys)]
    if not any(matches):
        raise BadRequest("no valid API key; `Authorization: Bearer KEY` is wanted", 401, "authentication_error")


def _too_large(found: str, limits: Limits) -> BadRequest:
    return BadRequest(f"found {found}; at most {limits.body_bytes:,} are served", 413)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
