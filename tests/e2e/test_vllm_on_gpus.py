"""The real vLLM as it runs on GPUs, by doubles on a CPU: sleeps that lose weights, its second model runner, starts that cannot succeed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; '.[cpu]' brings it")
needs_triton = pytest.mark.skipif(
    not find_spec("triton"), reason="Triton, whose interpreter is needed, is not installed"
)


def seen(case: str, environment: dict[str, str] | None = None, **arguments: Any) -> Any:
    """vllm_doubles.py's last line."""
    called = [sys.executable, str(Path(__file__).parent / "vllm_doubles.py"), case, json.dumps(arguments)]
    done = subprocess.run(
        called,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def with_head(model: str, directory: Path, factor: float) -> str:
    """A model whose config says that its output embedding is tied, and whose checkpoint holds one, `factor` times the other."""
    shutil.copytree(model, directory)
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = factor * weights["model.embed_tokens.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


CASES = ("tied", "tied bfloat16", "untied", "head twice", "head of its own")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cycles(
    toy: Path, tiny_model: str, untied_model: str, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Engines through sleeps and syncs, in a process that says it is the second of two."""
    directory = tmp_path_factory.mktemp("heads")
    models = [
        (tiny_model,),
        (tiny_model, "bfloat16"),
        (untied_model,),
        (with_head(tiny_model, directory / "head twice", 1.0),),
        (with_head(tiny_model, directory / "head of its own", -1.5),),
    ]
    second = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "XDG_CACHE_HOME": str(cache)}
    return dict(seen("cycles", second, toy=str(toy), cases=models))


@pytest.mark.parametrize("case", CASES)
def test_sleeping_and_syncing_leave_what_is_sampled(case: str, cycles: dict[str, Any]) -> None:
    one = cycles[case]
    assert one["dtype"] == ("torch.bfloat16" if "bfloat16" in case else "torch.float32")
    assert one["read"] == [one["expected"]] * 4
    assert one["synced"] == [one["expected"]] * 4


@pytest.mark.parametrize("case", CASES)
def test_weights_that_a_sleep_loses_are_missed_until_a_sync(case: str, cycles: dict[str, Any]) -> None:
    one = cycles[case]
    assert one["lost"] == [True] * 4  # the double loses them indeed
    assert len(one["refused"]) == 8
    assert all("no weights" in said for said in one["refused"])


@pytest.mark.parametrize("case", CASES)
def test_a_sync_that_leaves_a_weight_out_fails(case: str, cycles: dict[str, Any]) -> None:
    assert "layers.1.mlp.down_proj" in cycles[case]["short"]


@pytest.mark.usefixtures("cycles")
def test_what_one_of_several_processes_caches_is_its_own(cache: Path) -> None:
    written = {path.relative_to(cache / "vllm").parts[:2] for path in (cache / "vllm").rglob("*") if path.is_file()}
    assert written == {("r1ranker", "rank_1")}


@pytest.fixture(scope="module")
def second_runner(toy: Path, tiny_model: str) -> dict[str, Any]:
    """What vLLM's second model runner samples, its Triton kernels interpreted."""
    return dict(seen("second_runner", {"TRITON_INTERPRET": "1"}, toy=str(toy), model=tiny_model))


@needs_triton
def test_both_of_vllms_runners_decode_the_same_greedily(second_runner: dict[str, Any], cycles: dict[str, Any]) -> None:
    assert second_runner["second"]
    for found, expected in zip(second_runner["greedy"], cycles["tied"]["greedy"], strict=True):
        assert found[0] == expected[0]
        assert found[2] == expected[2]
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


@needs_triton
@pytest.mark.parametrize("kind", ["crowded", "synced"])
def test_the_second_runner_samples_the_same_in_a_small_cache_and_after_a_sync(
    kind: str, second_runner: dict[str, Any]
) -> None:
    assert second_runner["lost"]
    assert second_runner["resumed"]  # constrained responses that were given up and taken on again
    for found, expected in zip(second_runner[kind], second_runner["sampled"], strict=True):
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_an_engine_that_cannot_start_says_so_in_a_line(tiny_model: str, tmp_path: Path) -> None:
    wide = tmp_path / "wide"  # never loaded: what a token of it takes in the cache is what counts
    shutil.copytree(tiny_model, wide)
    config = json.loads((wide / "config.json").read_text())
    config |= {
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2**17,
    }
    (wide / "config.json").write_text(json.dumps(config))
    unset = {"VLLM_CPU_KVCACHE_SPACE": ""}
    none, much, long, share, fine = seen(
        "failures",
        cases=[
            {"model": tiny_model, "environment": {"VLLM_CPU_KVCACHE_SPACE": "0"}},
            {"model": tiny_model, "environment": {"VLLM_CPU_KVCACHE_SPACE": "100000"}},
            {
                "model": str(wide), "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
                "settings": {"max_model_len": 2**17, "synced_weights": True},
            },
            {"model": tiny_model, "environment": unset, "settings": {"gpu_memory_utilization": 1.0}},
            {"model": tiny_model, "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}},
        ],
    )  # fmt: skip
    begun = "VLLM_CPU_KVCACHE_SPACE: found {} (GiB); the engine cannot start: {}"
    assert none == begun.format(0, "nothing is left for its cache; try 1")
    assert much.startswith(begun.format(100000, ""))
    assert "GiB are free; try " in much
    assert long.startswith(
        begun.format(1, "its cache has 1.0 GiB, and one sequence of 131072 tokens needs 2.0 GiB; try 3, or data.")
    )
    assert share.startswith(begun.format(None, ""))
    assert fine == ""  # the failures before it left nothing behind
