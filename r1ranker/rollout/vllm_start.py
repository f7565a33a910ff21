"""Starting vLLM in this process: the environment that it reads and the arguments that it is given."""

from __future__ import annotations

import atexit
import gc
import glob
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from r1ranker.device import compute_dtype, device_memory
from r1ranker.pretrained import load_model_config
from r1ranker.rollout.context import load_context_length
from r1ranker.rollout.engine import USUAL_LENGTH, EngineSettings
from r1ranker.rollout.vllm_failure import raise_if_out_of_memory

if TYPE_CHECKING:
    import vllm

CPU_BLOCK = 32
"""tokens of a block of the prefix cache"""


BATCH_TOKENS = 8192
"""tokens computed at once, or as many as a sequence may have"""


def start_vllm(directory: str, device: torch.device, settings: EngineSettings) -> vllm.LLM:
    """vLLM over the model of a directory or hub id; raises RunError where memory does not suffice."""
    set_environment(settings)
    import vllm

    separate_compile_cache()
    if settings.tensor_parallel_size > 1:
        _name_shared_memory()
    memory = device_memory(device)
    start = vllm.LLM  # which imports the rest
    gc.collect()  # what is garbage by now must not be frozen with the rest
    gc.freeze()  # vLLM collects garbage five times as it starts: going through all that was imported takes two seconds
    try:
        return start(trust_remote_code=False, **engine_arguments(plain_path(directory), device, settings))
    except Exception as error:
        raise_if_out_of_memory(error, settings, device, memory)
        raise


def plain_path(directory: str) -> str:
    """A path of a model directory that vLLM finds weights under: it takes `[`, `*` and `?` in one for wildcards."""
    if glob.escape(directory) == directory or not os.path.isdir(directory):
        return directory
    holder = tempfile.mkdtemp(prefix="r1ranker-model-")
    atexit.register(shutil.rmtree, holder, ignore_errors=True)  # a link in it is deleted, and not followed
    link = os.path.join(holder, "model")
    os.symlink(os.path.abspath(directory), link)
    return link


def set_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads when it is imported and started."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # no binding of threads to cores: the trainer's processes share them
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if settings.tensor_parallel_size > 1:
        # like vLLM's own all-reduce it wants the GPUs of the other processes to be visible in this one
        os.environ["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"


def separate_compile_cache() -> None:
    """Where this process is one of several, give it a cache of compiled code of its own, unless the user has chosen one.

    Each process's engine takes itself for the first, and would write the same files: the table of what was compiled is
    written in place, and another process reads it half-written. Inductor's and Triton's directories follow this one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from vllm import envs

        own = os.path.join(envs.VLLM_CACHE_ROOT, "r1ranker", f"rank_{os.environ['RANK']}")
        os.environ.setdefault("VLLM_CACHE_ROOT", own)


def engine_arguments(directory: str, device: torch.device, settings: EngineSettings) -> dict[str, Any]:
    """What vllm.LLM is given."""
    on_cpu = device.type == "cpu"
    arguments: dict[str, Any] = {
        "model": directory,
        "load_format": "dummy" if settings.synced_weights and not _must_be_read(directory) else "auto",
        "dtype": str(compute_dtype(device, settings.dtype)).removeprefix("torch."),
        "max_model_len": max_model_len(directory, settings),
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "distributed_executor_backend": "external_launcher" if settings.tensor_parallel_size > 1 else "uni",
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enforce_eager": on_cpu or settings.enforce_eager,
        "enable_prefix_caching": True,
        # the CPU build cannot take back a seeded draw for a prompt that is only partly computed: prompts stay whole
        "enable_chunked_prefill": not on_cpu,
        "max_num_batched_tokens": max(max_model_len(directory, settings), BATCH_TOKENS),
        # log-probabilities of the distribution that is sampled from: after temperature and constraint
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,  # a question for probabilities has as many as the pool has candidates
        # the constraint of a token needs to know the one before it
        "async_scheduling": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # the CPU's worker takes part in a sleep and gives nothing back; vLLM refuses to be told of it
        "enable_sleep_mode": not on_cpu,
    }
    if on_cpu:
        # the CPU build's own are of 128 tokens, and only whole ones are found again
        arguments["block_size"] = CPU_BLOCK
    if settings.tensor_parallel_size > 1:
        # it looks the other processes' GPUs up among those that are visible here, and a process sees its own alone
        arguments["disable_custom_all_reduce"] = True
    if settings.constrained:
        from r1ranker.rollout.vllm_constraint import processor_for

        arguments["logits_processors"] = [processor_for(arguments)]
    return arguments


def max_model_len(directory: str, settings: EngineSettings) -> int:
    """Tokens of prompt and response that the engine holds: no more than the model has positions for."""
    asked = settings.max_model_len or USUAL_LENGTH
    return min(asked, load_context_length(directory) or asked)


def _must_be_read(directory: str) -> bool:
    """Whether only a model's weights tell if its output embedding is tied: its config says so, and yet there is one."""
    from vllm.transformers_utils.config import checkpoint_has_lm_head

    config = load_model_config(directory)
    return bool(getattr(config, "tie_word_embeddings", False) and checkpoint_has_lm_head(directory))


def _name_shared_memory() -> None:
    """Give the CPU build's shared memory a name of this run: by itself every run that we launch has the same."""
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    def arguments(self: ExecutorWithExternalLauncher) -> tuple[str, int, int]:
        # the process group is there already, so the address only serves as a name
        return f"tcp://joined:{os.environ['MASTER_PORT']}", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    ExecutorWithExternalLauncher._distributed_args = arguments


def remove_shared_memory() -> None:
    """Remove what the CPU build leaves behind of it."""
    for left in Path("/dev/shm").glob(f"{os.environ.get('MASTER_PORT')}-*-cpushm_*"):
        left.unlink(missing_ok=True)
