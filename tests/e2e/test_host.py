"""The host's cores and memory: threads are shared out, and a machine that runs out of memory ends a run in a line."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import ray
import torch
from runs import config_of

from r1ranker.errors import RunError
from r1ranker.trainer.workers.cluster import RayWorkers, call_all, start_cluster


def ask(workers: RayWorkers, what: Any) -> list[Any]:
    """What a function finds in each process."""
    return ray.get([actor.__ray_call__.remote(what) for actor in workers._actors])


@pytest.mark.usefixtures("forking")
def test_where_host_memory_runs_out_the_run_ends_and_is_not_begun_again(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")  # which this machine is over by itself
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    config = config_of(tiny_model, "trainer.executor=ray", "trainer.n_gpus_per_node=2")

    def run() -> None:
        with start_cluster(config, 10) as cluster:
            while True:
                call_all(cluster, "end_step")

    with pytest.raises(RunError, match=r"host memory ran out \([\d.]+GB used / [\d.]+GB\)") as raised:
        run()
    assert type(raised.value) is RunError  # and no WorkerLostError, which is begun again


@pytest.mark.usefixtures("one_ray")
def test_processes_share_the_cores_of_their_machine(tiny_model: str) -> None:
    cores = len(os.sched_getaffinity(0))

    def threads_after_vllm(_: Any) -> int:
        from vllm.utils.torch_utils import set_torch_threads_for_runtime

        set_torch_threads_for_runtime()  # as its workers on GPUs do when they start
        return torch.get_num_threads()

    for processes in (1, 2):
        config = config_of(tiny_model, "trainer.executor=ray", f"trainer.n_gpus_per_node={processes}")
        with start_cluster(config, 10) as cluster:
            assert isinstance(cluster, RayWorkers)
            # Ray lets a process have one thread by itself
            assert ask(cluster, lambda _: os.environ["OMP_NUM_THREADS"]) == ["1"] * processes
            assert ask(cluster, lambda _: torch.get_num_threads()) == [max(1, cores // processes)] * processes
            if find_spec("vllm"):  # whose workers on GPUs leave one thread, unless the environment asks for a number
                assert ask(cluster, threads_after_vllm) == [max(1, cores // processes)] * processes
            # pinned memory is neither rounded up nor kept: by itself torch takes half as much again of a host
            assert (
                ask(cluster, lambda _: os.environ["PYTORCH_ALLOC_CONF"]) == ["pinned_max_cached_size_mb:1"] * processes
            )
            assert not cluster.on_gpu
