"""rollout/hf_packed.py: packed weights give the bits that plain ones give, before and after others are brought in."""

from __future__ import annotations

import pytest
import torch

from r1ranker.rollout import hf
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.rollout.hf_packed import PackedLinear, PackedWeights, is_supported

CPU = torch.device("cpu")
REQUESTS = [Request([5, 6, 7, 8] * length, seed=length) for length in (1, 2, 5)]


@pytest.fixture(autouse=True)
def bfloat16_is_multiplied() -> None:
    if not is_supported():
        pytest.skip("this processor has no instructions for bfloat16")


def start(directory: str, dtype: str = "bfloat16", synced: bool = False) -> HFEngine:
    return HFEngine.from_pretrained(directory, CPU, EngineSettings(dtype=dtype, synced_weights=synced))


def plain(directory: str, monkeypatch: pytest.MonkeyPatch) -> HFEngine:
    """An engine that packs nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(hf, "PackedWeights", lambda *_: PackedWeights())
        return start(directory)


def complete(engine: HFEngine) -> list[list[Completion]]:
    return engine.generate(REQUESTS, SamplingParams(3, max_tokens=12))


def count_packed(engine: HFEngine) -> int:
    return sum(isinstance(module, PackedLinear) for module in engine.model.modules())


@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_packed_weights_give_the_same_bits(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = request.getfixturevalue(model)
    packed = start(directory)
    assert count_packed(packed) == 2 * 7 + 1  # the layers of two blocks, and the output layer
    assert complete(packed) == complete(plain(directory, monkeypatch))


def test_weights_of_another_model_are_packed(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = plain(tiny_model, monkeypatch)
    larger = {name: 1.5 * weight.float() for name, weight in reference.model.named_parameters()}
    engine = start(tiny_model, synced=True)
    with pytest.raises(RuntimeError, match="no weights were loaded"):
        complete(engine)
    engine.load_weights(larger.items())
    before = complete(reference)
    reference.load_weights(larger.items())
    assert complete(engine) == complete(reference) != before


def test_float32_is_left(tiny_model: str) -> None:
    assert count_packed(start(tiny_model, "float32")) == 0
