"""Lengths: what a model holds, and that whatever is longer is refused in a line before anything starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from r1ranker.errors import UserError
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.model.attention import PACKED
from r1ranker.model.twin import build_twin, narrow_config
from r1ranker.pretrained import load_tokenizer
from r1ranker.ranking.lengths import longest_prompts
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.required_length import required_length
from r1ranker.rollout import start
from r1ranker.rollout.agreement import _draw, _packed_logprobs, _plain_logprobs
from r1ranker.rollout.context import check_fits, context_length, find_limit, load_context_length, steady_positions
from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.rollout.vllm_start import engine_arguments
from r1ranker.tasks.example import RankingExample
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.loop import Run
from r1ranker.trainer.sft import SFTSettings, fine_tune

CPU = torch.device("cpu")
LLAMA_3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LENGTHS: dict[str, tuple[PretrainedConfig, int | None]] = {
    "as stated": (Qwen2Config(max_position_embeddings=300), 300),
    "linear": (LlamaConfig(max_position_embeddings=2048, rope_scaling={"rope_type": "linear", "factor": 4.0}), 8192),
    "dynamic": (LlamaConfig(max_position_embeddings=2048, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), 4096),
    "scaled already": (LlamaConfig(max_position_embeddings=131072, rope_scaling=LLAMA_3), 131072),
    "a rotation a kind of layer": (Gemma3TextConfig(max_position_embeddings=1000), 1000),
    "learnt positions": (GPT2Config(n_positions=77), 77),
    "no positions": (BloomConfig(), None),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_a_models_length_is_what_its_config_says(kind: str) -> None:
    config, length = LENGTHS[kind]
    assert context_length(config) == length


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; '.[cpu]' brings it")
@pytest.mark.parametrize("kind", LENGTHS)
def test_it_is_vllms(kind: str) -> None:
    from vllm.config.model import _get_and_verify_max_len
    from vllm.transformers_utils.config import patch_rope_parameters
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    config, length = LENGTHS[kind]
    patch_rope_parameters(config)

    class Found:
        derived_max_model_len_and_key = ModelArchConfigConvertorBase(config, config).derive_max_model_len_and_key()

    asked = 10**6 if length is None else None  # it has a length of its own for models that state none
    found = _get_and_verify_max_len(config, Found, None, asked, False, None)  # type: ignore[arg-type]
    assert found == (asked or length)


def changed(model: str, directory: Path, **values: Any) -> str:
    """A copy of a model with other values in its config."""
    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))
    return str(directory)


@pytest.fixture
def short(tiny_model: str, tmp_path: Path) -> str:
    """A model of 64 positions, which hold none of the prompts."""
    return changed(tiny_model, tmp_path / "short", max_position_embeddings=64)


@pytest.mark.parametrize("asked", [None, 30, 1000])
def test_the_engine_answers_up_to_its_length_and_refuses_what_is_longer(short: str, asked: int | None) -> None:
    engine = HFEngine.from_pretrained(short, CPU, EngineSettings(asked))
    most = min(asked or 64, 64)
    assert engine.max_model_len == most
    params = SamplingParams(temperature=0, max_tokens=10)
    engine.generate([Request([5] * (most - 10))], params)
    with pytest.raises(UserError, match=rf"{most - 9} tokens and a response of up to 10: {most + 1} .* holds {most}"):
        engine.generate([Request([5] * (most - 9))], params)
    with pytest.raises(UserError, match=f"holds {most}"):
        engine.session().add(0, Request([5] * most), params)


TOO_LONG = r"two of its candidates take a prompt of \d+ tokens; 32 is held beside an answer of up to 32; shorter texts"


def refuse_to_start(*_: Any) -> Any:
    raise AssertionError("an engine was started")


LINE = r"short: the longest prompt has (\d+) tokens and a response up to 32, (\d+) together; the model holds 64; "


def test_an_evaluation_is_refused_before_an_engine_starts(
    short: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1ranker.ranking.ranker.start_engine", refuse_to_start)
    options = EvaluationOptions(str(toy / "bench"), 2, output_dir=str(tmp_path / "out"), max_tokens=32)
    for engine in ("hf", "vllm"):
        with pytest.raises(UserError, match=TOO_LONG):
            run_evaluation("Rec-Movie", short, replace(options, engine=engine))
    assert not list((tmp_path / "out").glob("*"))


def test_ranking_is_refused_before_the_first_answer(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = Ranker.from_pretrained(short, max_tokens=32)
    monkeypatch.setattr(HFEngine, "generate", refuse_to_start)
    with pytest.raises(UserError, match=TOO_LONG):
        ranker.rank(["a", "b"], ["one", "two"])


def rows(pools: int = 12) -> list[RankingExample]:
    names = tuple(f"film {number}" for number in range(pools))
    return [RankingExample("Rec-Movie", names[:size], history=("one", "two")) for size in range(2, pools + 1)]


def test_the_longest_prompt_is_the_longest_that_is_asked(tiny_model: str) -> None:
    asked: list[int] = []

    class Listening(Ranker):
        def _to_request(self, question: Any) -> tuple[Request, SamplingParams]:
            request, params = super()._to_request(question)
            asked.append(len(request.token_ids))
            return request, params

    for strategy in ("direct", "iterative"):
        asked.clear()
        ranker = Listening.from_pretrained(tiny_model, strategy=strategy, constrain="candidates", think=False)  # type: ignore[arg-type]
        list(ranker.rank_stream(rows()))
        assert max(longest_prompts(ranker.tokenizer, ranker.settings, rows())) == max(asked)


def test_the_engine_holds_what_the_longest_prompt_needs_unless_told_otherwise(tiny_model: str) -> None:
    tokenizer, settings = load_tokenizer(tiny_model), replace(Ranker.settings_of(tiny_model), max_tokens=100)
    prompt = max(longest_prompts(tokenizer, settings, rows()))
    needed = required_length(tiny_model, tokenizer, settings, rows())
    assert prompt + 100 <= needed < prompt + 164
    assert required_length(tiny_model, tokenizer, settings, rows(), prompt + 100) == prompt + 100
    with pytest.raises(UserError, match=r"--max_model_len: found 4,097; .* holds 4,096"):
        required_length(tiny_model, tokenizer, settings, rows(), 4097)


def length_of_vllm(model: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """Tokens that vLLM would be started with by a Ranker."""
    started: list[EngineSettings] = []

    def note(name: str, directory: str, device: torch.device, settings: EngineSettings) -> HFEngine:
        started.append(settings)
        return HFEngine.from_pretrained(directory, device)

    monkeypatch.setattr("r1ranker.ranking.ranker.start_engine", note)
    monkeypatch.setattr(start, "find_spec", lambda _: True)
    Ranker.from_pretrained(model, engine="vllm", **options)
    return engine_arguments(model, CPU, replace(started[0], constrained=False))["max_model_len"]


def test_vllm_holds_as_many_as_the_model_was_trained_with(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 4,096 whatever the model."""
    long = changed(tiny_model, tmp_path / "long", max_position_embeddings=100_000)
    assert length_of_vllm(long, monkeypatch) == 4096
    assert length_of_vllm(long, monkeypatch, max_model_len=50_000) == 50_000
    assert length_of_vllm(tiny_model, monkeypatch, max_model_len=50_000) == 4096  # its positions
    saved = {"strategy": "direct", "answer_style": "name", "think": True, "constrain": "none"}
    saved |= {"max_prompt_length": 9000, "max_response_length": 500}  # type: ignore[dict-item]
    (Path(long) / "r1ranker.json").write_text(json.dumps(saved))
    assert length_of_vllm(long, monkeypatch) == 9500


