"""Baselines by the words that a request and a candidate share: BM25 and the cosine of TF-IDF vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def documents_of(example: RankingExample) -> Sequence[str]:
    """A text for each candidate; its name where it has none."""
    return example.texts or example.candidates


class BM25(ScoringBaseline):
    """BM25 (Robertson and Zaragoza, 2009) through bm25s; the pool is the collection, so there is nothing to fit.

    Sum over the words t of the query, as often as they stand there, of
    ln(1 + (N - df_t + 0.5) / (df_t + 0.5)) tf_t / (tf_t + k1 (1 - b + b length / mean length)),
    which is Lucene's variant; words have two characters or more, English stop words are left out.
    """

    name = "BM25"

    def __init__(self, k1: float = 1.5, b: float = 0.75) -> None:
        self.k1, self.b = k1, b

    def scores(self, example: RankingExample) -> list[float]:
        """BM25 of each candidate's text for the request."""
        import bm25s

        query, *documents = bm25s.tokenize(
            [request_of(example), *documents_of(example)], return_ids=False, show_progress=False
        )
        shared = set(query).intersection(chain.from_iterable(documents))
        if not shared:
            return [0.0] * len(documents)
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float64")
        index.index(documents, show_progress=False)
        return [float(score) for score in index.get_scores([word for word in query if word in shared])]


class TfIdf:
    """TF-IDF vectors of length 1 through scikit-learn: tf_t (ln((1 + N) / (1 + df_t)) + 1), its smoothed idf.

    Words are hashed, not looked up: one that none of the texts holds has df 0 and so the highest weight, where a fitted
    vocabulary would drop it, and texts without any word raise nothing.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """`texts`: those that the N and df are counted in, at least one."""
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._count = HashingVectorizer(norm=None, alternate_sign=False)
        self._weigh = TfidfTransformer().fit(self._count.transform(texts))

    def vectors(self, texts: Iterable[str]) -> csr_matrix:
        """[texts, hashes]"""
        return self._weigh.transform(self._count.transform(texts))


class TfIdfCosine(ScoringBaseline):
    """Cosine of TF-IDF vectors, with the document frequencies of the candidates' texts in training, each text once."""

    name = "TF-IDF"

    def __init__(self, training: Sequence[RankingExample]) -> None:
        self._tfidf = TfIdf(dict.fromkeys(text for example in training for text in documents_of(example)))

    def scores(self, example: RankingExample) -> list[float]:
        """The cosine of the request and each candidate's text; 0 where they share no word."""
        vectors = self._tfidf.vectors([request_of(example), *documents_of(example)])
        return [float(cosine) for cosine in (vectors[1:] @ vectors[0].T).toarray()[:, 0]]
