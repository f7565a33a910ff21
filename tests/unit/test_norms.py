"""model/norms.py: the bits of transformers' own modules, and gradients of the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from r1ranker.model import norms
from r1ranker.model.norms import RootMeanSquare, use_fast_norms

EPS = 1e-5
SAME = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
OTHERS = (Gemma2RMSNorm, Olmo2RMSNorm, nn.LayerNorm, nn.RMSNorm)
DTYPES = (torch.float32, torch.bfloat16)


def normalise(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SAME)
def test_a_module_gives_the_same_bits_faster(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model = nn.ModuleList([kind(48, EPS)]).to(dtype)  # type: ignore[call-arg]
    with torch.no_grad():
        model[0].weight.copy_(some(48))
    x = some(2, 11, 48, seed=1).to(dtype)
    before = model[0](x)
    use_fast_norms(model)
    after = model[0](x)
    assert type(model[0]) is not kind
    assert isinstance(model[0], kind)
    assert "RootMeanSquare" in type(after.grad_fn).__name__
    assert torch.equal(after, before)
    assert after.dtype == before.dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_without_gradients_have_the_same_bits(dtype: torch.dtype) -> None:
    x, weight = some(3, 5, 48).to(dtype), some(48, seed=1).to(dtype)
    before = x.clone()
    assert torch.equal(norms.normalise(x, weight, EPS), RootMeanSquare.apply(x, weight, EPS))
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_computes_something_else_is_left(kind: type[nn.Module]) -> None:
    model = nn.ModuleList([kind(48, EPS)])  # type: ignore[call-arg]
    use_fast_norms(model)
    assert type(model[0]) is kind


def test_a_module_of_another_make_is_left() -> None:
    class OwnRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    model = nn.ModuleList([OwnRMSNorm()])
    use_fast_norms(model)
    assert type(model[0]) is OwnRMSNorm


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("block", [1, 96, 2**18])
def test_gradients_are_those_of_the_formula(
    dtype: torch.dtype, bound: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "BLOCK_NUMBERS", block)  # a row, two rows of five, all at once
    x, weight, upstream = some(5, 48).to(dtype), some(48, seed=1).to(dtype), some(5, 48, seed=2).to(dtype)
    own = [one.clone().requires_grad_() for one in (x, weight)]
    exact = [one.double().requires_grad_() for one in (x, weight)]
    out = RootMeanSquare.apply(*own, EPS)
    out.backward(upstream)
    expected = normalise(*exact)
    expected.backward(upstream.double())
    assert (out - expected).norm() < bound * expected.norm()
    for found, wanted in zip(own, exact, strict=True):
        assert found.grad.dtype == dtype
        assert (found.grad - wanted.grad).norm() < bound * wanted.grad.norm()


def test_a_frozen_weight_has_no_gradient() -> None:
    x, weight = some(5, 48).requires_grad_(), some(48, seed=1)
    RootMeanSquare.apply(x, weight, EPS).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
