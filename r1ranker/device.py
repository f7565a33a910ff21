"""The one place that knows which accelerator there is; everything else takes a torch.device from here."""

from __future__ import annotations

import torch


def has_gpu() -> bool:
    """Whether CUDA can be used."""
    return torch.cuda.is_available()


def pick_device(index: int = 0) -> torch.device:
    """The GPU of that index, made current, or the CPU."""
    if not has_gpu():
        return torch.device("cpu")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def collective_backend(device: torch.device) -> str:
    """torch.distributed backend for tensors on `device`. CPU tensors of offloaded parameters need gloo beside nccl."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs, float32 on the CPU, where results are compared to 1e-6."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_cached_memory(device: torch.device) -> None:
    """Give cached blocks back between generation and training, whose allocation sizes differ."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory_gib(device: torch.device) -> float:
    """Peak GPU memory of this process in GiB; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
