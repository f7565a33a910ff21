"""The variable-length kernel that GPUs take, called on the CPU: its contract on meta tensors, its numbers by a reference kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from r1ranker import errors
from r1ranker.model import attention
from r1ranker.model.attention import packed_attention, segmented_attention
from r1ranker.model.layout import RowLayout

LAYOUTS = {
    "apart": RowLayout.from_lengths([5, 1, 7]),
    "shared prompts": RowLayout.from_lengths([5, 3, 1, 4, 6, 2], [-1, 0, 0, -1, -1, 4]),
}
HEADS = {"a key head each": (4, 4), "grouped queries": (4, 2), "one key head": (4, 1)}


class OnGPU(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture(autouse=True)
def kernel_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No flash-attn, whatever is installed; nothing was noted before."""
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(errors, "_NOTED", set())
    attention._flash_kernel.cache_clear()
    yield
    attention._flash_kernel.cache_clear()


def scores_of(query: Tensor, key: Tensor, scale: float, right: int) -> Tensor:
    """[H, Q, K] products of [Q, H, D] and [K, H, D]; the mask is aligned at the ends, as flash attention has it."""
    products = torch.einsum("qhd,khd->hqk", query, key) * scale
    queries, keys = products.shape[1:]
    ahead = torch.arange(keys)[None] - torch.arange(queries)[:, None] - (keys - queries)
    return products if right < 0 else products.masked_fill(ahead > right, -torch.inf)


def check_contract(query: Tensor, key: Tensor, value: Tensor, bounds: list[Tensor], longest: list[int]) -> None:
    """What the CUDA kernel refuses, or reads past the end of."""
    for tensor, heads in ((query, query.shape[1]), (key, key.shape[1]), (value, key.shape[1])):
        assert tensor.dim() == 3
        assert tensor.dtype == query.dtype
        assert tensor.stride(-1) == 1
        assert tensor.shape[1:] == (heads, query.shape[2])
    assert query.shape[1] % key.shape[1] == 0
    for bound, most, rows in zip(bounds, longest, (query.shape[0], key.shape[0]), strict=True):
        assert bound.dtype == torch.int32
        assert bound.is_contiguous()
        assert len(bound) == len(bounds[0])
        assert (int(bound[0]), int(bound[-1])) == (0, rows)
        assert int(bound.diff().max()) == most


def segments(query: Tensor, key: Tensor, bounds: list[Tensor]) -> Iterator[tuple[slice, slice]]:
    for place in range(len(bounds[0]) - 1):
        yield slice(*bounds[0][place : place + 2].tolist()), slice(*bounds[1][place : place + 2].tolist())


