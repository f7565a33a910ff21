"""What only a GPU shows: its attention kernel's numbers, and vLLM's sleep, constraints and tokens there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import requests_of
from torch import Tensor, nn

from r1ranker.model.attention import packed_attention, segmented_attention
from r1ranker.model.layout import RowLayout
from r1ranker.model.loading import load_causal_lm
from r1ranker.rollout.engine import EngineSettings, SamplingParams
from r1ranker.rollout.start import start_engine
from r1ranker.rollout.vllm import VLLMEngine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
DEVICE = torch.device("cuda:0")
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.mark.parametrize("heads", [(9, 3, 64), (16, 2, 128)])
@pytest.mark.parametrize(
    "layout",
    [
        RowLayout.from_lengths([500, 30, 700, 1]),
        RowLayout.from_lengths([400, 64, 30, 1, 300, 128], [-1, 0, 0, 0, -1, 4]),
    ],
    ids=["apart", "shared prompts"],
)
def test_the_kernel_agrees_with_float64(layout: RowLayout, heads: tuple[int, int, int]) -> None:
    queries, keys, width = heads
    layout = layout.to(DEVICE)
    length = layout.bounds[-1]
    generator = torch.Generator(DEVICE).manual_seed(0)
    halves: list[Tensor] = [
        torch.randn(1, count, length, width, device=DEVICE, generator=generator).bfloat16().requires_grad_()
        for count in (queries, keys, keys)
    ]
    doubles = [half.detach().double().requires_grad_() for half in halves]
    found, _ = packed_attention(nn.Module(), halves[0], halves[1], halves[2], None, layout=layout)
    query, key, value = doubles
    expected = segmented_attention(query, key, value, layout, None).transpose(1, 2)
    direction = torch.randn(found.shape, device=DEVICE, generator=generator).bfloat16()
    found.backward(direction)
    expected.backward(direction.double())

    def off(one: Tensor | None, other: Tensor | None) -> float:
        assert one is not None
        assert other is not None
        return float((one.double() - other).norm() / other.norm())

    assert off(found, expected) < 5e-3
    for half, double in zip(halves, doubles, strict=True):
        assert off(half.grad, double.grad) < 1e-2


def test_an_engine_keeps_constraints_and_comes_back_from_sleep(toy: Path, tiny_model: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; '.[gpu]' brings it")
    settings = EngineSettings(max_model_len=2048, max_num_seqs=64, gpu_memory_utilization=0.3, synced_weights=True)
    engine = start_engine("vllm", tiny_model, DEVICE, settings)
    assert isinstance(engine, VLLMEngine)
    weights = [
        (name, weight.detach())
        for name, weight in load_causal_lm(tiny_model, torch.bfloat16, "sdpa").named_parameters()
    ]
    asked = requests_of(engine.tokenizer, toy, 16)
    engine.load_weights(weights)
    first = engine.generate(asked, GREEDY)
    for (completion,) in first:
        assert all(token in allowed for token, allowed in zip(completion.token_ids, completion.allowed, strict=True))
    awake = torch.cuda.mem_get_info(DEVICE)[0]
    engine.sleep()
    assert torch.cuda.mem_get_info(DEVICE)[0] - awake > 0.2 * torch.cuda.mem_get_info(DEVICE)[1]
    with pytest.raises(RuntimeError, match="no weights"):
        engine.generate(asked, GREEDY)
    engine.load_weights(weights)
    again = engine.generate(asked, GREEDY)
    same = [one.token_ids == other.token_ids for (one,), (other,) in zip(first, again, strict=True)]
    assert sum(same) >= 12  # in bfloat16 near ties may fall either way
    engine.close()
