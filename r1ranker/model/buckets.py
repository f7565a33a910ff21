"""Weights on their way from one process to another: as numpy arrays, several in a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

BUCKET_BYTES = 64 * 2**20
"""of weights that travel together to rollout processes of their own"""


def fill_buckets(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, np.ndarray]]:
    """The weights by name, in their order, in buckets of about BUCKET_BYTES; a larger weight ends its bucket."""
    bucket: dict[str, np.ndarray] = {}
    for name, weight in weights:
        bucket[name] = as_array(weight)
        if sum(array.nbytes for array in bucket.values()) >= BUCKET_BYTES:
            yield bucket
            bucket = {}
    if bucket:
        yield bucket


def as_array(weight: torch.Tensor) -> np.ndarray:
    """A weight as numpy, and so Ray without a copy, has it: bfloat16, which numpy does not know, as its 16 bits."""
    weight = weight.cpu()
    array: np.ndarray = (weight.view(torch.int16) if weight.dtype == torch.bfloat16 else weight).numpy()
    return array


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `as_array`."""
    weight = torch.from_numpy(array)
    return weight.view(torch.bfloat16) if weight.dtype == torch.int16 else weight
