"""Query likelihood: how likely a language model finds the request, given each candidate's text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from r1ranker.data.tokenise import encode_chat, encode_completion
from r1ranker.device import compute_dtype, pick_device
from r1ranker.errors import UserError, note
from r1ranker.evaluation.baselines.lexical import documents_of
from r1ranker.evaluation.baselines.scoring import OF_BASE, OF_MODEL, ScoringBaseline
from r1ranker.model.attention import PACKED
from r1ranker.model.loading import load_causal_lm, move_to_device
from r1ranker.model.policy_model import PolicyModel
from r1ranker.pretrained import check_model_directory, load_tokenizer, read_setting
from r1ranker.rollout.agreement import check_architecture
from r1ranker.rollout.context import check_fits
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.custom import asked_query
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import sanitise
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.packing import pack
from r1ranker.trainer.batch.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Passage: {passage}. Please write a question based on this passage."
"""as in Sachan et al., 'Improving Passage Retrieval with Zero-Shot Question Generation' (arXiv 2204.07496)"""
MOST_TOKENS = 8192
"""of a forward pass; a longer candidate has one of its own"""


class QueryLikelihood(ScoringBaseline):
    """Candidates by log P(query | candidate), a sum over the query's tokens (arXiv 2204.07496; Ponte and Croft, 1998)."""

    is_slow = True

    def __init__(self, model: str, name: str, gpu: int = 0, dtype: str = "auto") -> None:
        """Raises UserError for a model that cannot be had or is not computed here as transformers does."""
        self.name = name
        self._model, self._gpu, self._dtype = model, gpu, dtype
        check_model_directory(model)
        check_architecture(model)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self._policy: PolicyModel | None = None

    def check(self, examples: Iterable[RankingExample]) -> None:
        """Raise UserError where the model does not hold the longest candidate with its query."""
        longest = max((one for example in examples for one in self._spell(example)), key=len)
        advice = "shorter texts are wanted"
        check_fits(self._model, len(longest.prompt_ids), len(longest.response_ids), advice)

    def scores(self, example: RankingExample) -> list[float]:
        """Nats for each candidate; the model is loaded for the first example."""
        if self._policy is None:
            device = pick_device(self._gpu)
            model = load_causal_lm(self._model, compute_dtype(device, self._dtype), PACKED)
            self._policy = PolicyModel(move_to_device(model, device)).requires_grad_(False)
        return sum_logprobs(self._policy, self._spell(example))

    def release(self) -> None:
        """Give the model's memory back."""
        self._policy = None

    def _spell(self, example: RankingExample) -> list[Trajectory]:
        """The query as the answer to each candidate."""
        query, found = sanitise(asked_query(example)), []
        for number, document in enumerate(documents_of(example)):
            chat = [
                {"role": "user", "content": INSTRUCTION.format(passage=sanitise(document))},
                {"role": "assistant", "content": ""},
            ]
            asked = encode_completion(self._tokenizer, chat, query)
            found.append(
                Trajectory(encode_chat(self._tokenizer, chat), asked, np.zeros(len(asked)), "stop", group_id=number)
            )
        return found


@torch.inference_mode()
def sum_logprobs(policy: PolicyModel, sequences: Sequence[Trajectory]) -> list[float]:
    """The log-probability (nats) of each response given its prompt, at temperature 1, as many as fit in a row at a time."""
    sums = [0.0] * len(sequences)
    device = next(policy.parameters()).device
    longest = max(map(len, sequences))
    (bins,) = arrange_micro_batches(sequences, 1, Budget(max(MOST_TOKENS, longest)))
    for indices in bins:
        batch = pack([sequences[index] for index in indices]).to(device)
        logprobs, _ = policy(
            batch.predicting, batch.targets, batch.constrained, batch.allowed, 1.0, False, False, **batch.model_inputs()
        )
        lengths = [len(sequences[index].response_ids) for index in indices]
        for index, own in zip(indices, logprobs.double().cpu().split(lengths), strict=True):
            sums[index] = own.sum().item()
    return sums


def likelihood_baselines(
    model: str, examples: Sequence[RankingExample], gpu: int = 0, dtype: str = "auto"
) -> list[QueryLikelihood]:
    """Those by the evaluated model itself and, where it was trained here, by the model that its training began with.

    What cannot be had, or does not hold the longest of `examples`, is left out with a note. None where no example has a query.
    """
    asked = [example for example in examples if has_texts_to_ask_of(example)]
    if not asked:
        return []
    found = []
    for name, path in ((OF_MODEL, model), (OF_BASE, base_model_of(model))):
        if path is None:
            continue
        try:
            one = QueryLikelihood(path, name, gpu, dtype)
            one.check(asked)
            found.append(one)
        except UserError as error:
            note(f"{name} is left out: {error}")
    return found


def base_model_of(model: str) -> str | None:
    """The model that training began with, as r1ranker.json names it; None where it names none."""
    base = read_setting(model, "base_model")
    return base if isinstance(base, str) and base else None


def has_texts_to_ask_of(example: RankingExample) -> bool:
    """Whether there is a query and candidates that say something of it: an LLM's name, in routing, does not."""
    return bool(asked_query(example)) and get_task(example.task).scenario != "routing"
