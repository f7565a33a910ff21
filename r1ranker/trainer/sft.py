"""The supervised cold start: next-token likelihood of given completions, in this process, over the same packed batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from r1ranker.atomic import check_place
from r1ranker.data.sft import read_sft_rows
from r1ranker.data.tokenise import encode_chat, encode_completion
from r1ranker.device import compute_dtype, pick_device
from r1ranker.errors import RunError, UserError
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.fsdp import gather_parameters
from r1ranker.model.init import save_hf
from r1ranker.model.loading import load_causal_lm
from r1ranker.pretrained import load_tokenizer
from r1ranker.progress import show_progress
from r1ranker.rollout.agreement import check_architecture
from r1ranker.rollout.context import check_fits
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.models import OptimConfig
from r1ranker.trainer.config.schema import TrainerConfig
from r1ranker.trainer.learners.optimisation import Optimisation
from r1ranker.trainer.learners.policy import Policy
from r1ranker.trainer.monitoring.non_finite import MAX_IN_A_ROW
from r1ranker.trainer.workers.process import join_process_group


@dataclass(frozen=True)
class SFTSettings:
    """How to fine-tune."""

    steps: int = 200
    batch_size: int = 32
    """examples a step"""
    lr: float = 1e-3
    warmup_steps: int = 10
    max_tokens: int = 16384
    """tokens a micro-batch"""
    seed: int = 1
    dtype: str = "auto"
    """auto | float32 | bfloat16: of what is computed; weights rest in float32"""


def build_examples(rows: Sequence[dict], tokenizer: PreTrainedTokenizerBase) -> list[Trajectory]:
    """Rows of (prompt, completion) as trajectories whose response is the completion and EOS."""
    examples: list[Trajectory] = []
    for row in rows:
        response = [*encode_completion(tokenizer, row["prompt"], row["completion"]), int(tokenizer.eos_token_id)]
        examples.append(
            Trajectory(
                prompt_ids=encode_chat(tokenizer, row["prompt"]),
                response_ids=response,
                rollout_logprobs=np.zeros(len(response)),
                finish_reason="stop",
                group_id=len(examples),
            )
        )
    return examples


def fine_tune(
    model_path: str, data_files: Sequence[str], output_dir: str, settings: SFTSettings | None = None
) -> list[float]:
    """Fine-tune the model on (prompt, completion) parquet and write it to `output_dir`; returns the loss (nats) of each step.

    Raises UserError for unreadable data or model, an `output_dir` that cannot be written, and for an example longer than a
    micro-batch. A loss or gradient that is
    not finite changes nothing; many in a row are a RunError.
    """
    settings = settings or SFTSettings()
    check_place(output_dir, directory=True)
    check_architecture(model_path)
    tokenizer = load_tokenizer(model_path)
    examples = build_examples(read_sft_rows(data_files), tokenizer)
    example = max(examples, key=len)
    longest = len(example)
    if longest > settings.max_tokens:
        raise UserError(
            f"{', '.join(data_files)}: an example of {longest} tokens; at most --max-tokens {settings.max_tokens} is wanted"
        )
    advice = f"{', '.join(data_files)}: shorter examples are wanted"
    check_fits(model_path, len(example.prompt_ids), len(example.response_ids), advice)
    device = pick_device()
    torch.manual_seed(settings.seed)
    join_process_group(None, 0, 1, device, TrainerConfig().timeout)
    policy = Policy(model_path, device, temperature=1.0, execution=ExecutionOptions(dtype=settings.dtype))
    optim = OptimConfig(
        lr=settings.lr, lr_warmup_steps=settings.warmup_steps, lr_scheduler_type="cosine", min_lr_ratio=0.1
    )
    optimisation = Optimisation(policy.module, optim, settings.steps, grad_clip=1.0)
    losses: list[float] = []
    order = np.random.default_rng(settings.seed)
    waiting: list[int] = []

    def last_loss() -> str:
        return f"loss {losses[-1]:.3f}" if losses else ""

    with show_progress("supervised cold start", settings.steps, "steps", last_loss) as advance:
        for _ in range(settings.steps):
            while len(waiting) < settings.batch_size:
                waiting += order.permutation(len(examples)).tolist()
            batch = [examples[index] for index in waiting[: settings.batch_size]]
            waiting = waiting[settings.batch_size :]
            losses.append(_step(policy, optimisation, batch, settings.max_tokens))
            if len(losses) >= MAX_IN_A_ROW and not np.isfinite(losses[-MAX_IN_A_ROW:]).any():
                raise RunError(f"step {len(losses)}: the loss of {MAX_IN_A_ROW} steps in a row was not finite")
            optimisation.schedule.step()
            advance()
    model = load_causal_lm(model_path, dtype=compute_dtype(torch.device("cpu")), attention="eager")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in gather_parameters(policy.language_model, device):
            own[name].copy_(weight)
    save_hf(output_dir, model, tokenizer)
    return losses


def _step(policy: Policy, optimisation: Optimisation, examples: Sequence[Trajectory], max_tokens: int) -> float:
    """One optimizer step; the loss is the mean over all completion tokens of the batch."""
    assign_loss_weights(examples, "token-mean")
    total = 0.0
    (bins,) = arrange_micro_batches(examples, 1, Budget(max_tokens))
    for indices in bins:
        batch = policy.pack([examples[index] for index in indices])
        logprobs, _ = policy.forward(batch, with_entropy=False)
        loss = -(batch.columns["weights"] * logprobs).sum()
        loss.backward()
        total += loss.item()
    norm = optimisation.step(math.isfinite(total))
    return total if math.isfinite(norm) else math.nan
