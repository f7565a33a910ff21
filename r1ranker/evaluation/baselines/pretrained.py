"""`--baseline-model KIND=DIR`: baselines whose weights come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.classifier import RouterClassifier
from r1ranker.evaluation.baselines.encoders import CrossEncoding, Embeddings, EncoderBaseline, MonoT5, check_encoder
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample

ENCODERS: dict[str, type[EncoderBaseline]] = {
    "embeddings": Embeddings,
    "cross-encoder": CrossEncoding,
    "monot5": MonoT5,
}
CLASSIFIER = "classifier"
KINDS = (*ENCODERS, CLASSIFIER)


def parse_baseline_models(values: Iterable[str]) -> dict[str, str]:
    """KIND=DIR as kind -> directory or hub id.

    Raises UserError for an unknown kind, for one that is named twice, and for a directory without a model.
    """
    found: dict[str, str] = {}
    for value in values:
        kind, equals, path = value.partition("=")
        if not equals or kind not in KINDS or not path:
            raise UserError(f"--baseline_model: found {value!r}; KIND=DIR with a kind of {', '.join(KINDS)} is wanted")
        if kind in found:
            raise UserError(f"--baseline_model: {kind} is named twice; once is wanted")
        check_encoder(path)
        found[kind] = path
    return found


def pretrained_baselines(
    models: Mapping[str, str], training: Sequence[RankingExample], task: str, gpu: int = 0
) -> list[ScoringBaseline]:
    """Those of `models` (kind -> path) that suit a task; the classifier is for routing, and learns from its `training` rows."""
    found: list[ScoringBaseline] = [ENCODERS[kind](path, gpu) for kind, path in models.items() if kind in ENCODERS]
    if CLASSIFIER in models and get_task(task).scenario == "routing":
        rows = [example for example in training if example.task == task]
        found.append(RouterClassifier(models[CLASSIFIER], rows, gpu))
    return found
