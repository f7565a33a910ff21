"""Embedders and cross-encoders, through sentence-transformers (extra `encoders`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from r1ranker.device import pick_device
from r1ranker.errors import UserError, first_line
from r1ranker.pretrained import silence_transformers

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer


def load_embedder(path: str, gpu: int = 0) -> SentenceTransformer:
    """A model of embeddings; of a plain transformers directory the mean over its tokens, as Contriever has it.

    Raises UserError where it cannot be had.
    """
    from_library = _library()
    return _load(
        path, lambda: from_library.SentenceTransformer(path, device=str(pick_device(gpu)), trust_remote_code=False)
    )


def load_cross_encoder(path: str, gpu: int = 0) -> CrossEncoder:
    """A model that scores a query and a text together; raises UserError where it cannot be had."""
    from_library = _library()
    return _load(path, lambda: from_library.CrossEncoder(path, device=str(pick_device(gpu)), trust_remote_code=False))


def _library() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise UserError("sentence-transformers is not installed; pip install 'r1ranker[encoders]' brings it") from error
    return sentence_transformers


def _load(path: str, load: Callable[[], Any]) -> Any:
    silence_transformers()
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be loaded as an encoder ({first_line(error, 200)})") from error
