"""A model is used only where it is computed here as transformers computes it; every command says the same of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from r1ranker.errors import UserError
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.model import attention
from r1ranker.model.attention import packed_attention
from r1ranker.model.layout import RowLayout
from r1ranker.model.twin import build_twin, narrow_config
from r1ranker.ranking.ranker import Ranker
from r1ranker.rollout import agreement
from r1ranker.rollout.agreement import check_architecture, find_fault
from r1ranker.trainer.batch.balance import load_pass_cost
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.dry_run import dry_run
from r1ranker.trainer.fit import fit
from r1ranker.trainer.memory.shape import load_shape
from r1ranker.trainer.sft import fine_tune

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import model_types

VERDICTS = model_types.read_table(model_types.PAGE.read_text(encoding="utf-8"))
THIRD = model_types.TYPES[::3]
KNOWN_GOOD = (
    *(
        "llama",
        "mistral",
        "mixtral",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen2_moe",
        "qwen3_moe",
    ),
    *("cohere", "granite", "glm4", "olmo2", "smollm3", "gpt_neox", "exaone4", "deepseek_v3"),
)
LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
CONVOLUTIONS = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}


def test_the_page_has_every_type_of_the_installed_transformers() -> None:
    assert list(VERDICTS) == sorted(model_types.TYPES)
    assert model_types.__version__ in model_types.PAGE.read_text(encoding="utf-8")
    assert (
        model_types.read_table(f"{model_types.BEGIN}\n{model_types.render_table(VERDICTS)}{model_types.END}")
        == VERDICTS
    )


@pytest.mark.parametrize("name", sorted({*THIRD, *KNOWN_GOOD}))
def test_a_third_of_the_types_are_as_the_page_says(name: str) -> None:
    assert model_types.try_type(name) == VERDICTS[name]
    if name in KNOWN_GOOD:
        assert VERDICTS[name] == (model_types.AGREES, "")


@pytest.mark.parametrize("name", [*KNOWN_GOOD, "emu3", "gemma4_text", "solar_open", "jetmoe", "longcat_flash"])
def test_the_plans_of_a_run_know_the_widths_of_every_type_that_agrees(name: str, tmp_path: Path) -> None:
    assert VERDICTS[name][0] == model_types.AGREES
    config = narrow_config(CONFIG_MAPPING[name](**model_types.SETTINGS.get(name, {})))
    config.save_pretrained(tmp_path)
    shape, cost = load_shape(str(tmp_path)), load_pass_cost(str(tmp_path))
    assert shape.parameters == build_twin(config, "eager").num_parameters()
    assert 0 < cost.pair < 1
    assert 0 < cost.sampled < 1


def config_of(name: str, **settings: Any) -> PretrainedConfig:
    return CONFIG_MAPPING[name](**settings)


@pytest.mark.parametrize(
    ("hidden_size", "heads", "groups"),
    [(32, 1, 1), (96, 3, 3), (96, 3, 1), (40, 5, 5), (576, 9, 3), (12, 2, 1), (896, 14, 2)],
)
def test_models_of_any_number_of_heads_can_be_tried(hidden_size: int, heads: int, groups: int) -> None:
    sizes = {"hidden_size": hidden_size, "num_attention_heads": heads, "num_key_value_heads": groups}
    for name in ("qwen2", "llama"):
        assert find_fault(config_of(name, num_hidden_layers=2, **sizes)) is None


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("phi3", {"original_max_position_embeddings": 4096, "rope_scaling": LONG_ROPE, "max_position_embeddings": 131072}),
        ("phi3", {"original_max_position_embeddings": 4096, "rope_scaling": LONG_ROPE | {"partial_rotary_factor": 0.75},
                  "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 8192}}),
        ("llama", {"vocab_size": 90, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}),
    ],
)  # fmt: skip
def test_scaled_rotary_embeddings_and_small_vocabularies_can_be_tried(name: str, settings: dict[str, Any]) -> None:
    assert find_fault(config_of(name, num_hidden_layers=2, **settings)) is None


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("lfm2", CONVOLUTIONS, "layers of type Lfm2ShortConv"),  # convolutional
        ("qwen3_next", {"num_hidden_layers": 4}, "layers of type Qwen3NextGatedDeltaNet"),  # linear attention
        ("jamba", {"num_hidden_layers": 8}, "layers of type JambaMambaMixer"),  # recurrent
        (
            "stablelm",
            {"num_hidden_layers": 2},
            "layers of type StableLmDecoderLayer",
        ),  # keyword arguments not passed on
        ("gpt_oss", {"num_hidden_layers": 2}, "attends with sinks"),
        ("modernbert-decoder", {}, "layers of type ModernBertDecoderLayer"),  # a window that only its mask knows
        ("bloom", {}, "no list of transformer blocks named layers"),
    ],
)
def test_what_is_computed_otherwise_is_named(name: str, settings: dict[str, Any], named: str) -> None:
    fault = find_fault(config_of(name, **settings))
    assert fault is not None
    assert named in fault
    assert "\n" not in fault


def test_a_cap_that_is_dropped_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("gemma2", num_hidden_layers=2)
    assert find_fault(config) is None

    def uncapped(*arguments: Any, softcap: float | None = None, **others: Any) -> tuple[Tensor, None]:
        return packed_attention(*arguments, **others)

    monkeypatch.setattr(attention, "packed_attention", uncapped)
    assert "log-probabilities of sequences in one row differ" in (find_fault(config) or "")


def test_a_window_that_attention_is_not_told_of_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("mistral", num_hidden_layers=2, sliding_window=4096)
    assert find_fault(config) is None

    def unaware(*arguments: Any, sliding_window: int | None = None, **others: Any) -> tuple[Tensor, None]:
        return packed_attention(*arguments, **others)

    monkeypatch.setattr(attention, "packed_attention", unaware)
    assert "a window of attention goes unseen" in (find_fault(config) or "")


def test_values_narrower_than_keys_and_capped_scores_have_the_gradients_of_transformers_attention() -> None:
    layout = RowLayout.from_lengths([5, 3, 4], [-1, 0, 0])
    generator = torch.Generator().manual_seed(3)
    shapes = {"query": (4, 8), "key": (2, 8), "value": (2, 6)}
    tensors = {
        name: torch.randn(1, heads, 12, width, generator=generator, dtype=torch.float64).requires_grad_()
        for name, (heads, width) in shapes.items()
    }
    places = torch.tensor([*range(5), *range(5, 8), *range(5, 9)])
    segment = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    seen = ((segment[:, None] == segment) | (segment == 0)) & (places[:, None] >= places)
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.float64).masked_fill(~seen, -torch.inf)

    class Heads(torch.nn.Module):
        num_key_value_groups = 2

    for softcap in (None, 1.5):
        inputs = tuple(tensors.values())
        expected, _ = eager_attention_forward(Heads(), *inputs, mask, scaling=0.7, softcap=softcap)
        found, _ = packed_attention(Heads(), *inputs, None, layout=layout, scaling=0.7, softcap=softcap)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # the softmax there is in float32
        weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        gradients = [torch.autograd.grad((weights * one).sum(), inputs) for one in (found, expected)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def hybrid(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with short convolutions and a good tokenizer."""
    directory = tmp_path_factory.mktemp("hybrid") / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = narrow_config(config_of("lfm2", **CONVOLUTIONS))
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_every_command_refuses_the_same_models(hybrid: str, tiny_model: str, toy: Path, tmp_path: Path) -> None:
    rows = f"{toy}/iterative_ranking/train.parquet"
    settings = [f"data.train_files={rows}", f"data.val_files={rows}", f"trainer.default_local_dir={tmp_path}/run"]
    actor = load_config("quickstart", [*settings, f"actor_rollout_ref.model.path={hybrid}"])
    critic = load_config(
        "quickstart",
        [
            *settings,
            f"actor_rollout_ref.model.path={tiny_model}",
            f"critic.model.path={hybrid}",
            "algorithm.adv_estimator=gae",
        ],
    )
    options = EvaluationOptions(data=f"{toy}/bench", output_dir=f"{tmp_path}/results", engine="hf")
    lines = set()
    for refuse in (
        lambda: check_architecture(hybrid),
        lambda: dry_run(actor),
        lambda: dry_run(critic),
        lambda: fit(actor),
        lambda: fine_tune(hybrid, [f"{toy}/sft/train.parquet"], f"{tmp_path}/base"),
        lambda: run_evaluation("Rec-Movie", hybrid, options, show=False),
        lambda: Ranker.from_pretrained(hybrid),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        lines.add(str(refused.value))
    (line,) = lines
    assert line.startswith(f"{hybrid}: a model of type lfm2 cannot be used: ")
    assert "layers of type Lfm2ShortConv" in line
    assert not (tmp_path / "base").exists()


def test_a_config_is_looked_at_once(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    looked: list[str] = []

    def count(config: PretrainedConfig) -> None:
        looked.append(config.model_type)

    monkeypatch.setattr(agreement, "find_fault", count)
    monkeypatch.setattr(agreement, "_faults", {})
    for path in (tiny_model, tiny_model, str(tmp_path / "copy")):
        check_architecture(path)
    assert looked == ["qwen2"]
    config = json.loads((tmp_path / "copy" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}), encoding="utf-8")
    check_architecture(str(tmp_path / "copy"))
    assert looked == ["qwen2", "qwen2"]


def test_a_twin_has_all_layers_of_the_model_and_the_same_weights_again() -> None:
    config = config_of("qwen2", num_hidden_layers=5)
    first, second = (build_twin(narrow_config(config), "eager") for _ in range(2))
    assert len(first.base_model.layers) == 5
    assert first.config.hidden_size < config.hidden_size == 4096
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