def overrides(toy: Path, model: str, output: Path, *more: str) -> list[str]:
    return [
        f"data.train_files={toy}/iterative_ranking/train.parquet", f"data.val_files={toy}/iterative_ranking/test.parquet",
        f"actor_rollout_ref.model.path={model}", f"trainer.default_local_dir={output}", "data.max_response_length=32",
        "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_training_is_refused_before_it_starts(engine: str, short: str, toy: Path, tmp_path: Path) -> None:
    """A dry run, and training, make a Run before anything else."""
    given = overrides(toy, short, tmp_path / "run", f"actor_rollout_ref.rollout.name={engine}")
    with pytest.raises(UserError, match=f"{LINE}data.train_files: a smaller data.max_prompt_length .found 1,024"):
        Run(load_config("quickstart", given))


def test_a_window_of_attention_is_a_bound_where_it_is_not_computed(
    tiny_model: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM knows windows; the trainer and the transformers engine hold whole sequences."""
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    windowed = changed(tiny_model, tmp_path / "windowed", layer_types=["full_attention", "sliding_attention"], **window)
    with pytest.raises(UserError, match=r"together; its layers attend over a window of 64; data.train_files: "):
        Run(load_config("quickstart", overrides(toy, windowed, tmp_path / "run")))
    monkeypatch.setattr(start, "find_spec", lambda _: True)
    settings = replace(Ranker.settings_of(windowed), max_tokens=100)
    assert required_length(windowed, load_tokenizer(windowed), settings, rows(), engine="vllm") > 164
    with pytest.raises(UserError, match="0 is held beside an answer of up to 100"):
        required_length(windowed, load_tokenizer(windowed), settings, rows(), engine="hf")
    unused = changed(tiny_model, tmp_path / "unused", layer_types=["full_attention"] * 2, **window)
    assert required_length(unused, load_tokenizer(unused), settings, rows(), engine="hf") > 164


def test_a_critic_has_a_length_as_well(short: str, tiny_model: str, toy: Path, tmp_path: Path) -> None:
    critic = (f"critic.model.path={short}", "algorithm.adv_estimator=gae")
    with pytest.raises(UserError, match=LINE):
        Run(load_config("quickstart", overrides(toy, tiny_model, tmp_path / "run", *critic)))


def test_the_longest_prompt_that_is_left_counts(tiny_model: str, toy: Path, tmp_path: Path) -> None:
    """With filter_overlong_prompts a smaller data.max_prompt_length is the cure that the line names."""
    model = changed(tiny_model, tmp_path / "model", max_position_embeddings=250)
    with pytest.raises(UserError, match="the model holds 250"):
        Run(load_config("quickstart", overrides(toy, model, tmp_path / "run")))
    run = Run(load_config("quickstart", overrides(toy, model, tmp_path / "run", "data.max_prompt_length=218")))
    assert run.loader.prompts.lengths.max() <= 218  # type: ignore[attr-defined]
    run.close()


def test_a_cold_start_is_refused_before_it_starts(short: str, toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"short: the longest prompt has .* the model holds 64; "):
        fine_tune(short, [str(toy / "direct_ranking" / "sft.parquet")], str(tmp_path / "out"), SFTSettings(steps=1))
    assert not (tmp_path / "out").exists()


def with_token(model: str) -> None:
    """One more token than there are rows of the embedding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)


def with_special_token(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<extra>"})
    tokenizer.save_pretrained(model)


def with_fewer_rows(model: str) -> None:
    config = json.loads((Path(model) / "config.json").read_text())
    (Path(model) / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 1}))


