"""What vLLM is started with on GPUs, and what is said where memory does not suffice: in vLLM's own words, from its own functions."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from r1ranker import errors
from r1ranker.errors import RunError
from r1ranker.rollout import start
from r1ranker.rollout.engine import EngineSettings

if not find_spec("vllm"):
    pytest.skip("vLLM is not installed; '.[cpu]' brings it", allow_module_level=True)

from r1ranker.rollout.vllm_failure import raise_if_out_of_memory
from r1ranker.rollout.vllm_start import engine_arguments, plain_path, separate_compile_cache, set_environment

GPU, CPU = torch.device("cuda"), torch.device("cpu")
GIB = 2**30


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def arguments_of(model: str, device: torch.device, **settings: Any) -> dict[str, Any]:
    # constraints have to be asked of vLLM itself, which knows of no GPU here
    return engine_arguments(model, device, EngineSettings(**{"max_model_len": 256, "constrained": False} | settings))


def test_weights_that_come_by_syncs_are_not_read(tiny_model: str) -> None:
    for device in (GPU, CPU):
        assert arguments_of(tiny_model, device, synced_weights=True)["load_format"] == "dummy"
        assert arguments_of(tiny_model, device)["load_format"] == "auto"


@pytest.mark.parametrize("name", ["[a] model", "model*", "what?", "[!x]", "Jürgen's (v=1)"])
def test_weights_are_found_whatever_the_path_is_called(name: str, tiny_model: str, tmp_path: Path) -> None:
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    shutil.copytree(tiny_model, tmp_path / name)
    path = plain_path(str(tmp_path / name))
    _, found, *_ = DefaultModelLoader(LoadConfig())._prepare_weights(path, None, None, False, None)
    (file,) = found
    assert Path(file).samefile(tmp_path / name / "model.safetensors")
    assert plain_path("some/[model]") == "some/[model]"  # a hub id


def test_the_type_is_the_settings(tiny_model: str) -> None:
    types = {
        ("auto", GPU): "bfloat16",
        ("auto", CPU): "float32",
        ("float32", GPU): "float32",
        ("bfloat16", CPU): "bfloat16",
    }
    for (wanted, device), expected in types.items():
        assert arguments_of(tiny_model, device, dtype=wanted)["dtype"] == expected


def test_several_gpus_do_without_what_looks_for_the_others(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs
    from vllm.distributed.device_communicators import custom_all_reduce

    monkeypatch.setitem(sys.modules, "vllm._C_stable_libtorch", ModuleType("kernels"))  # of the build for GPUs
    from vllm.platforms.cuda import CudaPlatform

    alone = EngineSettings(max_model_len=256, constrained=False)
    set_environment(alone)
    assert envs.VLLM_ALLREDUCE_USE_SYMM_MEM
    assert "disable_custom_all_reduce" not in engine_arguments(tiny_model, GPU, alone)
    together = EngineSettings(max_model_len=256, constrained=False, tensor_parallel_size=2)
    set_environment(together)
    assert not envs.VLLM_ALLREDUCE_USE_SYMM_MEM
    assert engine_arguments(tiny_model, GPU, together)["disable_custom_all_reduce"] is True
    # what would be looked up otherwise, with one GPU visible of a machine that has more
    os.environ["CUDA_VISIBLE_DEVICES"] = "3"
    monkeypatch.setattr(custom_all_reduce, "current_platform", CudaPlatform)
    assert CudaPlatform.logical_device_id_to_visible_device_id(0) == 0
    for rank in (0, 1):
        with pytest.raises(IndexError):
            custom_all_reduce._can_p2p(rank, 2)


def test_each_of_several_processes_has_a_compile_cache_of_its_own() -> None:
    from vllm import envs

    for name in ("VLLM_CACHE_ROOT", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    default = envs.VLLM_CACHE_ROOT
    roots = []
    for processes in (
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
    ):
        os.environ.pop("VLLM_CACHE_ROOT", None)
        os.environ.update(processes)
        separate_compile_cache()
        roots.append(envs.VLLM_CACHE_ROOT)
    assert roots == [default, default, f"{default}/r1ranker/rank_0", f"{default}/r1ranker/rank_1"]
    os.environ["VLLM_CACHE_ROOT"] = "/chosen"
    separate_compile_cache()
    assert envs.VLLM_CACHE_ROOT == "/chosen"


def too_little_free(utilization: float, free: float, total: float = 40.0) -> None:
    from vllm.config import CacheConfig
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.worker.utils import request_memory

    snapshot = MemorySnapshot(
        free_memory=int(free * GIB), total_memory=int(total * GIB), device="cuda:0", auto_measure=False
    )
    request_memory(snapshot, CacheConfig(gpu_memory_utilization=utilization))


def too_little_cache(available: float, needed: float, length: int, fitting: int) -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

    _check_enough_kv_cache_memory(int(available * GIB), lambda: int(needed * GIB), length, lambda _: fitting)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 40.00 GiB"
    )


def wrapped(call: Callable[..., None], *arguments: Any) -> None:
    try:
        call(*arguments)
    except ValueError as error:
        raise RuntimeError("Engine core initialization failed. See root cause above.") from error


SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization: found 0.4; the engine cannot start"
SAID = {
    (too_little_free, 0.4, 12.5): f"{SHARE}: it asks for 16.0 GiB, and 12.5 of the GPU's 40.0 GiB are free; try 0.3",
    (wrapped, too_little_free, 0.4, 12.5): f"{SHARE}: it asks for 16.0 GiB, and 12.5 of the GPU's 40.0 GiB are free; try 0.3",
    (too_little_free, 0.4, 1.0): f"{SHARE}: it asks for 16.0 GiB, and 1.0 of the GPU's 40.0 GiB are free; free some of it, or put "
    "the engine elsewhere",
    (too_little_cache, 0.5, 1.7, 6000, 1760): f"{SHARE}: its cache has 0.5 GiB, and one sequence of 6000 tokens needs 1.7 GiB; "
    "try 0.44",
    (too_little_cache, 0.5, 25.0, 90000, 1760): f"{SHARE}: its cache has 0.5 GiB, and one sequence of 90000 tokens needs 25.0 GiB; "
    "try data.max_prompt_length and data.max_response_length of 1760 tokens together, or a larger "
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    (too_little_cache, 0.0, 1.0, 6000, 0): f"{SHARE}: the model and what it computes leave nothing for its cache; try a value up to "
    "0.74 (what is free), a smaller actor_rollout_ref.rollout.max_num_seqs or a larger "
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    (out_of_memory,): f"{SHARE}: the GPU's memory ran out (30.0 of 40.0 GiB were free); try 0.3, a smaller "
    "actor_rollout_ref.rollout.max_num_seqs or a larger actor_rollout_ref.rollout.tensor_model_parallel_size",
}  # fmt: skip


@pytest.mark.parametrize("call", list(SAID))
def test_an_engine_that_has_too_little_memory_says_what_to_change(call: tuple[Any, ...]) -> None:
    function, *arguments = call
    with pytest.raises(Exception) as raised:
        function(*arguments)
    with pytest.raises(RunError) as refused:
        raise_if_out_of_memory(raised.value, EngineSettings(gpu_memory_utilization=0.4), GPU, (30 * GIB, 40 * GIB))
    assert str(refused.value) == SAID[call]


def test_another_failure_is_left_alone() -> None:
    raise_if_out_of_memory(
        ValueError("Model architectures ['X'] are not supported"), EngineSettings(), GPU, (30 * GIB, 40 * GIB)
    )
    raise_if_out_of_memory(
        ValueError("Model architectures ['X'] are not supported"), EngineSettings(), CPU, (30 * GIB, 40 * GIB)
    )


@pytest.mark.parametrize(
    ("found", "said"), [(None, "hf, which auto takes without vllm"), (1, "vllm, which auto takes where")]
)
def test_auto_says_which_engine_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: object, said: str
) -> None:
    monkeypatch.setattr(errors, "_NOTED", set())
    monkeypatch.setattr(start, "find_spec", lambda name: found)
    monkeypatch.setattr("r1ranker.rollout.hf.HFEngine.from_pretrained", lambda *arguments: "hf")
    monkeypatch.setattr("r1ranker.rollout.vllm.VLLMEngine", lambda *arguments: "vllm")
    started = start.start_engine("auto", "model", torch.device("cpu"), EngineSettings(synced_weights=True))
    assert f"note: engine: {started}, " in (err := capsys.readouterr().err)
    assert said in err
