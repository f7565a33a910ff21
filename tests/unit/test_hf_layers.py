"""rollout/hf_layers.py: blocks that decode in fewer calls give the bits of transformers' own, in every family they are there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processor import needs_avx, needs_bfloat16
from transformers import (
    AutoTokenizer,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from r1ranker.model.init import save_hf
from r1ranker.model.twin import build_twin
from r1ranker.rollout import hf
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.rollout.hf_layers import _Block

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
KNOWN = {
    "Llama": LlamaConfig(**SMALL),
    "Llama with biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=32),
    "Mistral": MistralConfig(**SMALL, sliding_window=None),
    "Qwen 2": Qwen2Config(**SMALL),
    "Qwen 3": Qwen3Config(**SMALL, head_dim=32),
}
OTHERS = {
    "a window": MistralConfig(**SMALL, sliding_window=128),
    "residuals by a factor": GraniteConfig(**SMALL, residual_multiplier=0.5),
}
WIDE = LlamaConfig(**SMALL | {"hidden_size": 256}, head_dim=64)


def start(config: PretrainedConfig, tiny_model: str, directory: Path, dtype: str = "bfloat16") -> HFEngine:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, trust_remote_code=False)
    config.vocab_size, config.eos_token_id, config.tie_word_embeddings = len(tokenizer), tokenizer.eos_token_id, False
    save_hf(str(directory), build_twin(config, "eager"), tokenizer)
    return HFEngine.from_pretrained(str(directory), torch.device("cpu"), EngineSettings(dtype=dtype))


def complete(engine: HFEngine) -> list[list[Completion]]:
    requests = [Request([5, 6, 7, 8] * length, seed=length) for length in (1, 2, 30)]
    return engine.generate(requests, SamplingParams(5, max_tokens=24))


@needs_bfloat16
@pytest.mark.parametrize("family", KNOWN)
def test_a_step_in_fewer_calls_gives_the_same_bits(
    family: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    decode = _Block.decode

    def watched(self: _Block, hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        steps.append(len(hidden))
        return decode(self, hidden, *others)

    monkeypatch.setattr(_Block, "decode", watched)
    fast = start(KNOWN[family], tiny_model, tmp_path / "fast")
    found = complete(fast)
    assert len(steps) >= 2 * 23
    assert max(steps) == 15
    monkeypatch.setattr(hf, "use_fast_layers", lambda _: None)
    plain = start(KNOWN[family], tiny_model, tmp_path / "plain")
    counted = len(steps)
    assert complete(plain) == found
    assert len(steps) == counted
    # as weights come for every layer while training, they are used from the next call on
    larger = [
        (name, 1.25 * weight.float()) for name, weight in build_twin(KNOWN[family], "eager", seed=1).named_parameters()
    ]
    fast.load_weights(larger)
    plain.load_weights(larger)
    assert complete(plain) == complete(fast) != found


@needs_bfloat16
def test_responses_that_end_earlier_change_nothing(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request([5, 6, 7, 8] * length, seed=length) for length in (1, 2, 5)]

    def found(directory: str) -> list[list[Completion]]:
        engine = start(KNOWN["Llama"], tiny_model, tmp_path / directory)
        engine._stop = set(range(0, 300, 20))
        return engine.generate(requests, SamplingParams(8, max_tokens=24))

    fast = found("fast")
    assert len({len(one.token_ids) for some in fast for one in some}) > 3
    monkeypatch.setattr(hf, "use_fast_layers", lambda _: None)
    assert found("plain") == fast


@needs_bfloat16
@pytest.mark.parametrize("family", OTHERS)
def test_blocks_that_compute_something_else_are_left(family: str, tiny_model: str, tmp_path: Path) -> None:
    engine = start(OTHERS[family], tiny_model, tmp_path / "model")
    assert not any(hasattr(module, "block") for module in engine.model.modules())


def test_narrow_models_in_float32_are_left(tiny_model: str, tmp_path: Path) -> None:
    engine = start(KNOWN["Llama"], tiny_model, tmp_path / "model", "float32")
    assert not any(hasattr(module, "block") for module in engine.model.modules())


@needs_avx
def test_in_float32_probabilities_are_those_of_transformers(tiny_model: str, tmp_path: Path) -> None:
    engine = start(WIDE, tiny_model, tmp_path / "model", "float32")
    assert sum(hasattr(module, "block") for module in engine.model.modules()) == 2
    reference = build_twin(WIDE, "eager")
    prompt = [5, 6, 7, 8] * 10
    for one in engine.generate([Request(prompt, seed=1)], SamplingParams(4, max_tokens=16))[0]:
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + one.token_ids])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), wanted, atol=2e-5, rtol=1e-4)
