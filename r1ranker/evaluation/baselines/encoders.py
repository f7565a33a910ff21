"""Baselines by pretrained encoders: embeddings, cross-encoders, MonoT5. Their weights are local directories or hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from r1ranker.device import pick_device
from r1ranker.errors import UserError, first_line
from r1ranker.evaluation.baselines.lexical import documents_of
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.model.sentences import load_cross_encoder, load_embedder
from r1ranker.pretrained import silence_transformers
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

MOST_TOKENS = 512
"""of a request and a text for MonoT5, which was trained with so many"""


def check_encoder(path: str) -> None:
    """Raise UserError for a directory that is none, or holds no model."""
    if Path(path).is_dir():
        if not any((Path(path) / name).is_file() for name in ("config.json", "modules.json")):
            raise UserError(f"{path}: no config.json in this directory; an encoder's directory is wanted")
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"{path}: no such directory; an encoder's directory or hub id is wanted")


class EncoderBaseline(ScoringBaseline):
    """Candidates by a pretrained encoder, which is loaded for the first example."""

    is_slow = True

    def __init__(self, path: str, gpu: int = 0) -> None:
        """Raises UserError where `path` holds no model."""
        check_encoder(path)
        self._path, self._gpu = path, gpu
        self._model: Any = None

    def release(self) -> None:
        self._model = None


class Embeddings(EncoderBaseline):
    """Similarity of the request's and each candidate's embedding: the one that the model names, cosine where it names none.

    A plain directory of transformers gives the mean over tokens, as Contriever does (arXiv 2112.09118).
    """

    name = "embeddings"

    def scores(self, example: RankingExample) -> list[float]:
        if self._model is None:
            self._model = load_embedder(self._path, self._gpu)
        model: SentenceTransformer = self._model
        asked = model.encode_query([request_of(example)], show_progress_bar=False)
        texts = model.encode_document(list(documents_of(example)), show_progress_bar=False)
        return [float(score) for score in model.similarity(asked, texts)[0]]


class CrossEncoding(EncoderBaseline):
    """The score of a cross-encoder that reads the request and a candidate together (Nogueira and Cho, arXiv 1901.04085)."""

    name = "cross-encoder"

    def scores(self, example: RankingExample) -> list[float]:
        if self._model is None:
            self._model = load_cross_encoder(self._path, self._gpu)
            if self._model.num_labels != 1:
                labels = self._model.num_labels
                raise UserError(f"{self._path}: found a cross-encoder of {labels} scores a text; one of 1 is wanted")
        model: CrossEncoder = self._model
        request = request_of(example)
        pairs = [(request, text) for text in documents_of(example)]
        return [float(score) for score in model.predict(pairs, show_progress_bar=False)]


class MonoT5(EncoderBaseline):
    """log P(true) of `Query: q Document: d Relevant:` between true and false (Nogueira et al., arXiv 2003.06713)."""

    name = "MonoT5"

    @torch.inference_mode()
    def scores(self, example: RankingExample) -> list[float]:
        if self._model is None:
            self._load()
        request = request_of(example)
        texts = [f"Query: {request} Document: {text} Relevant:" for text in documents_of(example)]
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        start = torch.full((len(texts), 1), self._model.config.decoder_start_token_id, device=self._model.device)
        logits = self._model(**inputs, decoder_input_ids=start).logits[:, 0]
        both = logits[:, [self._true, self._false]].float().log_softmax(-1)
        return both[:, 0].tolist()

    def _load(self) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        silence_transformers()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._path, trust_remote_code=False)
            self._model = (
                AutoModelForSeq2SeqLM.from_pretrained(self._path, trust_remote_code=False)
                .to(pick_device(self._gpu))
                .eval()
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self._path}: cannot be loaded as MonoT5 ({first_line(error, 200)})") from error
        words = [self._tokenizer.encode(word, add_special_tokens=False) for word in ("true", "false")]
        if words[0][0] == words[1][0]:
            raise UserError(f"{self._path}: its tokenizer begins 'true' and 'false' alike; the one of T5 is wanted")
        self._true, self._false = words[0][0], words[1][0]
