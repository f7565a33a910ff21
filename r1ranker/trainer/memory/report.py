"""The memory of a run as a dry run prints it, on GPUs and of their hosts, and the refusal of what cannot fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from r1ranker.errors import UserError
from r1ranker.trainer.memory.estimate import CPU_BASE, GPU_BASE, MemoryModel, Parts, total_bytes
from r1ranker.trainer.memory.host import HostMemory
from r1ranker.trainer.memory.out_of_memory import format_bytes


@dataclass(frozen=True)
class Device:
    """What there is of a kind of memory."""

    size: int
    """bytes"""
    free: int | None = None
    """bytes; None: of a machine that is only thought of"""

    def judge(self, needed: int) -> str:
        """Whether `needed` bytes fit, in words."""
        if needed > self.size:
            return "does not fit"
        return "fits" if self.free is None or needed <= self.free else "more than is free now"

    def __str__(self) -> str:
        free = "" if self.free is None else f", {format_bytes(self.free)} free"
        return f"{format_bytes(self.size)}{free}"


def print_memory(console: Console, model: MemoryModel, device: Device, host: Device) -> None:
    """Print the bytes of each moment and part. Raises UserError where the device or the host cannot hold the run."""
    moments = _moments(model)
    if model.on_gpu:
        _print_table(console, f"Memory a GPU ({format_bytes(GPU_BASE)} for the driver's own part is assumed)", moments)
        on_host = HostMemory(model)
        processes = f"{on_host.processes} processes and the driver"
        _print_table(console, f"Host memory of a machine, {processes} together", on_host.moments())
    else:
        _print_table(console, "Memory a process, in the host's memory", moments)
    needs = _needs(model, moments)
    for (name, (moment, needed)), there in zip(needs.items(), (device, host), strict=False):
        line = f"{name}: {format_bytes(needed)} at most, {moment}; there is {there}: {there.judge(needed)}"
        console.print(line, markup=False, soft_wrap=True)
    for line in _checkpointing(model):
        console.print(line, markup=False, soft_wrap=True)
    refuse_misfit(model, device, host)


def refuse_misfit(model: MemoryModel, device: Device, host: Device) -> None:
    """Raise UserError, naming what to change, where a GPU, or a machine's host memory, cannot hold the run."""
    rollout = model.config.actor_rollout_ref.rollout
    if model.on_gpu and rollout.name == "vllm":
        wanted = model.engine_needs() / device.size
        if wanted > rollout.gpu_memory_utilization:
            cure = (
                f"try {math.ceil(wanted * 100) / 100:.2f}"
                if wanted < 0.95
                else "try a larger tensor_model_parallel_size"
            )
            raise UserError(
                f"actor_rollout_ref.rollout.gpu_memory_utilization: found {rollout.gpu_memory_utilization:g}; an engine's weights, a "
                f"pass and the cache of one sequence take {format_bytes(model.engine_needs())} of a GPU's {format_bytes(device.size)}; {cure}"
            )
    needs = _needs(model, _moments(model))
    for (name, (moment, needed)), there in zip(needs.items(), (device, host), strict=False):
        if needed > there.size:
            cures = ", ".join(_suggest_settings(model, name == "a GPU", "critic" in moment))
            raise UserError(
                f"{name}: {format_bytes(needed)} are needed ({moment}), and there are {format_bytes(there.size)}; try {cures}"
            )


def _moments(model: MemoryModel) -> dict[str, Parts]:
    """Those of the trainer's processes, and of the rollout's where it has its own."""
    separate = model.config.actor_rollout_ref.rollout.placement == "separate"
    return model.moments() | ({"rollout process": model.generation()} if separate else {})


def _needs(model: MemoryModel, moments: Mapping[str, Parts]) -> dict[str, tuple[str, int]]:
    """Kind of memory -> the moment that takes most of it, and how many bytes; in the order of device and host."""
    moment, needed = _highest(moments)
    if model.on_gpu:
        return {"a GPU": (moment, needed), "host memory": _highest(HostMemory(model).moments())}
    processes = model.config.trainer.n_gpus_per_node
    driver = CPU_BASE if model.config.trainer.executor == "ray" else 0
    together = f"{moment}, {processes} processes and the driver together" if driver else moment
    return {"host memory": (together, processes * needed + driver)}


def _highest(moments: Mapping[str, Parts]) -> tuple[str, int]:
    name = max(moments, key=lambda moment: total_bytes(moments[moment]))
    return name, total_bytes(moments[name])


def _suggest_settings(model: MemoryModel, on_gpu: bool, of_critic: bool) -> list[str]:
    config = model.config
    role, critic = config.actor_rollout_ref, config.critic
    cures = []
    if on_gpu:
        if not model.away(role.actor.fsdp_config):
            cures.append("actor_rollout_ref.actor.fsdp_config.param_offload=true")
        if model.critic is not None and not model.away(critic.model.fsdp_config):
            cures.append("critic.model.fsdp_config.param_offload=true")
    if on_gpu or not model.on_gpu:
        checkpoints = (critic.model if of_critic else role.model).enable_gradient_checkpointing
        if not checkpoints:
            cures.append(f"{'critic' if of_critic else 'actor_rollout_ref'}.model.enable_gradient_checkpointing=true")
        own = of_critic and critic.ppo_max_token_len_per_gpu is not None
        cures.append(f"a smaller {'critic' if own else 'actor_rollout_ref.actor'}.ppo_max_token_len_per_gpu")
    if on_gpu:
        cures.append("more GPUs (trainer.n_gpus_per_node)")
    elif model.on_gpu:
        cures += ["less offload where the GPUs have room", "more machines (trainer.nnodes)"]
    return [*cures, "a smaller model"]


def _checkpointing(model: MemoryModel) -> list[str]:
    config = model.config
    tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    sizes = {on: format_bytes(total_bytes(model.updating_actor(tokens, checkpointing=on))) for on in (False, True)}
    lines = [
        f"update of the actor at ppo_max_token_len_per_gpu={tokens}: {sizes[False]} without gradient checkpointing, "
        f"{sizes[True]} with it"
    ]
    if model.critic is not None:
        tokens = config.critic.ppo_max_token_len_per_gpu or tokens
        sizes = {on: format_bytes(total_bytes(model.updating_critic(tokens, checkpointing=on))) for on in (False, True)}
        lines.append(f"update of the critic at {tokens}: {sizes[False]} without, {sizes[True]} with it")
    return lines


def _print_table(console: Console, title: str, moments: Mapping[str, Parts]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in moments:
        table.add_column(name, justify="right", no_wrap=True)
    for part in dict.fromkeys(part for parts in moments.values() for part, size in parts.items() if size):
        table.add_row(part, *(format_bytes(parts[part]) if parts.get(part) else "" for parts in moments.values()))
    table.add_section()
    table.add_row("total", *(format_bytes(total_bytes(parts)) for parts in moments.values()), style="bold")
    console.print()
    console.print(table)
