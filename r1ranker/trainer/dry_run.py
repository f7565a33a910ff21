"""What a run would do, said without starting anything: processes, steps, tokens, and memory by moment and part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from rich.console import Console

from r1ranker.data.prompt_store import Prompt
from r1ranker.device import device_memory, pick_device
from r1ranker.rollout.context import load_context_length
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.conversing import describe_conversation
from r1ranker.trainer.loop import Run
from r1ranker.trainer.memory.estimate import MemoryModel
from r1ranker.trainer.memory.report import Device, print_memory
from r1ranker.trainer.update import plan_updates
from r1ranker.trainer.workers.ray_session import check_ray

WIDEST = 150
"""characters of the table: a narrow terminal breaks lines, where rich would cut figures off"""
MOST_READ = 2000
"""prompts whose lengths are looked at, evenly spread"""


def dry_run(config: Config, gpu_memory: float | None = None, host_memory: float | None = None) -> None:
    """Check everything that training checks before workers start, and print what would run.

    The memory is that of this machine, or what is thought of in GiB: of each GPU, and of a machine's host. Raises
    UserError as training does, and where the run cannot fit.
    """
    check_ray(config)
    run = Run(config)
    with closing(run):
        free, size = device_memory(torch.device("cpu"))
        host = Device(size, free) if host_memory is None else Device(int(host_memory * 2**30))
        if gpu_memory is not None:
            on_gpu, device = True, Device(int(gpu_memory * 2**30))
        else:
            found = pick_device()
            on_gpu = found.type != "cpu"
            device = Device(*reversed(device_memory(found))) if on_gpu else host
        waiting = min(config.data.val_batch_size or len(run.validation), len(run.validation))
        model = MemoryModel.of(config, on_gpu, device.size, waiting)
        console = Console(width=max(WIDEST, Console().width), highlight=False, markup=False, emoji=False)
        for note in run.notes:
            console.print(note, markup=False)
        _print_pairs(console, "What runs where", _places(model))
        _print_pairs(console, "A step", _work(run))
        print_memory(console, model, device, host)


def _places(model: MemoryModel) -> list[tuple[str, str]]:
    config, trainer = model.config, model.config.trainer
    rollout = config.actor_rollout_ref.rollout
    held = ["actor"] + ["reference"] * model.has_reference + ["critic"] * config.needs_critic
    colocated = rollout.placement == "colocated"
    each = "a GPU each" if model.on_gpu else "on the CPU"
    spanning = f", one over {rollout.tensor_model_parallel_size}" if rollout.tensor_model_parallel_size > 1 else ""
    engine = f"{rollout.name} engine{spanning}"
    parameters = f"{model.actor.parameters:,} parameters"
    if model.actor_adapters is not None:
        parameters += f", of adapters {model.actor_adapters.parameters:,} that learn"
    if model.critic is not None:
        parameters += f"; critic {config.critic.model.path}"
    where = "this process" if trainer.executor == "local" else f"{trainer.nnodes} x {trainer.n_gpus_per_node} with Ray"
    lines = [
        ("model", f"{config.actor_rollout_ref.model.path}, {parameters}"),
        ("driver", "this process: data, rewards, advantages"),
        ("trainer", f"{where}, {each}: {', '.join(held + [engine] * colocated)}"),
    ]
    if not colocated:
        lines.append(("rollout", f"{rollout.n_workers} with Ray, {each}: {engine}"))
    return [*lines, ("output", config.output_dir)]


def _work(run: Run) -> list[tuple[str, str]]:
    config = run.config
    data, n = config.data, config.actor_rollout_ref.rollout.n
    lengths = _lengths(run.loader.prompts)
    holds = load_context_length(str(config.actor_rollout_ref.model.path))
    share, mean = config.actor_rollout_ref.model.share_prompts, float(np.mean(lengths))
    group = (1 if share else n) * mean + n * (data.max_response_length - 1)
    turns = None
    if data.rounds == "conversation":
        if config.actor_rollout_ref.rollout.every_answer:
            n = 1
        turns = describe_conversation(config, run.sampler.tokenizer, run.loader.prompts[0])
        # a conversation goes on until its prompt is as long as may be
        behind = turns.most * (turns.added + data.max_response_length)
        group = mean + n * min(behind, data.max_prompt_length + data.max_response_length - mean)
    prompts = (
        f"{data.train_batch_size:,} a step, of {np.mean(lengths):,.0f} tokens on average, {max(lengths):,} at most"
    )
    if len(lengths) < len(run.loader.prompts):
        prompts += f" (by {len(lengths):,} of them)"
    epoch = f"{run.loader.steps_per_epoch:,} an epoch of {len(run.loader.prompts):,} prompts"
    responses = f"{data.train_batch_size * n:,} a step ({n} a prompt), of {data.max_response_length:,} tokens at most"
    lines = [
        ("algorithm", f"{config.algorithm.adv_estimator}, {config.trainer.total_epochs} epochs at most"),
        ("steps", f"{run.total_steps:,} ({epoch})"),
        ("validation", f"{len(run.validation):,} prompts each time"),
        ("prompts", prompts),
        ("responses", responses),
        *([] if turns is None else [("conversations", str(turns))]),
        *([] if holds is None else [("context", f"{holds:,} tokens of prompt and response together")]),
        ("tokens", f"{data.train_batch_size * group:,.0f} a step at most in the rows of a pass"),
    ]
    for plan in reversed(list(plan_updates(config))):
        updates = data.train_batch_size // plan.mini_batch * plan.epochs
        bins = _micro_batches(plan.mini_batch, n, group, plan.budget, config.world_size)
        each = f"of {plan.mini_batch:,} prompts; {bins:,} micro-batches a process in each at most"
        lines.append((f"{plan.model}'s updates", f"{updates:,} a step, {each}"))
    return lines


def _micro_batches(prompts: int, n: int, group: float, budget: Budget, processes: int) -> int:
    """Of an update in one process, where every response is as long as it may be."""
    by_tokens = prompts * group / budget.max_tokens
    by_sequences = prompts * n / budget.max_sequences if budget.max_sequences else 0.0
    return max(1, math.ceil(max(by_tokens, by_sequences) / processes))


def _lengths(prompts: Sequence[Prompt]) -> list[int]:
    places = np.unique(np.linspace(0, len(prompts) - 1, min(MOST_READ, len(prompts))).round().astype(int))
    return [len(prompts[int(place)].token_ids) for place in places]


def _print_pairs(console: Console, title: str, lines: Sequence[tuple[str, str]]) -> None:
    console.print(f"\n{title}", style="bold")
    for name, text in lines:
        console.print(f"  {name:<18} {text}", markup=False, soft_wrap=True)
