"""A process's random states as JSON takes them: Python's, numpy's, torch's and the accelerator's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from r1ranker.device import accelerator_random_state, set_accelerator_random_state


def seed_everything(seed: int) -> None:
    """Begin this process's generators with `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_states() -> dict[str, Any]:
    """Where this process's generators stand."""
    name, words, *rest = np.random.get_state(legacy=True)
    accelerator = accelerator_random_state()
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(words).tolist(), *rest],
        "torch": torch.random.get_rng_state().numpy().tobytes().hex(),
        "accelerator": None if accelerator is None else accelerator.numpy().tobytes().hex(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put this process's generators where `states` were taken."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.random.set_rng_state(_bytes(states["torch"]))
    if states["accelerator"] is not None:
        set_accelerator_random_state(_bytes(states["accelerator"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray.fromhex(text), dtype=np.uint8))
