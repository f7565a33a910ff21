"""rollout/hf_packed.py: packed weights give the bits that plain ones give, before and after others are brought in."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from processor import needs_avx, needs_bfloat16
from torch import nn

from r1ranker.model.loading import load_causal_lm
from r1ranker.rollout import hf
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.rollout.hf_packed import PackedLinear, PackedWeights, Stack

CPU = torch.device("cpu")
REQUESTS = [Request([5, 6, 7, 8] * length, seed=length) for length in (1, 2, 5)]


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


@needs_bfloat16
@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_packed_weights_give_the_same_bits(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = request.getfixturevalue(model)
    packed = start(directory)
    assert count_packed(packed) == 2 * 7 + 1  # the layers of two blocks, and the output layer
    assert complete(packed) == complete(plain(directory, monkeypatch))


@needs_bfloat16
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


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_an_engine_that_sleeps_holds_no_weights_and_takes_all_anew(
    model: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(model)
    awake, engine = start(directory, dtype), start(directory, dtype, synced=True)
    weights = load_causal_lm(directory, torch.float32, "eager").named_parameters()
    weights = {name: weight.detach() for name, weight in weights}
    engine.load_weights(weights.items())
    found = complete(engine)
    engine.sleep()
    engine.sleep()
    assert all(one.numel() == 0 for one in engine.model.parameters() if one.ndim > 1 and not one.is_meta)
    packed = [layer for layer in engine.model.modules() if isinstance(layer, PackedLinear)]
    assert bool(packed) == (dtype == "bfloat16")
    assert all(layer.stack._weight is None for layer in packed)
    with pytest.raises(RuntimeError, match="no weights were loaded"):
        complete(engine)
    some = dict(list(weights.items())[:-3])
    with pytest.raises(RuntimeError, match=f"no weights came for {min(weights.keys() - some.keys())}"):
        engine.load_weights(some.items())
    engine.load_weights(weights.items())
    assert found == complete(engine) == complete(awake)
    awake.sleep()  # its weights came from the directory, and nothing would bring them again
    assert found == complete(awake)


@needs_bfloat16
@pytest.mark.parametrize("some", ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_comes_alone_leaves_those_it_is_multiplied_with(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, some: str
) -> None:
    reference, engine = plain(tiny_model, monkeypatch), start(tiny_model)
    before, changed = complete(reference), {some: -3.0 * dict(reference.model.named_parameters())[some].detach()}
    reference.load_weights(changed.items())
    engine.load_weights(changed.items())
    assert complete(engine) == complete(reference) != before


@needs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_read_the_same_are_one_product_with_their_biases(bias: bool) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        plain, packed = ([nn.Linear(48, width, bias=bias).bfloat16() for width in (32, 16, 16)] for _ in range(2))
        stack = Stack(packed)
        for one, other in zip(packed, plain, strict=True):
            stack.put(one.place, other.weight)
            if bias:
                one.bias.copy_(other.bias)
        first, second = torch.randn(2, 1, 5, 48).bfloat16()
        # in any order, twice, and with another input in between
        for order, inputs in (
            ((0, 1, 2), (first,) * 3),
            ((2, 0, 1), (second,) * 3),
            ((1, 1, 0), (first, first, second)),
            ((0, 1, 2), (first, second, first)),
        ):
            for place, given in zip(order, inputs, strict=True):
                torch.testing.assert_close(packed[place](given), plain[place](given), atol=0.01, rtol=0.01)


@needs_bfloat16
def test_what_is_computed_once_is_not_kept_beyond_the_last_that_reads_it() -> None:
    packed = [nn.Linear(8, 8).bfloat16() for _ in range(2)]
    Stack(packed)
    with torch.inference_mode():
        given = torch.randn(1, 3, 8).bfloat16()
        products = [weakref.ref(layer(given)) for layer in packed]
        seen = weakref.ref(given)
        del given
    assert seen() is None
    assert [product() for product in products] == [None, None]


@needs_bfloat16
def test_weights_that_came_before_an_error_are_used(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some = "model.layers.0.self_attn.q_proj.weight"
    reference, engine = plain(tiny_model, monkeypatch), start(tiny_model)
    changed = -3.0 * dict(reference.model.named_parameters())[some].detach()

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield some, changed
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        engine.load_weights(broken())
    reference.load_weights([(some, changed)])
    assert complete(engine) == complete(reference)


def test_float32_is_left_where_a_model_is_narrow(tiny_model: str) -> None:
    assert count_packed(start(tiny_model, "float32")) == 0


@needs_avx
def test_packed_products_in_float32_are_those_in_float64() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        layers = [nn.Linear(256, width) for width in (64, 32)]
        exact = [nn.Linear(256, width).double() for width in (64, 32)]
        for layer, one in zip(layers, exact, strict=True):
            one.load_state_dict(layer.state_dict())
        Stack(layers)
        given = torch.randn(1, 16, 256)
        for layer, one in zip(layers, exact, strict=True):
            torch.testing.assert_close(layer(given).double(), one(given.double()), atol=1e-5, rtol=1e-5)
