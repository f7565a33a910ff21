"""The memory model: what is saved for the backward pass is counted on transformers' models, and sentences name what fits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from r1ranker.model.attention import PACKED, register_packed
from r1ranker.model.loading import checkpoint_activations
from r1ranker.model.value import ValueModel
from r1ranker.rollout.hf_packed import is_packed
from r1ranker.trainer.batch.chains import chain, count_row_tokens
from r1ranker.trainer.batch.packing import pack
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.memory.estimate import SUMMING_SHARE, MemoryModel, total_bytes
from r1ranker.trainer.memory.out_of_memory import Shortage, explain_generation, explain_pass
from r1ranker.trainer.memory.shape import (
    ModelShape,
    load_shape,
    saved_by_block,
    saved_bytes,
    saved_outside,
    value_parameters,
)

CPU = torch.device("cpu")
COMMON = {"vocab_size": 300, "max_position_embeddings": 128}
SHAPES: dict[str, PretrainedConfig] = {
    "qwen2, grouped, tied": Qwen2Config(
        hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        tie_word_embeddings=True, **COMMON,
    ),
    "llama, untied": LlamaConfig(
        hidden_size=64, intermediate_size=144, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        tie_word_embeddings=False, **COMMON,
    ),
    "qwen3, wide heads": Qwen3Config(
        hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, **COMMON,
    ),
}  # fmt: skip


def group(prompt: int = 20, response: int = 9, samples: int = 3, seed: int = 0) -> list[Trajectory]:
    random = np.random.default_rng(seed)
    ids = random.integers(0, 300, prompt).tolist()
    return [
        Trajectory(ids, random.integers(0, 300, response).tolist(), np.zeros(response), "stop", seed)
        for _ in range(samples)
    ]


def counted(
    config: PretrainedConfig, dtype: torch.dtype, share: bool = True, checkpointing: bool = False
) -> tuple[int, int]:
    """Bytes that autograd saves of a pass over two groups, but for parameters and predicting states; and the row's tokens."""
    register_packed()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED).to(dtype)
    if checkpointing:
        checkpoint_activations(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = pack([*group(), *group(seed=1)], share)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.base_model(use_cache=False, **batch.model_inputs()).last_hidden_state[0][batch.predicting]
        model.get_output_embeddings()(states)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return found - (states.nbytes + batch.predicting.nbytes), batch.input_ids.shape[1]


@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "one by one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_autograd_saves_is_what_the_formula_says(name: str, dtype: torch.dtype, share: bool) -> None:
    shape = ModelShape.from_config(SHAPES[name])
    found, tokens = counted(SHAPES[name], dtype, share)
    states = dtype.itemsize * shape.hidden
    assert found == tokens * (saved_bytes(shape, dtype.itemsize, checkpointing=False, copies_output=not share) - states)


@pytest.mark.parametrize("name", ["qwen2, grouped, tied", "llama, untied"])
def test_with_checkpointing_the_input_of_each_block_is_left(name: str) -> None:
    shape = ModelShape.from_config(SHAPES[name])
    found, tokens = counted(SHAPES[name], torch.float32, checkpointing=True)
    block = saved_by_block(shape, 4)
    rotary = 2 * 4 * shape.head_width  # held for the blocks' second pass, but not by autograd
    assert found == tokens * (saved_bytes(shape, 4, checkpointing=True) - block - rotary - 4 * shape.hidden)
    assert saved_bytes(shape, 4, checkpointing=False) == shape.layers * block + saved_outside(shape, 4)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name: str) -> None:
    shape = ModelShape.from_config(SHAPES[name])
    model = AutoModelForCausalLM.from_config(SHAPES[name])
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert value_parameters(shape) == sum(parameter.numel() for parameter in ValueModel(model).parameters())


def config_of(model: str, *overrides: str) -> Config:
    return load_config(
        "quickstart",
        ["data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={model}", f"critic.model.path={model}", *overrides],
    )  # fmt: skip