@pytest.mark.parametrize("spoil", [with_token, with_special_token, with_fewer_rows])
def test_ids_beyond_the_embedding_are_refused_in_a_line(
    spoil: Callable[[str], None], tiny_model: str, toy: Path, tmp_path: Path
) -> None:
    model = changed(tiny_model, tmp_path / "model")
    rows = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    spoil(model)
    with pytest.raises(
        UserError, match=r"model: the tokenizer's '.+' has id \d+, and the model's embedding has \d+ rows"
    ):
        Ranker.from_pretrained(model)
    with pytest.raises(UserError, match="embedding has"):
        Run(load_config("quickstart", overrides(toy, model, tmp_path / "run")))
    changed_back = json.loads((Path(model) / "config.json").read_text()) | {"vocab_size": rows + 1}
    (Path(model) / "config.json").write_text(json.dumps(changed_back))
    load_tokenizer(model)  # rows that no id stands for are fine


def test_a_config_without_a_length_bounds_nothing(tiny_model: str, tmp_path: Path) -> None:
    assert load_context_length(tiny_model) == 4096
    with pytest.raises(UserError, match=r"nowhere: no such model directory"):
        load_context_length(str(tmp_path / "nowhere"))


ROW_WIDE = {
    "dynamic": (32, {"rope_type": "dynamic", "factor": 4.0}),
    "longrope": (128, {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0,
                       "original_max_position_embeddings": 32}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROW_WIDE)
def test_rotary_embeddings_of_the_longest_sequence_bound_what_shares_a_row(
    kind: str, tiny_model: str, tmp_path: Path
) -> None:
    positions, rope = ROW_WIDE[kind]
    config = narrow_config(LlamaConfig(num_hidden_layers=2, max_position_embeddings=positions, rope_scaling=rope))
    assert steady_positions(config) == 32
    for long, differs in ((27, False), (60, True)):  # with a response of 5
        prompts, (response,) = _draw((10, long), 128), _draw((5,), 128, seed=9)
        sequences = [(prompt, response) for prompt in prompts]
        # a model each: dynamic scaling remembers the longest
        expected = torch.cat([_plain_logprobs(build_twin(config, "eager"), [one]) for one in sequences])
        found = _packed_logprobs(build_twin(config, PACKED), sequences, shares=False)
        assert ((found - expected).abs().max().item() > 0.01) == differs
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    path = str(tmp_path / "model")
    check_fits(path, 27, 5, "shorter ones are wanted")
    with pytest.raises(UserError, match=r"rotary embeddings change for whole rows beyond 32; shorter ones are wanted"):
        check_fits(path, 28, 5, "shorter ones are wanted")
    assert find_limit(path, by_vllm=True)[0] == load_context_length(path)
    engine = HFEngine(build_twin(config, "eager"), AutoTokenizer.from_pretrained(tiny_model))
    assert engine.max_model_len == 32


def test_other_scalings_are_the_same_for_every_sequence() -> None:
    for rope in (LLAMA_3, {"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}):
        assert steady_positions(LlamaConfig(rope_scaling=rope)) is None
