"""Weights read by rows: each process of any number has exactly its share of what transformers loads whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_processes import process
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from r1ranker.errors import UserError
from r1ranker.model import weights
from r1ranker.model.attention import PACKED
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.export import write_model
from r1ranker.model.fsdp import local_shard
from r1ranker.model.loading import init_empty_causal_lm, load_causal_lm
from r1ranker.model.policy_model import PolicyModel
from r1ranker.model.value import ValueModel
from r1ranker.model.weights import locate_weights, match_parameters
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.memory.shape import load_shape

CPU = torch.device("cpu")


@pytest.fixture
def several_files(tiny_model: str, tmp_path: Path) -> str:
    """The tied model with its weights in bfloat16, over several files."""
    load_causal_lm(tiny_model, torch.bfloat16, "sdpa").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    for file in Path(tiny_model).glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return str(tmp_path / "model")


def assert_rows_of_the_whole(path: str, rank: int, world_size: int) -> None:
    whole = dict(load_causal_lm(path, torch.float32, PACKED).named_parameters())
    with process(rank, world_size):
        policy = ExecutionOptions(world_size).load(path, CPU, PolicyModel).language_model
        critic = ExecutionOptions(world_size).load(path, CPU, ValueModel)
        trunk = {f"model.{name}": one for name, one in critic.trunk.named_parameters()}
        assert set(trunk) == {name for name in whole if name.startswith("model.")}
        assert set(dict(policy.named_parameters())) == set(whole)
        for name, parameter in [*policy.named_parameters(), *trunk.items()]:
            assert isinstance(parameter, DTensor)
            rows, first = local_shard(parameter)
            assert rows.dtype == torch.float32
            torch.testing.assert_close(rows, whole[name][first : first + len(rows)], atol=0, rtol=0)
        assert (policy.lm_head.weight is policy.model.embed_tokens.weight) == ("lm_head.weight" not in whole)
        assert not critic.head.weight.to_local().any()
        assert all(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 3), (2, 3), (3, 4)])
@pytest.mark.parametrize("model", ["tiny_model", "untied_model", "several_files"])
def test_a_process_has_its_rows_of_the_whole(
    model: str, rank: int, world_size: int, request: pytest.FixtureRequest
) -> None:
    assert_rows_of_the_whole(request.getfixturevalue(model), rank, world_size)


def test_rows_are_read_in_pieces(untied_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "READ_BYTES", 1000)
    assert_rows_of_the_whole(untied_model, 1, 2)


def test_a_frozen_model_rests_in_the_type_it_is_computed_with(tiny_model: str) -> None:
    whole = dict(load_causal_lm(tiny_model, torch.bfloat16, PACKED).named_parameters())
    with process(1, 2):
        reference = ExecutionOptions(2, dtype="bfloat16", frozen=True).load(tiny_model, CPU, PolicyModel)
        for name, parameter in reference.language_model.named_parameters():
            rows, first = local_shard(parameter)
            assert not parameter.requires_grad
            torch.testing.assert_close(rows, whole[name][first : first + len(rows)], atol=0, rtol=0)


def test_a_process_of_sixty_four_runs_a_pass_forward_and_back(tiny_model: str) -> None:
    parameters = load_shape(tiny_model).parameters
    one = Trajectory([1, 2, 3], [4, 5, 6], np.full(3, -6.0), "stop", 0, advantages=np.ones(3), weights=np.full(3, 0.1))
    with process(63, 64):
        policy = Policy(tiny_model, CPU, 1.0, ExecutionOptions(64))
        assert sum(local_shard(parameter)[0].numel() for parameter in policy.module.parameters()) < parameters / 32
        assert len(policy.logprobs([[one]])[0][0]) == 3
        policy.accumulate_gradients([[one]], PolicyLoss(ClipRange(0.2, 0.2, 3.0)))
        for parameter in policy.module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.to_local().shape == parameter.to_local().shape


def with_tensors(model: str, path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """A copy of a model directory with other tensors."""
    shutil.copytree(model, path)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def test_a_tied_parameter_that_stands_twice_is_read_by_rows(tiny_model: str, tmp_path: Path) -> None:
    tensors = load_file(Path(tiny_model) / "model.safetensors")
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    path = with_tensors(tiny_model, tmp_path / "twice", twice)
    assert match_parameters(init_empty_causal_lm(path, torch.float32, PACKED), locate_weights(path), path) is not None
    assert_rows_of_the_whole(path, 1, 2)


def test_two_embeddings_where_one_is_meant_and_other_names_are_read_whole(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(Path(tiny_model) / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    # a trunk saved by itself, which transformers gives its prefix again
    trunk = {name.removeprefix("model."): one for name, one in tensors.items()}
    for kind, held in {"two": tensors | {"lm_head.weight": head}, "trunk": trunk}.items():
        path = with_tensors(tiny_model, tmp_path / kind, held)
        model = init_empty_causal_lm(path, torch.float32, PACKED)
        assert match_parameters(model, locate_weights(path), path) is None
        assert_rows_of_the_whole(path, 1, 2)
        assert "have to be converted" in capsys.readouterr().err


def test_a_damaged_or_missing_file_is_named(several_files: str) -> None:
    one, other, *_ = sorted(Path(several_files).glob("*.safetensors"))
    with process(0, 2):
        kept, tensors = one.read_bytes(), load_file(one)
        gone, _ = tensors.popitem()
        save_file(tensors, one)
        with pytest.raises(UserError, match=f"{one.name} holds no {gone}, which model.safetensors.index.json says"):
            ExecutionOptions(2).load(several_files, CPU, PolicyModel)
        one.write_bytes(kept)
        one.write_bytes(one.read_bytes()[:100])
        with pytest.raises(UserError, match=f"{one.name} is damaged"):
            ExecutionOptions(2).load(several_files, CPU, PolicyModel)
        other.unlink()
        with pytest.raises(UserError, match=f"no {other.name}, which model.safetensors.index.json names for"):
            ExecutionOptions(2).load(several_files, CPU, PolicyModel)
        (Path(several_files) / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(UserError, match=r"index.json: not an index of safetensors files \(KeyError"):
            ExecutionOptions(2).load(several_files, CPU, PolicyModel)


def test_a_hub_id_is_found_in_the_cache(several_files: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--someone--ranker" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(several_files, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    code = (
        "from r1ranker.model.weights import locate_weights; files = locate_weights('someone/ranker');"
        "print(len(files), len(set(files.values())), {file.parent.name for file in files.values()})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    ).stdout  # fmt: skip
    files = locate_weights(several_files)
    assert found.split(maxsplit=2)[:2] == [str(len(files)), str(len(set(files.values())))]
    assert snapshot.name in found


LOADING = """
import re, sys, torch, torch.distributed as dist
from pathlib import Path
from torch.testing._internal.distributed.fake_pg import FakeStore
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.policy_model import PolicyModel

