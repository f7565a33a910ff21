"""Host memory of runs on GPUs: the published run's bytes, what FSDP2 really holds of its shape, and the refusal of what cannot fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from fake_processes import process
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from r1ranker.errors import UserError
from r1ranker.model.fsdp import local_shard, shard
from r1ranker.model.policy_model import PolicyModel
from r1ranker.trainer.checkpoint.shards import PIECE_BYTES
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.memory.estimate import MemoryModel, total_bytes
from r1ranker.trainer.memory.host import HostMemory
from r1ranker.trainer.memory.report import Device, refuse_misfit

GiB = 2**30
SHAPES: dict[str, dict[str, Any]] = {
    "3B": {
        "hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "num_attention_heads": 16,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936,
    },
    "7B": {
        "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
    },
}  # fmt: skip
"""of Qwen2.5"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> directory with a config and no weights."""
    directory = tmp_path_factory.mktemp("shapes")
    for name, sizes in SHAPES.items():
        Qwen2Config(**sizes).save_pretrained(directory / name)
    return {name: str(directory / name) for name in SHAPES}


def published(path: str, *overrides: str) -> Config:
    models = [f"{role}.model.path={path}" for role in ("actor_rollout_ref", "critic")]
    return load_config("published", ["data.train_files=x", "data.val_files=x", *models, *overrides])


def on_gpus(path: str, *overrides: str, gpu: int = 80) -> MemoryModel:
    return MemoryModel.of(published(path, *overrides), True, gpu * GiB)


def test_shards_of_a_3b_model_over_four_processes_are_those_that_are_counted(shapes: dict[str, str]) -> None:
    with process(0, 4):
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shapes["3B"]))
        model.tie_weights()
        module = PolicyModel(model)
        shard(module, module.layers, torch.device("cpu"), 4, True, torch.bfloat16)
        held = sum(local_shard(parameter)[0].numel() for parameter in module.parameters())
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert held == 771_484_672
    assert on_gpus(shapes["3B"]).shards(4 * held) == 4 * held


def test_the_published_run_of_3b_takes_what_its_models_are_made_of(shapes: dict[str, str]) -> None:
    host = HostMemory(on_gpus(shapes["3B"]))
    numbers = 4 * 771_484_672
    moments = host.moments()
    highest = max(moments.values(), key=total_bytes)
    own = ("python and torch", "driver")
    models = sum(size for part, size in highest.items() if part not in own)
    # two models that learn: weights and two moments of each, gradients of one; the reference in bfloat16
    assert models == pytest.approx(numbers * (2 * 12 + 4 + 2), rel=1e-4)
    assert models < 95e9
    assert highest["state being written"] == 0  # from where it rests
    assert total_bytes(moments["saving the actor"]) - total_bytes(moments["generation"]) <= 2e9
    # no model is whole while it is loaded
    assert total_bytes(moments["loading"]) < numbers * (4 + 4 + 2) + 8e9


def test_what_is_not_offloaded_is_not_on_the_host(shapes: dict[str, str]) -> None:
    away = [
        f"{role}.fsdp_config.{part}_offload=false"
        for role in ("actor_rollout_ref.actor", "critic.model") for part in ("param", "grad", "optimizer")
    ]  # fmt: skip
    here = HostMemory(on_gpus(shapes["3B"], *away, "actor_rollout_ref.ref.fsdp_config.param_offload=false"))
    assert total_bytes(here.resident()) == total_bytes(
        {name: here.resident()[name] for name in ("python and torch", "driver")}
    )
    assert not any("gradients" in part for parts in here.moments().values() for part in parts)
    assert here.moments()["update of the actor"]["state being written"] == 4 * PIECE_BYTES <= 2e9
    gpu = here.model.resident()
    assert gpu["reference: weights"] == gpu["actor: weights"] // 2


def test_a_model_in_float32_rests_so(shapes: dict[str, str]) -> None:
    exact = HostMemory(on_gpus(shapes["3B"], "actor_rollout_ref.model.dtype=float32")).resident()
    assert exact["reference: weights"] == exact["actor: weights"]


def test_what_cannot_fit_is_refused_with_what_to_change(shapes: dict[str, str]) -> None:
    large = Device(1024 * GiB)
    refuse_misfit(on_gpus(shapes["3B"]), Device(80 * GiB), large)
    for model, gpu, host, words in (
        (on_gpus(shapes["7B"], gpu=39), 39, 1024, r"gpu_memory_utilization: found 0\.4; .* take 15\.\d GiB of a GPU's 39\.0 GiB; try 0\.41"),
        (on_gpus(shapes["7B"], gpu=16), 16, 1024, r"of a GPU's 16\.0 GiB; try a larger tensor_model_parallel_size"),
        (on_gpus(shapes["3B"]), 80, 64, r"host memory: \d\d\.\d GiB are needed \(update of the critic\), and there are 64\.0 GiB; try less offload where the GPUs have room, more machines"),
        (
            on_gpus(shapes["3B"], "actor_rollout_ref.model.enable_gradient_checkpointing=false", gpu=40), 40, 1024,
            r"a GPU: \d\d\.\d GiB are needed .*; try actor_rollout_ref.model.enable_gradient_checkpointing=true, a smaller",
        ),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            refuse_misfit(model, Device(gpu * GiB), Device(host * GiB))


def test_a_rollout_of_its_own_that_cannot_fit_is_refused(shapes: dict[str, str]) -> None:
    apart = ("placement=separate", "n_workers=1", "name=hf")
    model = on_gpus(shapes["3B"], *(f"actor_rollout_ref.rollout.{one}" for one in apart), gpu=11)
    assert max(map(total_bytes, model.moments().values())) < 11 * GiB
    with pytest.raises(UserError, match=r"a GPU: .* \(rollout process\)"):
        refuse_misfit(model, Device(11 * GiB), Device(1024 * GiB))


def test_a_cpu_run_counts_all_processes_of_the_machine(shapes: dict[str, str]) -> None:
    model = MemoryModel.of(published(shapes["3B"]), False, 64 * GiB)
    with pytest.raises(
        UserError, match=r"host memory: \d+\.\d GiB are needed \(.*4 processes and the driver together\)"
    ):
        refuse_misfit(model, Device(64 * GiB), Device(64 * GiB))


def test_more_memory_than_is_free_now_is_said_and_not_refused() -> None:
    assert Device(10, 4).judge(3) == "fits"
    assert Device(10, 4).judge(5) == "more than is free now"
    assert Device(10, 4).judge(11) == "does not fit"
    assert Device(10).judge(10) == "fits"
