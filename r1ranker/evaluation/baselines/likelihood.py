"""Query likelihood: how likely a language model finds the request, given each candidate's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from r1ranker.data.tokenise import encode_chat, encode_completion
from r1ranker.device import compute_dtype, pick_device
from r1ranker.errors import note
from r1ranker.evaluation.baselines.lexical import documents_of
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.model.attention import PACKED
from r1ranker.model.loading import load_causal_lm, move_to_device
from r1ranker.model.policy_model import PolicyModel
from r1ranker.pretrained import SETTINGS_FILE, load_tokenizer
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.custom import asked_query
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import sanitise
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.trajectory import Trajectory, pack

INSTRUCTION = "Passage: {passage}. Please write a question based on this passage."
"""as in Sachan et al., 'Improving Passage Retrieval with Zero-Shot Question Generation' (arXiv 2204.07496)"""
OF_BASE = "query likelihood of the base"
MOST_TOKENS = 8192
"""of a forward pass; a longer candidate has one of its own"""


class QueryLikelihood(ScoringBaseline):
    """Candidates by log P(query | candidate), a sum over the query's tokens (arXiv 2204.07496; Ponte and Croft, 1998)."""

    def __init__(self, model: str, name: str, gpu: int = 0, dtype: str = "auto") -> None:
        self.name = name
        self._model, self._gpu, self._dtype = model, gpu, dtype
        self._policy: PolicyModel | None = None

    def scores(self, example: RankingExample) -> list[float]:
        """Nats for each candidate; the model is loaded for the first example."""
        if self._policy is None:
            device = pick_device(self._gpu)
            model = load_causal_lm(self._model, compute_dtype(device, self._dtype), PACKED)
            self._tokenizer = load_tokenizer(self._model)
            self._policy = PolicyModel(move_to_device(model, device)).requires_grad_(False)
        pairs = []
        for document in documents_of(example):
            request = [
                {"role": "user", "content": INSTRUCTION.format(passage=sanitise(document))},
                {"role": "assistant", "content": ""},
            ]
            pairs.append((request, sanitise(asked_query(example))))
        sequences = [
            Trajectory(
                encode_chat(self._tokenizer, request),
                response := encode_completion(self._tokenizer, request, query),
                np.zeros(len(response)),
                "stop",
                number,
            )
            for number, (request, query) in enumerate(pairs)
        ]
        return sum_logprobs(self._policy, sequences)


@torch.inference_mode()
def sum_logprobs(policy: PolicyModel, sequences: Sequence[Trajectory], most_tokens: int = MOST_TOKENS) -> list[float]:
    """The log-probability (nats) of each response given its prompt, at temperature 1, as many as fit in a row at a time."""
    sums = [0.0] * len(sequences)
    device = next(policy.parameters()).device
    longest = max(map(len, sequences))
    (bins,) = arrange_micro_batches(sequences, 1, Budget(max(most_tokens, longest)))
    for indices in bins:
        batch = pack([sequences[index] for index in indices]).to(device)
        logprobs, _ = policy(
            batch.predicting, batch.targets, batch.constrained, batch.allowed, 1.0, False, False, **batch.model_inputs()
        )
        lengths = [len(sequences[index].response_ids) for index in indices]
        for index, own in zip(indices, logprobs.double().cpu().split(lengths), strict=True):
            sums[index] = own.sum().item()
    return sums


def likelihood_baselines(model: str, gpu: int = 0, dtype: str = "auto") -> list[QueryLikelihood]:
    """Those by the evaluated model itself and, where it was trained here, by the model that its training began with."""
    found = [QueryLikelihood(model, "query likelihood", gpu, dtype)]
    base = base_model_of(model)
    if base is not None:
        found.append(QueryLikelihood(base, OF_BASE, gpu, dtype))
    return found


def base_model_of(model: str) -> str | None:
    """The model that training began with; None, and a note, where it is a directory that is not there any more."""
    file = Path(model) / SETTINGS_FILE
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model") if file.is_file() else None
    if base is not None and Path(base).is_absolute() and not Path(base).is_dir():
        note(f"{file}: its base model {base} is not there any more; its query likelihood is left out")
        return None
    return base


def has_texts_to_ask_of(example: RankingExample) -> bool:
    """Whether there is a query and candidates that say something of it: an LLM's name, in routing, does not."""
    return bool(asked_query(example)) and get_task(example.task).scenario != "routing"