def test_a_packed_output_layer_that_is_the_embedding_is_there_twice(tiny_model: str, untied_model: str) -> None:
    for model, tied in ((tiny_model, True), (untied_model, False)):
        shape = load_shape(model)
        assert shape.is_tied == tied
        packed = tied and is_packed(torch.bfloat16, shape.hidden)
        for dtype, on_gpu, twice in (("bfloat16", False, packed), ("bfloat16", True, False), ("float32", False, False)):
            config = config_of(model, "actor_rollout_ref.rollout.name=hf", f"actor_rollout_ref.model.dtype={dtype}")
            width = 2 if dtype == "bfloat16" else 4
            whole = width * (shape.parameters + twice * shape.vocabulary * shape.hidden)
            assert MemoryModel.of(config, on_gpu, 2**33).engine() == {"engine: weights": whole}


def test_an_engine_that_sleeps_is_there_while_it_generates_alone(tiny_model: str) -> None:
    for name, on_gpu, sleeps in (("hf", False, True), ("hf", True, True), ("vllm", False, False), ("vllm", True, True)):
        for frees in (True, False):
            key = f"actor_rollout_ref.rollout.free_cache_engine={str(frees).lower()}"
            model = MemoryModel.of(config_of(tiny_model, f"actor_rollout_ref.rollout.name={name}", key), on_gpu, 2**33)
            assert "engine: weights" in model.generation()
            assert ("engine: weights" in model.resident()) == (not (sleeps and frees))


def test_logits_count_in_their_own_type_and_those_of_a_learning_entropy_in_float32(tiny_model: str) -> None:
    def of(*overrides: str, constrain: str = "none", learning: bool = True, on_gpu: bool = True) -> int:
        config = config_of(tiny_model, f"actor_rollout_ref.rollout.constrain={constrain}", *overrides)
        return MemoryModel.of(config, on_gpu, 2**33).logits(10**9, learning)

    half, whole = "actor_rollout_ref.model.dtype=bfloat16", 2**28
    for dtype in (half, "actor_rollout_ref.model.dtype=float32"):
        assert of(dtype, learning=False) == whole + 4 * 2**26
        assert of(dtype, learning=False, on_gpu=False) == whole + 4 * 2**22
        assert of(dtype) == 2 * whole + 4 * 2**26
        assert of(dtype, constrain="candidates") == 3 * whole + 4 * 2**26
    learns = "actor_rollout_ref.actor.entropy_coeff=0.01"
    assert of(half, learns) == 7 * whole + whole // 2
    assert of("actor_rollout_ref.model.dtype=float32", learns) == 7 * whole


def test_shards_shrink_with_processes_and_offload_leaves_none_on_the_gpu(tiny_model: str) -> None:
    one = MemoryModel.of(config_of(tiny_model), on_gpu=True, device_bytes=2**33).resident()
    eight = config_of(tiny_model, "trainer.n_gpus_per_node=8", "trainer.executor=ray")
    assert MemoryModel.of(eight, True, 2**33).resident()["actor: Adam"] == pytest.approx(
        one["actor: Adam"] / 8, rel=0.01
    )
    away = config_of(tiny_model, "actor_rollout_ref.actor.fsdp_config.param_offload=true")
    assert not any(name.startswith("actor") for name in MemoryModel.of(away, True, 2**33).resident())
    assert (
        MemoryModel.of(away, False, 2**33).resident() == MemoryModel.of(config_of(tiny_model), False, 2**33).resident()
    )


def test_a_row_counts_a_shared_prompt_once_and_no_last_token() -> None:
    trajectories = [*group(), *group(seed=1)]
    for share in (True, False):
        assert count_row_tokens(chain(trajectories, share), share) == pack(trajectories, share).input_ids.shape[1]


