"""Processes and GPUs: Ray's cluster is asked, not the driver; a CPU run where a GPU was meant is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from runs import config_of, overrides_of
from shared_ray import SharedRay

from r1ranker import device
from r1ranker.errors import UserError
from r1ranker.trainer.workers.cluster import RayWorkers
from r1ranker.trainer.workers.hosts import plan_trainer_hosts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def four_gpus(shared_ray: SharedRay) -> Iterator[None]:
    """A Ray that knows of four GPUs, on a machine without one."""
    with shared_ray.forking():
        ray.init(address="local", num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def ask(workers: RayWorkers, what: Any) -> list[Any]:
    """What a function finds in each process."""
    return ray.get([actor.__ray_call__.remote(what) for actor in workers._actors])


@pytest.mark.usefixtures("four_gpus")
def test_each_process_has_a_gpu_of_the_cluster_though_the_driver_sees_none(tiny_model: str) -> None:
    config = config_of(tiny_model, "trainer.executor=ray", "trainer.n_gpus_per_node=4")
    workers = RayWorkers(config, plan_trainer_hosts(config))
    try:
        assert not torch.cuda.is_available()
        assert workers.on_gpu
        assert sorted(ask(workers, lambda _: os.environ["CUDA_VISIBLE_DEVICES"])) == ["0", "1", "2", "3"]
    finally:
        workers.close()


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_that_torch_cannot_use_ends_a_run_in_a_line(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    overrides = overrides_of(toy, tiny_model, tmp_path, "trainer.executor=ray", "trainer.n_gpus_per_node=2")
    done = subprocess.run(
        [sys.executable, "-m", "r1ranker.cli", "train", "--config-name", "quickstart", *overrides],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "the GPU " in line
    assert "which torch cannot use (Torch not compiled with CUDA enabled)" in line
    assert "ray start --num-gpus=0" in line
    assert not (tmp_path / "actor").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "pinned_max_cached_size_mb:1"}),
        # torch reads the first that is set, and no other
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTORCH_ALLOC_CONF": "x:1"},
            {
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,pinned_max_cached_size_mb:1",
                "PYTORCH_ALLOC_CONF": "x:1",
            },
        ),
        (
            {"PYTORCH_ALLOC_CONF": "pinned_max_cached_size_mb:64"},
            {"PYTORCH_ALLOC_CONF": "pinned_max_cached_size_mb:64"},
        ),
    ],
)
def test_pinned_memory_is_bounded_where_torch_looks(
    before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    device.bound_pinned_memory()
    assert {name: os.environ[name] for name in names if name in os.environ} == after
    for name in names:
        monkeypatch.delenv(name, raising=False)


def test_a_device_file_without_a_torch_for_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    (tmp_path / "nvidiactl").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.pick_device() == torch.device("cpu")
    (tmp_path / "nvidia0").touch()
    with pytest.raises(UserError, match=r"nvidia0: a GPU that torch cannot use \(Torch not compiled with CUDA"):
        device.pick_device()
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert device.pick_device() == torch.device("cpu")