def forward(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor, longest_query: int, longest: int,
    dropout: float, causal: bool, debug: bool, *, scale: float | None = None, window_size_left: int = -1,
    window_size_right: int = -1, **unused: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Flash attention's forward pass written out, in the signature of aten::_flash_attention_forward."""
    check_contract(query, key, value, [query_bounds, key_bounds], [longest_query, longest])
    assert (dropout, debug, window_size_left) == (0.0, False, -1)
    assert all(one is None for one in unused.values())
    q, k, v = widened(query, key, value)
    out, logsumexp = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for rows, keys in segments(query, key, [query_bounds, key_bounds]):
        scores = scores_of(q[rows], k[keys], scale or query.shape[2] ** -0.5, 0 if causal else window_size_right)
        logsumexp[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys])
    nothing = torch.empty(0)
    return out.to(query.dtype), logsumexp, torch.zeros(2, dtype=torch.uint64), nothing, nothing


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, query_bounds: Tensor,
    key_bounds: Tensor, longest_query: int, longest: int, dropout: float, causal: bool, state: Tensor, unused: Tensor, *,
    scale: float | None = None, window_size_left: int = -1, window_size_right: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Its backward pass from output and log-sum-exps; the gradients of query heads that share a key head are summed."""
    check_contract(query, key, value, [query_bounds, key_bounds], [longest_query, longest])
    assert grad.shape == out.shape == query.shape
    q, k, v = widened(query, key, value)
    grad, out, factor = grad.to(q.dtype), out.to(q.dtype), scale or query.shape[2] ** -0.5
    grads = [torch.zeros_like(one) for one in (q, k, v)]
    for rows, keys in segments(query, key, [query_bounds, key_bounds]):
        scores = scores_of(q[rows], k[keys], factor, 0 if causal else window_size_right)
        weights = (scores - logsumexp[:, rows, None]).exp()
        mean = (grad[rows] * out[rows]).sum(-1).T[:, :, None]
        of_scores = weights * (torch.einsum("qhd,khd->hqk", grad[rows], v[keys]) - mean) * factor
        grads[0][rows] = torch.einsum("hqk,khd->qhd", of_scores, k[keys])
        grads[1][keys] = torch.einsum("hqk,qhd->khd", of_scores, q[rows])
        grads[2][keys] = torch.einsum("hqk,qhd->khd", weights, grad[rows])
    summed = [one.unflatten(1, (key.shape[1], -1)).sum(2) for one in grads[1:]]
    return grads[0].to(query.dtype), summed[0].to(key.dtype), summed[1].to(key.dtype)


def widened(query: Tensor, *keys: Tensor) -> list[Tensor]:
    """In float32 or wider, with a key head for each query head."""
    kind = torch.promote_types(query.dtype, torch.float32)
    return [query.to(kind), *(one.to(kind).repeat_interleave(query.shape[1] // one.shape[1], 1) for one in keys)]


@pytest.fixture
def reference_kernel() -> Iterator[list[str]]:
    """torch's flash operators have a kernel for the CPU; gives the names of those that were called."""
    called: list[str] = []

    def counted(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            called.append(kernel.__name__)
            return kernel(*arguments, **named)

        return call

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", counted(forward), "CPU")
        library.impl("_flash_attention_backward", counted(backward), "CPU")
        yield called


def random_row(layout: RowLayout, heads: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Query, key and value [1, H, T, 32] as transformers hands them over: transposed views."""
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, layout.bounds[-1], count, 32, generator=draw).to(device, dtype).transpose(1, 2).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=draw).to(out.device, out.dtype))


def kernel_on(inputs: list[Tensor], layout: RowLayout, scale: float | None = None) -> Tensor:
    """The kernel's output [1, H, T, D]."""
    rows = [one[0].transpose(0, 1) for one in inputs]
    return attention._flash_kernel()(rows[0], rows[1], rows[2], layout, scale).transpose(0, 1)[None]


@pytest.mark.parametrize("heads", sorted(HEADS))
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_kernel_takes_bf16_rows_forward_and_backward_on_meta_tensors(name: str, heads: str) -> None:
    layout = LAYOUTS[name].to(torch.device("meta"))
    inputs = random_row(layout, HEADS[heads], torch.bfloat16, "meta")
    out = kernel_on(inputs, layout, 0.3)
    assert (out.shape, out.dtype, out.device.type) == (inputs[0].shape, torch.bfloat16, "meta")
    for gradient, of in zip(gradients(out, inputs), inputs, strict=True):
        assert (gradient.shape, gradient.dtype) == (of.shape, of.dtype)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("heads", sorted(HEADS))
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_kernel_computes_what_the_cpu_computes(
    name: str, heads: str, scale: float | None, reference_kernel: list[str]
) -> None:
    layout, inputs = LAYOUTS[name], random_row(LAYOUTS[name], HEADS[heads], torch.float64)
    found, expected = kernel_on(inputs, layout, scale), segmented_attention(*inputs, layout, scale)
    assert_close(found, expected)
    assert_close(gradients(found, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_attention_of_half_precision_on_a_gpu_is_by_the_kernel(name: str, reference_kernel: list[str]) -> None:
    layout, inputs = LAYOUTS[name], random_row(LAYOUTS[name], (4, 2), torch.bfloat16)
    query, key, value = (one.as_subclass(OnGPU) for one in inputs)
    out, weights = packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout)
    assert weights is None
    found = out.as_subclass(Tensor)
    assert (found.shape, found.dtype) == ((1, layout.bounds[-1], 4, 32), torch.bfloat16)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    expected = segmented_attention(*exact, layout, None).transpose(1, 2)
    assert_close(found.double(), expected, atol=2e-2, rtol=0)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, exact), strict=True):
        assert_close(ours.double(), theirs, atol=5e-2, rtol=0)
    assert reference_kernel == ["forward", "backward"]


FLASH_ATTN = """
from torch.nn.attention.varlen import varlen_attn

def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
):
    assert causal
    called.append(1)
    return varlen_attn(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale=softmax_scale, window_size=(-1, 0),
        enable_gqa=True,
    )

called = []
"""
BROKEN = {
    "built against another torch": "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')",
    "without its kernels": "import flash_attn_2_cuda_that_there_is_not",
    "without a library": "raise OSError('libcudart.so.12: cannot open shared object file')",
}


def put_flash_attn(source: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "flash_attn.py").write_text(source)
    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.syspath_prepend(directory)


def test_flash_attn_is_taken_where_it_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference_kernel: list[str]
) -> None:
    put_flash_attn(FLASH_ATTN, tmp_path, monkeypatch)
    layout = LAYOUTS["shared prompts"]
    inputs = random_row(layout, (4, 2), torch.float64)
    found = kernel_on(inputs, layout, 0.3)
    assert sys.modules["flash_attn"].called
    assert_close(found, segmented_attention(*inputs, layout, 0.3))


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_a_broken_flash_attn_is_said_and_torchs_kernel_taken(
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reference_kernel: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_flash_attn(BROKEN[how], tmp_path, monkeypatch)
    layout = LAYOUTS["shared prompts"]
    inputs = random_row(layout, (4, 2), torch.float64)
    assert_close(kernel_on(inputs, layout), segmented_attention(*inputs, layout, None))
    kernel_on(inputs, layout)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("note: flash-attn cannot be imported (")
    assert said.endswith("; attention is by the kernel that torch has")


def test_where_there_is_no_flash_attn_nothing_is_said(
    reference_kernel: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    layout = LAYOUTS["apart"]
    kernel_on(random_row(layout, (4, 2), torch.float64), layout)
    assert not capsys.readouterr().err
