"""The samples of a bad step once more, with a model: which of their numbers are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from r1ranker.data.files.text_rows import json_rows
from r1ranker.device import pick_device
from r1ranker.errors import UserError
from r1ranker.model.execution import ExecutionOptions
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.trajectory import COLUMNS, Trajectory
from r1ranker.trainer.config.schema import TrainerConfig
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.monitoring.non_finite import count_non_finite, read_samples
from r1ranker.trainer.workers.process import join_process_group


def replay(file: str, model: str) -> Iterator[str]:
    """A line on each sample of `file`: what of it was written down not finite, and what `model` computes for it now.

    The loss is recomputed where advantages and shares in the loss were known. Raises UserError for a file of another kind.
    """
    rows = [(number, row) for number, row in json_rows(file)]
    try:
        samples = read_samples([row for _, row in rows])
        settings = dict(rows[0][1]["policy_loss"])
        loss = PolicyLoss(**(settings | {"clip": ClipRange(**settings["clip"])}))
        temperature = float(rows[0][1]["temperature"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: not the samples of a bad step ({type(error).__name__}: {error}); a file of bad_steps/ is wanted"
        ) from error
    device = pick_device()
    join_process_group(None, 0, 1, device, TrainerConfig().timeout)
    policy = Policy(model, device, temperature, ExecutionOptions())
    vocabulary = policy.language_model.config.get_text_config().vocab_size
    wrong = 0
    yield f"{file}: {rows[0][1]['what']} in step {rows[0][1]['step']}; {len(samples)} samples, computed anew with {model}"
    for (number, row), sample in zip(rows, samples, strict=True):
        if any(not 0 <= token < vocabulary for token in (*sample.prompt_ids, *sample.response_ids)):
            raise UserError(
                f"{file}: line {number}: holds tokens that {model} does not have; the run's own model is wanted"
            )
        found = _look(policy, loss, sample)
        wrong += "not finite" in found
        yield f"line {number}, group {sample.group_id}, {len(sample.response_ids)} tokens: {found}; {_brief(row)}"
    yield f"{wrong} of {len(samples)} samples have numbers that are not finite"


def _look(policy: Policy, loss: PolicyLoss, sample: Trajectory) -> str:
    ((logprobs,),) = policy.logprobs([[sample]])
    kept = [f"{column} ({count} tokens)" for column in COLUMNS if (count := count_non_finite(sample, column))]
    parts = ["written down not finite: " + ", ".join(kept)] if kept else []
    odd = int((~np.isfinite(logprobs)).sum())
    parts.append(f"log-probabilities not finite ({odd} tokens)" if odd else "log-probabilities finite")
    if sample.advantages is not None and sample.weights is not None:
        ((value,),) = policy.losses([[sample]], loss)
        parts.append(f"loss {value:.6g}" + ("" if math.isfinite(value) else ", not finite"))
    return ", ".join(parts)


def _brief(row: dict[str, Any]) -> str:
    return f"score {row['score']}, response {str(row['response'])[:60]!r}"
