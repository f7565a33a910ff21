"""A text classifier as a router: a pretrained encoder, fine-tuned to say which LLM is best for a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from r1ranker.device import pick_device
from r1ranker.errors import UserError, first_line
from r1ranker.evaluation.baselines.encoders import check_encoder
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.pretrained import silence_transformers
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample

if TYPE_CHECKING:
    from transformers import BatchEncoding


@dataclass(frozen=True)
class ClassifierSettings:
    """How it is fine-tuned: BERT's usual way (Devlin et al., arXiv 1810.04805)."""

    epochs: int = 4
    batch_size: int = 16
    lr: float = 5e-5
    max_tokens: int = 256
    """of a query"""
    seed: int = 0


class RouterClassifier(ScoringBaseline):
    """Candidates by the classifier's logits; RouterBert's kind, with the usual fine-tuning.

    The target is the positive, which is the LLM that comes first in the row's objective.
    """

    name = "classifier"
    is_slow = True

    def __init__(
        self,
        path: str,
        training: Sequence[RankingExample],
        gpu: int = 0,
        settings: ClassifierSettings | None = None,
    ) -> None:
        """`training`: rows of one routing task. Raises UserError where `path` holds no model."""
        check_encoder(path)
        self._path, self._device, self._settings = path, gpu, settings or ClassifierSettings()
        self._rows = [example for example in training if example.positive]
        self._names = sorted({name for example in training for name in example.candidates})
        self._model: Any = None

    def scores(self, example: RankingExample) -> list[float]:
        """Logits; an LLM that no training row has comes last. Fine-tuned for the first example."""
        if self._model is None:
            self._fine_tune()
        with torch.inference_mode():
            logits = self._model(**self._encode([example])).logits[0].float().tolist()
        known = dict(zip(self._names, logits, strict=True))
        return [known.get(name, float("-inf")) for name in example.candidates]

    def release(self) -> None:
        self._model = None

    def _fine_tune(self) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

        settings = self._settings
        silence_transformers()
        torch.manual_seed(settings.seed)  # of the new head
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._path, trust_remote_code=False)
            self._model = AutoModelForSequenceClassification.from_pretrained(
                self._path, num_labels=len(self._names), dtype=torch.float32, trust_remote_code=False
            ).to(pick_device(self._device))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self._path}: cannot be loaded as a classifier ({first_line(error, 200)})") from error
        targets = torch.tensor([self._names.index(example.positive) for example in self._rows])
        generator = torch.Generator().manual_seed(settings.seed)
        optimizer = torch.optim.AdamW(self._model.parameters(), settings.lr)
        steps = settings.epochs * -(-len(self._rows) // settings.batch_size)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        self._model.train()
        for _ in range(settings.epochs):
            for batch in torch.randperm(len(self._rows), generator=generator).split(settings.batch_size):
                inputs = self._encode([self._rows[row] for row in batch.tolist()])
                self._model(**inputs, labels=targets[batch].to(self._model.device)).loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        self._model.eval()

    def _encode(self, examples: Sequence[RankingExample]) -> BatchEncoding:
        return self._tokenizer(
            [request_of(example) for example in examples],
            padding=True,
            truncation=True,
            max_length=self._settings.max_tokens,
            return_tensors="pt",
        ).to(self._model.device)
