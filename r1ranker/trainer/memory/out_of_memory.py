"""Where memory runs out, one line says which setting to lower, and to what."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import torch

from r1ranker.device import device_memory
from r1ranker.errors import RunError
from r1ranker.trainer.batch.chains import chain, count_row_tokens
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.memory.estimate import MemoryModel, total_bytes

STEP = 256
"""budgets that are proposed are multiples of it"""
_ACTOR = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
_CRITIC = "critic.ppo_max_token_len_per_gpu"
_SIGNS = ("can't allocate memory", "out of memory", "bad_alloc", "alloc_failed", "not enough memory")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Pass:
    words: str
    keys: tuple[str, ...]
    """of its token budget: the first that is set is in force"""
    bytes_of: Callable[[MemoryModel, int], int]
    """what the process needs with micro-batches of so many tokens"""
    checkpointing: str | None = None
    """the key that makes it smaller at the price of time"""


_PASSES = {
    "update_policy": _Pass(
        "the update of the actor",
        (_ACTOR,),
        lambda model, tokens: total_bytes(model.updating_actor(tokens)),
        "actor_rollout_ref.model.enable_gradient_checkpointing",
    ),
    "update_critic": _Pass(
        "the update of the critic",
        (_CRITIC, _ACTOR),
        lambda model, tokens: total_bytes(model.updating_critic(tokens)),
        "critic.model.enable_gradient_checkpointing",
    ),
    "values": _Pass(
        "the critic's pass",
        (_CRITIC, _ACTOR),
        lambda model, tokens: total_bytes(model.passing(model.critic or model.actor, tokens, with_logits=False)),
    ),
    "policy": _Pass(
        "the pass for old log-probabilities",
        ("actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu", _ACTOR),
        lambda model, tokens: total_bytes(model.passing(model.actor, tokens)),
    ),
    "reference": _Pass(
        "the reference's pass",
        ("actor_rollout_ref.ref.log_prob_max_token_len_per_gpu", _ACTOR),
        lambda model, tokens: total_bytes(model.passing(model.actor, tokens)),
    ),
}


def explain_out_of_memory(method: Method) -> Method:
    """A worker's method over bins of trajectories that ends with RunError, naming the setting to lower, where memory runs out."""

    @wraps(method)
    def guarded(self: Any, bins: Sequence[Sequence[Trajectory]], *arguments: Any, **named: Any) -> Any:
        try:
            return method(self, bins, *arguments, **named)
        except Exception as error:
            shortage = Shortage.of(error, self.device)
            if shortage is None:
                raise
            traceback.clear_frames(error.__traceback__)  # what they hold is wanted for finding the words
        of = method.__name__ if method.__name__ in _PASSES else str([*arguments, *named.values()][0])
        share = self.config.actor_rollout_ref.model.share_prompts
        rows = [chain(trajectories, share, forced_ends="critic" in of or of == "values") for trajectories in bins]
        tokens = max((count_row_tokens(row, share) for row in rows), default=1)
        model = MemoryModel.of(self.config, self.device.type != "cpu", shortage.device_bytes)
        raise RunError(explain_pass(of, model, tokens, shortage))

    return guarded  # type: ignore[return-value]


def refuse_shortage(error: Exception, config: Config, device: torch.device) -> None:
    """Raise RunError with the setting to lower where `error` says that generation ran out of memory; else nothing."""
    shortage = Shortage.of(error, device)
    if shortage is not None:
        traceback.clear_frames(error.__traceback__)
        model = MemoryModel.of(config, device.type != "cpu", shortage.device_bytes)
        raise RunError(explain_generation(model, shortage)) from None


@dataclass(frozen=True)
class Shortage:
    """An allocation that failed."""

    asked: int | None
    """bytes; None: not said"""
    free: int
    device_bytes: int

    @classmethod
    def of(cls, error: BaseException, device: torch.device) -> Shortage | None:
        """The shortage that `error` tells of; None where it is another error."""
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not (
            isinstance(error, RuntimeError) and any(sign in text.lower() for sign in _SIGNS)
        ):
            return None
        said = re.search(r"(?:allocate|requested:?) ([\d.]+) (bytes|[KMGT]iB)", text)
        free, size = device_memory(device)
        return cls(int(float(said[1]) * _UNITS[said[2]]) if said else None, free, size)

    def __str__(self) -> str:
        asked = "" if self.asked is None else f"asked for {format_bytes(self.asked)}, "
        return f"{asked}device has {format_bytes(self.device_bytes)}, {format_bytes(self.free)} free"

    def room(self, needed: int) -> int:
        """Bytes that a process may need by the estimate, where it needed `needed` and failed."""
        return min(self.device_bytes, needed - (self.asked or 0))


def explain_pass(of: str, model: MemoryModel, tokens: int, shortage: Shortage) -> str:
    """The sentence for a pass or update whose largest micro-batch had `tokens` tokens.

    What is proposed is the largest budget that fits by the memory model, lowered by what was asked for in vain; where
    none holds the longest sequence, what else makes the process smaller.
    """
    one, config = _PASSES[of], model.config
    key = next(key for key in one.keys if _value(config, key) is not None)
    begun = f"{key}: found {_value(config, key)}; {one.words} ran out of memory in a micro-batch of {tokens} tokens ({shortage})"
    longest = config.data.max_prompt_length + config.data.max_response_length
    room = shortage.room(one.bytes_of(model, tokens))
    for budget in [*range((tokens - 1) // STEP * STEP, longest - 1, -STEP), longest]:
        if budget < tokens and one.bytes_of(model, budget) <= room:
            return f"{begun}; try {budget}"
    cures = []
    if one.checkpointing and not _value(config, one.checkpointing):
        cures.append(f"{one.checkpointing}=true")
    if model.on_gpu and not config.actor_rollout_ref.actor.fsdp_config.param_offload:
        cures.append("actor_rollout_ref.actor.fsdp_config.param_offload=true")
    cures += [
        "more processes (trainer.n_gpus_per_node)",
        "a smaller data.max_prompt_length or data.max_response_length",
    ]
    return f"{begun}; a budget that holds one sequence of {longest} tokens does not fit: try {', '.join(cures)}"


def explain_generation(model: MemoryModel, shortage: Shortage) -> str:
    """The sentence for generation: the most responses at once that fit by the memory model, at most half of what was had."""
    rollout = model.config.actor_rollout_ref.rollout
    if rollout.name == "vllm" and model.on_gpu:
        lower = max(0.1, rollout.gpu_memory_utilization - max(0.1, (shortage.asked or 0) / shortage.device_bytes))
        return (
            f"actor_rollout_ref.rollout.gpu_memory_utilization: found {rollout.gpu_memory_utilization}; generation ran out of "
            f"memory beside the engine's cache ({shortage}); try {lower:.2f}"
        )
    begun = f"actor_rollout_ref.rollout.max_num_seqs: found {rollout.max_num_seqs}; generation ran out of memory ({shortage})"

    def needed(at_once: int) -> int:
        config = deepcopy(model.config)
        config.actor_rollout_ref.rollout.max_num_seqs = at_once
        return total_bytes(replace(model, config=config).generation())

    room = shortage.room(needed(rollout.max_num_seqs))
    under_way = min(rollout.max_num_seqs, model.config.data.train_batch_size * rollout.n)
    at_once = under_way // 2
    while at_once > 1 and needed(at_once) > room:
        at_once //= 2
    return f"{begun}; try {at_once}" if at_once else f"{begun}; try a smaller data.max_prompt_length or a smaller model"


def format_bytes(size: int) -> str:
    """`3.1 GiB`, or in MiB where it is less than one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _value(config: Config, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node
