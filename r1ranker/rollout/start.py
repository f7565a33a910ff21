"""Starting a rollout engine by its name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from r1ranker.choices import AUTO, ENGINES
from r1ranker.errors import UserError, note, suggest

if TYPE_CHECKING:
    import torch

    from r1ranker.rollout.engine import Engine, EngineSettings


def find_engine(name: str) -> str:
    """The engine that a name stands for: `auto` is vllm where it is installed, else hf. Raises UserError for others."""
    if name not in (*ENGINES, AUTO):
        raise UserError(
            f"engine: found {name!r}{suggest(name, ENGINES)}; one of {', '.join((*ENGINES, AUTO))} is wanted"
        )
    return ("vllm" if find_spec("vllm") else "hf") if name == AUTO else name


def start_engine(name: str, directory: str, device: torch.device, settings: EngineSettings) -> Engine:
    """The engine over the model of a directory or hub id; `auto` takes vllm where it is installed, else hf.

    Raises UserError for a model that cannot be loaded, and for vllm where it is not installed; RunError where memory does
    not suffice for vllm.
    """
    asked, name = name, find_engine(name)
    if asked == AUTO:
        note(f"engine: {name}, which auto takes {'where vllm is installed' if name == 'vllm' else 'without vllm'}")
    if not settings.synced_weights:  # a trainer that hands weights over has looked already
        from r1ranker.rollout.agreement import check_architecture

        check_architecture(directory)
    if name == "hf":
        from r1ranker.rollout.hf import HFEngine

        return HFEngine.from_pretrained(directory, device, settings)
    if not find_spec("vllm"):
        raise UserError("engine vllm: it is not installed; pip install '.[cpu]' or '.[gpu]' brings it, or take hf")
    from r1ranker.rollout.vllm import VLLMEngine

    return VLLMEngine(directory, device, settings)
