"""Where vLLM has too little memory to start, one line says which setting to change, and to what."""

from __future__ import annotations

import math
import os
import re
import traceback
from collections.abc import Iterator

import torch

from r1ranker.errors import RunError
from r1ranker.rollout.engine import EngineSettings

SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_LENGTHS = "data.max_prompt_length and data.max_response_length"
_SPREAD = "actor_rollout_ref.rollout.tensor_model_parallel_size"
_LEAST = 0.05
"""of a GPU: with less no engine is worth trying"""

_NUMBER = r"([\d.]+)"
_NOT_FREE = re.compile(
    rf"\({_NUMBER}/{_NUMBER} GiB\) on (?:startup|kv cache allocation) is less than .*?{_NUMBER} GiB\)", re.DOTALL
)
_NO_CACHE = re.compile(r"No available memory for the cache blocks")
_SMALL_CACHE = re.compile(
    rf"max seq len \((\d+)\), \({_NUMBER} GiB KV cache is needed, .*? \({_NUMBER} GiB\)\."
    r"(?: Based on .*? model length is (\d+)\.)?",
    re.DOTALL,
)
_MEASURED_WRONG = re.compile(r"Error in memory profiling")
_OUT_OF_MEMORY = re.compile(r"out of memory", re.IGNORECASE)


def raise_if_out_of_memory(
    error: BaseException, settings: EngineSettings, device: torch.device, memory: tuple[int, int]
) -> None:
    """Raise RunError with the setting to change where vLLM could not start for want of memory; else nothing.

    `memory`: (free, total) bytes of the device, taken before the start.
    """
    text = "\n".join(str(one) for one in _chain(error))
    sentence = _on_cpu(text) if device.type == "cpu" else _on_gpu(text, settings, memory)
    if sentence is not None:
        for one in _chain(error):
            traceback.clear_frames(one.__traceback__)  # they hold what vLLM had allocated
        raise RunError(sentence) from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _on_gpu(text: str, settings: EngineSettings, memory: tuple[int, int]) -> str | None:
    found = settings.gpu_memory_utilization
    begun = f"{SHARE}: found {found}; the engine cannot start"
    most = _hundredths_below(memory[0] / memory[1])
    if said := _NOT_FREE.search(text):
        free, total, asked = (float(number) for number in said.groups())
        most = _hundredths_below(free / total)
        cure = f"try {most}" if most >= _LEAST else "free some of it, or put the engine elsewhere"
        return f"{begun}: it asks for {asked:.1f} GiB, and {free:.1f} of the GPU's {total:.1f} GiB are free; {cure}"
    if said := _SMALL_CACHE.search(text):
        tokens, needed, available, fitting = said.groups()
        missing = float(needed) - float(available) + 0.01  # both are rounded
        share = math.ceil(100 * (found + missing * 2**30 / memory[1])) / 100
        begun += f": its cache has {available} GiB, and one sequence of {tokens} tokens needs {needed} GiB"
        if share <= most:
            return f"{begun}; try {share}"
        shorter = f"{_LENGTHS} of {fitting} tokens together" if fitting else f"smaller {_LENGTHS}"
        return f"{begun}; try {shorter}, or a larger {_SPREAD}"
    if _NO_CACHE.search(text):
        higher = f"a value up to {most} (what is free), " if most > found else ""
        cures = f"{higher}a smaller actor_rollout_ref.rollout.max_num_seqs or a larger {_SPREAD}"
        return f"{begun}: the model and what it computes leave nothing for its cache; try {cures}"
    if _MEASURED_WRONG.search(text):
        return f"{begun}: another process gave GPU memory back while vLLM measured what there is; start again"
    if _OUT_OF_MEMORY.search(text):
        cures = f"{max(_LEAST, round(found - 0.1, 2))}, a smaller actor_rollout_ref.rollout.max_num_seqs or a larger {_SPREAD}"
        return f"{begun}: the GPU's memory ran out ({_gib(memory[0])} of {_gib(memory[1])} GiB were free); try {cures}"
    return None


def _on_cpu(text: str) -> str | None:
    found = os.environ.get(CPU_CACHE)
    begun = f"{CPU_CACHE}: found {found or None} (GiB); the engine cannot start"
    if said := _NOT_FREE.search(text):
        free, total, _ = said.groups()
        return f"{begun}: {free} of {total} GiB are free; try {max(1, math.floor(float(free) / 2))}"
    if said := _SMALL_CACHE.search(text):
        tokens, needed, available, fitting = said.groups()
        begun += f": its cache has {available} GiB, and one sequence of {tokens} tokens needs {needed} GiB"
        shorter = f", or {_LENGTHS} of {fitting} tokens together" if fitting else ""
        return f"{begun}; try {math.floor(float(needed)) + 1}{shorter}"
    if _NO_CACHE.search(text):
        return f"{begun}: nothing is left for its cache; try 1"
    return None


def _hundredths_below(share: float) -> float:
    """A little less than `share`: what is free now is not all free a moment later."""
    return math.floor(100 * share - 0.5) / 100


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
