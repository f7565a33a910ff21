"""How requests are compared: by words, by embeddings, or not at all."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from r1ranker.thoughts.similarity import Similarity


class Comparer(ABC):
    """Compares requests with those that it was made of."""

    @abstractmethod
    def compare(self, request: str) -> np.ndarray:
        """[requests] of its own: how similar each is to `request`; higher is more similar."""


class TfIdfComparer(Comparer):
    """Cosine of TF-IDF vectors, by scikit-learn."""

    def __init__(self, requests: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer()
        self._matrix = self._vectorizer.fit_transform(requests)

    def compare(self, request: str) -> np.ndarray:
        return np.asarray((self._matrix @ self._vectorizer.transform([request]).T).toarray()[:, 0], dtype=float)


class BM25Comparer(Comparer):
    """BM25 by bm25s, with the bank's requests as the collection."""

    def __init__(self, requests: Sequence[str]) -> None:
        import bm25s

        self._count = len(requests)
        self._index = bm25s.BM25(method="lucene", dtype="float64")
        self._index.index(bm25s.tokenize(requests, return_ids=False, show_progress=False), show_progress=False)

    def compare(self, request: str) -> np.ndarray:
        import bm25s

        (words,) = bm25s.tokenize([request], return_ids=False, show_progress=False)
        known = [word for word in words if word in self._index.vocab_dict]
        return np.asarray(self._index.get_scores(known), dtype=float) if known else np.zeros(self._count)


class EmbeddingComparer(Comparer):
    """The similarity that a model of embeddings names; cosine where it names none."""

    def __init__(self, requests: Sequence[str], embedder: str) -> None:
        from r1ranker.model.sentences import load_embedder

        self._model = load_embedder(embedder)
        self._vectors = self._model.encode(list(requests), show_progress_bar=False)

    def compare(self, request: str) -> np.ndarray:
        asked = self._model.encode([request], show_progress_bar=False)
        return np.asarray(self._model.similarity(asked, self._vectors)[0], dtype=float)


class RandomComparer(Comparer):
    """Any numbers, always the same ones of a request."""

    def __init__(self, requests: Sequence[str]) -> None:
        self._count = len(requests)

    def compare(self, request: str) -> np.ndarray:
        seed = zlib.crc32(request.encode("utf-8", "surrogatepass"))
        return np.random.default_rng(seed).random(self._count)


def make_comparer(similarity: Similarity, requests: Sequence[str], embedder: str | None = None) -> Comparer:
    """One that compares with `requests`; `embedder`: the model directory of embeddings.

    Raises UserError for a model of embeddings that cannot be had.
    """
    if similarity == "embeddings":
        assert embedder is not None, "settings were not checked"
        return EmbeddingComparer(requests, embedder)
    if similarity == "random":
        return RandomComparer(requests)
    return BM25Comparer(requests) if similarity == "bm25" else TfIdfComparer(requests)