def resident(kind):
    return int(re.search(rf"{kind}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
small, large = sys.argv[1:]
ExecutionOptions(4).load(small, torch.device("cpu"), PolicyModel)  # what every model takes
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
policy = ExecutionOptions(4).load(large, torch.device("cpu"), PolicyModel)
print(resident("VmHWM") - before)
"""


def test_loading_takes_a_share_of_the_model_not_all_of_it(tiny_model: str, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=30000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    for file in Path(tiny_model).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    whole = 4 * load_shape(str(tmp_path)).parameters
    assert whole > 150e6
    command = [sys.executable, "-c", LOADING, tiny_model, str(tmp_path)]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # a quarter stays, and at most a piece of a tensor is there beside it
    assert 0.2 * whole < taken < 0.25 * whole + weights.READ_BYTES + 10e6


def test_a_model_is_written_as_it_comes_in_files_of_a_bounded_size(
    untied_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(untied_model, torch.float32, PACKED)
    monkeypatch.setattr("r1ranker.model.export.FILE_BYTES", 50_000)
    write_model(tmp_path / "out", model, model.named_parameters(), torch.bfloat16)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 60_000 or len(load_file(file)) == 1 for file in files)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["Qwen2ForCausalLM"])
    for file in Path(untied_model).glob("tokenizer*"):
        shutil.copy(file, tmp_path / "out")
    again = load_causal_lm(str(tmp_path / "out"), torch.bfloat16, PACKED)
    for (name, found), (_, expected) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected.to(torch.bfloat16), atol=0, rtol=0, msg=name)
