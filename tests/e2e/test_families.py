"""Models of well-known families are trained, and what is computed of them is what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, build_model, build_tokenizer
from runs import SMALL, train, weights
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from r1ranker.data.loader import load_prompts
from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import UserError
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine

CPU = torch.device("cpu")
BOUND = 1e-4
"""nats in float32 between ways to compute a log-probability"""
MODES = ("iterative", "direct")
KINDS = {name: (MODES[place % 2], place % 4 > 1) for place, name in enumerate(FAMILIES)}
"""family -> how it is trained to rank, and whether it thinks first"""
REWARD = '''
def count_letters(data_source, solution_str, ground_truth, extra_info=None):
    """For thoughts of random weights, none of which comes to an answer."""
    return len(set(solution_str)) / 50
'''


def settings_of(think: bool, directory: Path) -> list[str]:
    if not think:
        return ["data.max_response_length=300"]
    reward = directory / "reward.py"
    reward.write_text(REWARD)
    return [
        "data.think=true", "data.max_response_length=24", "actor_rollout_ref.rollout.constrain=none",
        f"custom_reward_function.path={reward}", "custom_reward_function.name=count_letters",
    ]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(family: str, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[dict]]:
    """A model of the family before and after three steps, and the steps' metrics."""
    directory = tmp_path_factory.mktemp("family")
    model = build_model(family, directory / "model")
    mode, think = KINDS[family]
    actor, lines = train(
        toy, model, directory / "run", *SMALL, *settings_of(think, directory), "trainer.total_training_steps=3",
        "trainer.save_freq=-1", "trainer.test_freq=-1", "actor_rollout_ref.actor.optim.lr_warmup_steps=0", mode=mode,
    )  # fmt: skip
    return model, actor, lines


def test_three_steps_train_every_weight(trained: tuple[str, str, list[dict]]) -> None:
    model, actor, lines = trained
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert np.isfinite(line["actor/pg_loss"])
        assert line["actor/grad_norm"] > 0
        assert line["training/bad_step"] == 0
    before, after = weights(Path(model)), weights(Path(actor))
    assert set(before) == set(after)
    for name, weight in after.items():
        assert np.isfinite(weight).all(), name
        assert (weight != before[name]).any(), name


def test_adapters_learn_in_place_of_the_weights(
    family: str, trained: tuple[str, str, list[dict]], toy: Path, tmp_path: Path
) -> None:
    mode, think = KINDS[family]
    actor, lines = train(
        toy, trained[0], tmp_path / "run", *SMALL, *settings_of(think, tmp_path), "trainer.total_training_steps=2",
        "trainer.save_freq=-1", "trainer.test_freq=-1", "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        "actor_rollout_ref.model.lora_rank=2", mode=mode,
    )  # fmt: skip
    for line in lines:  # the engine has them merged
        assert line["rollout/logprob_diff_max"] < BOUND
        assert line["actor/grad_norm"] > 0
    before, after = weights(Path(trained[0])), weights(Path(actor))
    assert set(before) == set(after)
    changed = {name for name, weight in after.items() if (weight != before[name]).any()}
    assert changed
    assert changed == {name for name, weight in after.items() if weight.ndim == 2 and "layers." in name}


def test_the_actor_has_config_tokenizer_and_stop_tokens_of_its_model(trained: tuple[str, str, list[dict]]) -> None:
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in trained[:2])
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {"_name_or_path"}
    tokenizers = [load_tokenizer(path) for path in trained[:2]]
    assert tokenizers[0].backend_tokenizer.to_str() == tokenizers[1].backend_tokenizer.to_str()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    stops = [GenerationConfig.from_pretrained(path).eos_token_id for path in trained[:2]]
    assert stops[0] == stops[1]


def test_the_trainer_agrees_with_what_was_sampled(trained: tuple[str, str, list[dict]]) -> None:
    for line in trained[2]:
        assert line["rollout/logprob_diff_max"] < BOUND


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, prompt: list[int], answer: Completion, temperature: float) -> torch.Tensor:
    """Log-probabilities of an answer's tokens, under its constraint if it has one, of one forward pass of transformers'."""
    logits = model(torch.tensor([[*prompt, *answer.token_ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    for place, allowed in enumerate(answer.allowed):
        if allowed:
            closed = torch.ones(logits.shape[1], dtype=torch.bool)
            closed[allowed] = False
            logits[place, closed] = -torch.inf
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]


@pytest.fixture(scope="module")
def prompts(family: str, trained: tuple[str, str, list[dict]], toy: Path) -> list[Prompt]:
    """A short and a long prompt of the family."""
    mode, think = KINDS[family]
    rows = [f"{toy}/{mode}_ranking/test.parquet"]
    found, _ = load_prompts(rows, load_tokenizer(trained[1]), 2000, think=think)
    by_length = sorted(range(len(found)), key=lambda place: len(found[place].token_ids))
    return [found[by_length[0]], found[by_length[-1]]]


def test_a_prompt_begins_once(family: str, prompts: list[Prompt]) -> None:
    """Tokenizers of some families write a BOS of their own, which their templates write as well."""
    tokenizer = build_tokenizer(FAMILIES[family])
    for prompt in prompts:
        written = "bos_token" in tokenizer.chat_template
        assert list(prompt.token_ids).count(tokenizer.bos_token_id) == written
        assert not written or prompt.token_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_answers_have_the_probabilities_that_transformers_gives_them(
    family: str, trained: tuple[str, str, list[dict]], prompts: list[Prompt], temperature: float
) -> None:
    mode, think = KINDS[family]
    engine = HFEngine.from_pretrained(trained[1], CPU)
    plain = AutoModelForCausalLM.from_pretrained(trained[1], attn_implementation="eager", dtype=torch.float32)
    assert len(prompts[0].token_ids) < len(prompts[1].token_ids)
    requests = [
        Request(
            prompt.token_ids,
            seed,
            None if think else build_constraint(engine.tokenizer, prompt.candidates, mode, prompt.answer_format),
        )
        for seed, prompt in enumerate(prompts)
    ]
    params = SamplingParams(n=2, temperature=temperature, max_tokens=24 if think else 300)
    for request, answers in zip(requests, engine.generate(requests, params), strict=True):
        for answer in answers:
            expected = plain_logprobs(plain, list(request.token_ids), answer, temperature)
            torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=BOUND, rtol=0)


def test_prompts_beyond_the_windows_of_gemma_3_are_refused_before_anything_is_loaded(toy: Path, tmp_path: Path) -> None:
    model = build_model("Gemma 3", tmp_path / "model", sliding_window=512)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"/model: the longest prompt has .*its layers attend over a window of 512"
    ) as found:
        train(toy, model, tmp_path / "run")
    assert "\n" not in str(found.value)