ALLOCATIONS = {
    "asked on a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.50 GiB. GPU 0 has ..."), 7 * 2**29),
    "asked on the CPU": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
        4096,
    ),
    "asked by numpy": (MemoryError("Unable to allocate 2.00 MiB for an array with shape (1,)"), 2**21),
    "not said": (MemoryError(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_an_allocation_that_failed_is_recognised(name: str) -> None:
    error, asked = ALLOCATIONS[name]
    shortage = Shortage.of(error, CPU)
    assert shortage is not None
    assert shortage.asked == asked
    assert 0 <= shortage.free <= shortage.device_bytes


def test_other_errors_are_no_shortage() -> None:
    assert Shortage.of(RuntimeError("shape mismatch"), CPU) is None
    assert Shortage.of(ValueError("out of memory"), CPU) is None


def test_the_budget_that_is_proposed_is_the_largest_that_fits(tiny_model: str) -> None:
    model = MemoryModel.of(config_of(tiny_model), False, 2**40)
    needed = total_bytes(model.updating_actor(16000))
    shortage = Shortage(asked=2**26, free=0, device_bytes=2**40)
    said = explain_pass("update_policy", model, 16000, shortage)
    assert said.startswith(
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu: found 16384; the update of the actor ran out"
    )
    assert "micro-batch of 16000 tokens (asked for 64 MiB, device has 1024.0 GiB, 0 MiB free)" in said
    proposed = int(said.rpartition(" ")[2])
    assert proposed % 256 == 0
    assert (
        total_bytes(model.updating_actor(proposed))
        <= needed - 2**26
        < total_bytes(model.updating_actor(proposed + 256))
    )


def test_offloaded_gradients_are_summed_on_a_gpu_that_has_room(tiny_model: str) -> None:
    offload = "actor_rollout_ref.actor.fsdp_config.param_offload=true"
    update = "update of the actor"
    roomy = MemoryModel.of(config_of(tiny_model, offload), True, 2**40)
    assert roomy.sums_on_gpu() == {"actor"}
    whole = roomy.moments()[update]["actor: gradients"]
    assert whole == 4 * roomy.actor.parameters
    least = int(total_bytes(roomy.moments()[update]) / SUMMING_SHARE)
    assert replace(roomy, device_bytes=least + 2).sums_on_gpu() == {"actor"}
    tight = replace(roomy, device_bytes=least - 2)
    assert tight.sums_on_gpu() == set()
    assert total_bytes(roomy.moments()[update]) - total_bytes(tight.moments()[update]) == whole
    for config, on_gpu in ((config_of(tiny_model), True), (config_of(tiny_model, offload), False)):
        assert MemoryModel.of(config, on_gpu, 2**40).sums_on_gpu() == set()


def test_where_no_budget_fits_other_cures_are_named(tiny_model: str) -> None:
    model = MemoryModel.of(config_of(tiny_model), True, 2**20)
    said = explain_pass("update_policy", model, 16000, Shortage(2**20, 0, 2**20))
    for cure in (
        "enable_gradient_checkpointing=true",
        "param_offload=true",
        "n_gpus_per_node",
        "data.max_prompt_length",
    ):
        assert cure in said
    assert "one sequence of 1088 tokens" in said


def test_the_key_in_force_is_named(tiny_model: str) -> None:
    own = config_of(tiny_model, "algorithm.adv_estimator=gae", "critic.ppo_max_token_len_per_gpu=4096")
    shortage = Shortage(2**20, 0, 2**40)
    assert explain_pass("values", MemoryModel.of(own, False, 2**40), 4000, shortage).startswith(
        "critic.ppo_max_token_len_per_gpu: found 4096; the critic's pass"
    )
    assert explain_pass("reference", MemoryModel.of(own, False, 2**40), 4000, shortage).startswith(
        "actor_rollout_ref.actor."
    )


def test_generation_is_told_how_many_responses_at_once(tiny_model: str) -> None:
    for name, on_gpu, key in (("hf", False, "max_num_seqs"), ("vllm", True, "gpu_memory_utilization")):
        model = MemoryModel.of(config_of(tiny_model, f"actor_rollout_ref.rollout.name={name}"), on_gpu, 2**34)
        said = explain_generation(model, Shortage(2**20, 0, 2**34))
        assert said.startswith(f"actor_rollout_ref.rollout.{key}: found ")
        assert "; try " in said


def test_the_limits_of_a_process_bound_its_memory() -> None:
    script = (
        "import resource, torch; from r1ranker.device import device_memory; "
        "resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30)); "
        "free, size = device_memory(torch.device('cpu')); print(size, free)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    size, free = map(int, done.stdout.split())
    assert 0 < free < size <= 3 * 2**30
