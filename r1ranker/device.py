"""The one place that knows which accelerator there is; everything else takes a torch.device from here."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from r1ranker.choices import DTYPES
from r1ranker.errors import UserError, first_line

DEVICE_FILES = Path("/dev")


def has_gpu() -> bool:
    """Whether CUDA can be used."""
    return torch.cuda.is_available()


def pick_device(index: int = 0) -> torch.device:
    """The GPU of that index, made current, or the CPU where this machine has none or CUDA_VISIBLE_DEVICES hides them.

    Raises UserError where a GPU is there that torch cannot use.
    """
    if not has_gpu():
        if not _hidden() and _nvidia_devices():
            raise UserError(
                f"{_nvidia_devices()[0]}: a GPU that torch cannot use ({why_no_gpu()}); a torch built for its driver is "
                "wanted, or CUDA_VISIBLE_DEVICES= to run on the CPU"
            )
        return torch.device("cpu")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def why_no_gpu() -> str:
    """Why torch cannot use CUDA here, in its own words."""
    try:
        torch.cuda.init()
    except Exception as error:  # AssertionError of a CPU build, RuntimeError of a driver that is too old
        return first_line(error)
    return "torch sees no device"


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")  # the last is Slurm's word


def _nvidia_devices() -> list[Path]:
    """Device files of GPUs, whether or not a driver answers for them."""
    return sorted(file for file in DEVICE_FILES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name))


def count_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collective_backend(device: torch.device) -> str:
    """torch.distributed backend for tensors on `device`. CPU tensors of offloaded parameters need gloo beside nccl."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def compute_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """The type of that name; auto: bfloat16 on GPUs, float32 on the CPU. Raises UserError for another name."""
    if wanted not in DTYPES:
        raise UserError(f"dtype: found {wanted!r}; one of {', '.join(DTYPES)} is wanted")
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def is_usual_dtype(wanted: str) -> bool:
    """Whether `wanted` means the type that auto means on this machine."""
    device = torch.device("cuda" if has_gpu() else "cpu")
    return compute_dtype(device, wanted) == compute_dtype(device)


def synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bound_pinned_memory() -> None:
    """Have torch pin as many bytes of host memory as are asked for, and give them back.

    By itself it rounds each block up to a power of two, which makes offloaded weights and gradients of a 3B model half as
    large again, and keeps blocks that are freed. Blocks over this size are neither rounded nor kept, so a gradient's are
    pinned anew in each update. Has to be called before the first is pinned; what the user has set of pinned memory stays.
    """
    # torch takes the first of them that is set, and no other
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    name = next((name for name in names if os.environ.get(name)), names[-1])
    found = os.environ.get(name, "")
    if "pinned_max_" not in found:
        # not pinned_max_round_threshold_mb: torch 2.13 would hand a kept block out again for a larger size
        os.environ[name] = ",".join(filter(None, [found, "pinned_max_cached_size_mb:1"]))


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next allocation, where the C library can be told so (glibc).

    By itself it gives every large tensor back to the system, and a training step on the CPU spends a fifth of its time
    in being given zeroed pages again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: allocations up to 1 GiB come from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's end is given back where 2 GiB of it are free


def release_cached_memory(device: torch.device) -> None:
    """Give cached blocks back between generation and training, whose allocation sizes differ."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory_gib(device: torch.device) -> float:
    """Peak GPU memory of this process in GiB; on the CPU the most memory that it has been resident with."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "linux":  # ru_maxrss would count the process that started this one, too
        return _kibibytes(Path("/proc/self/status"))["VmHWM"] / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def side_stream(devices: Iterable[torch.device]) -> AbstractContextManager[Any]:
    """A block for another thread, whose work on the GPU among `devices` runs beside what is queued there from now on.

    What has been queued so far is done first. Without a GPU among them it does nothing.
    """
    device = next((one for one in devices if one.type == "cuda"), None)
    if device is None:
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def accelerator_random_state() -> torch.Tensor | None:
    """State [bytes] of the current GPU's random generator; None in a process that uses none, such as the driver of a cluster.

    To ask would open the GPU, and take memory from the process that works on it.
    """
    return torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def set_accelerator_random_state(state: torch.Tensor) -> None:
    """Put the current GPU's random generator where `state` was taken; nothing in a process that uses none."""
    if torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state)


def device_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU; on the CPU those of this machine that the container and `ulimit` leave this process.

    What torch has cached on a GPU is not free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    return _host_memory()


def _host_memory() -> tuple[int, int]:
    found = _kibibytes(Path("/proc/meminfo"))
    free, total = found["MemAvailable"], found["MemTotal"]
    bounds: list[tuple[int, int]] = []
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        bounds.append((int(limit), int((group / "memory.current").read_text())))
    own = _kibibytes(Path("/proc/self/status"))
    for kind, used in ((resource.RLIMIT_AS, own["VmSize"]), (resource.RLIMIT_DATA, own["VmData"])):
        limit_set = resource.getrlimit(kind)[0]
        if limit_set != resource.RLIM_INFINITY:
            bounds.append((limit_set, used))
    for most, used in bounds:
        free, total = min(free, max(0, most - used)), min(total, most)
    return free, total


def _kibibytes(file: Path) -> dict[str, int]:
    """Name -> bytes of the lines `Name:  123 kB`."""
    return {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", file.read_text(), re.MULTILINE)}
