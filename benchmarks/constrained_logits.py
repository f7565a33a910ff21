"""The update pass of constrained direct rankings with logits of the allowed tokens alone, against logits of the whole vocabulary.

python benchmarks/constrained_logits.py [--runs 5] [--vocabularies 2048 16384 131072]
Groups of rankings of 20 candidates, a token each, forward and backward through one model, sides alternated; figures are medians. The other side
computes every logit of the same places and then takes those of the allowed tokens, as a trainer does whose logits come from the model's own forward pass.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from common import build, learnable
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from r1ranker.model import policy_model
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.logprobs import token_logprobs
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import TrainerConfig
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.workers.process import join_process_group

PROMPTS, SAMPLES, CANDIDATES, PROMPT_TOKENS = 32, 8, 20, 120


def whole_vocabulary(
    model: policy_model.PolicyModel, predicting: Tensor, targets: Tensor, constrained: Tensor, allowed: Tensor,
    temperature: float, with_entropy: bool, entropy_requires_grad: bool, **inputs: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As PolicyModel.forward, of tokens that are all constrained: every logit of a place, in the same chunks."""
    states = model.language_model.base_model(use_cache=False, **inputs).last_hidden_state[0][predicting]
    head = model.language_model.get_output_embeddings()
    rows = policy_model.bound_rows(len(states), states.itemsize * model.language_model.config.vocab_size, on_cpu=True)

    def of(start: int, states: Tensor) -> Any:
        own, every = slice(start, start + rows), torch.arange(len(states))
        return token_logprobs(
            head(states), targets[own], temperature, every, allowed[own], with_entropy, entropy_requires_grad
        )

    parts: list[tuple[Tensor, Tensor]] = [
        checkpoint(of, start, states[start : start + rows], use_reentrant=False)
        if len(states) > rows
        else of(start, states)
        for start in range(0, len(states), rows)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def rankings(vocabulary: int) -> list[Trajectory]:
    """Groups of random rankings of random candidates."""
    random = np.random.default_rng(0)
    made = []
    for group in range(PROMPTS):
        prompt = random.integers(0, vocabulary, PROMPT_TOKENS).tolist()
        candidates = random.choice(vocabulary, CANDIDATES, replace=False).tolist()
        for _ in range(SAMPLES):
            ids = random.permutation(candidates).tolist()
            allowed = [ids[place:] for place in range(CANDIDATES)]
            made.append(Trajectory(list(prompt), ids, np.zeros(CANDIDATES), "stop", group, allowed=allowed))
    return learnable(made, random)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2048, 16384, 131072])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    join_process_group(None, 0, 1, torch.device("cpu"), TrainerConfig().timeout)
    print("| vocabulary | whole s | allowed s | ratio | largest difference of a gradient |")
    print("| --- | --- | --- | --- | --- |")
    for vocabulary in options.vocabularies:
        with tempfile.TemporaryDirectory() as directory:
            build(directory, 64, 2, vocabulary)
            sides = [Policy(directory, torch.device("cpu"), 1.0, ExecutionOptions()) for _ in range(2)]
        sides[0].module.forward = partial(whole_vocabulary, sides[0].module)  # type: ignore[method-assign]
        trajectories = rankings(vocabulary)
        (bins,) = arrange_micro_batches(trajectories, 1, Budget(65536))
        chosen = [[trajectories[index] for index in one] for one in bins]
        loss = PolicyLoss(ClipRange())
        seconds: list[list[float]] = []
        for _ in range(options.runs + 1):
            found = []
            for side in sides:
                side.module.zero_grad()
                began = time.perf_counter()
                side.accumulate_gradients(chosen, loss)
                found.append(time.perf_counter() - began)
            seconds.append(found)
        pairs = seconds[1:]  # the first warms up
        gradients = [[one.grad for one in side.module.parameters()] for side in sides]
        difference = max(
            float((one - other).abs().max()) for one, other in zip(*gradients, strict=True) if one is not None
        )
        whole, few = (median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = median(pair[0] / pair[1] for pair in pairs)
        print(f"| {vocabulary:,} | {whole:.2f} | {few:.2f} | {ratio:.2f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
