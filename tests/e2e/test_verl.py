"""Training parquet and rewards in stock veRL: its own configuration, dataset, rollout tokens and reward worker, as docs/verl.md has them."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module

import r1ranker.rewards
from r1ranker.data.files.parquet import read_training_rows
from r1ranker.data.loader import load_prompts
from r1ranker.data.sft import read_sft_rows
from r1ranker.data.tokenise import decode_response
from r1ranker.model.init import CHAT_TEMPLATE
from r1ranker.rewards import compute_score, compute_score_linear
from r1ranker.trainer.algorithm.correction import importance_weights, rejected_tokens
from r1ranker.trainer.algorithm.losses import loss_weights
from r1ranker.trainer.algorithm.policy_losses import POLICY_LOSSES, ClipRange, TokenTerms
from r1ranker.trainer.config.correction import REJECTIONS, parse_bounds
from r1ranker.trainer.scoring.outcome import score_response

pytest.importorskip("verl", reason="veRL cannot be imported; docs/verl.md says what to install")

import datasets
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop import RewardLoopWorker
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights, compute_rollout_rejection_mask
from verl.trainer.ppo.utils import create_rl_dataset, need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.utils.reward_score import default_compute_score
from verl.workers.config import ActorConfig as VerlActorConfig

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "verl.md").read_text()
COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")
NO_TEMPLATE = "~data.apply_chat_template_kwargs.chat_template"
MODES = pytest.mark.parametrize("mode", ["direct", "iterative"])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def overrides_of(data: Path | str, model: str) -> list[str]:
    """The overrides of the document's command, as bash hands them over."""
    (command,) = re.findall(r"^```bash\n(CHAT_TEMPLATE=.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    script = 'python3() { printf "%s\\0" "$@"; }\n' + command
    environment = {"DATA_DIR": str(data), "BASE_MODEL": model, "N_GPUS": "4"}
    done = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, check=True)
    module, name, *overrides = done.stdout.split("\0")[:-1]
    assert (module, name) == ("-m", "verl.trainer.main_ppo")
    return overrides


def config_of(data: Path | str, model: str, *more: str) -> DictConfig:
    """veRL's own configuration under the document's command."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*overrides_of(data, model), *more])


def dataset_of(config: DictConfig) -> tuple[RLHFDataset, Any]:
    """Training rows and tokenizer, made as veRL's trainer makes them."""
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    rows = create_rl_dataset(config.data.train_files, config.data, model.tokenizer, model.processor)
    assert type(rows) is RLHFDataset
    return rows, model.tokenizer


def prompt_ids(config: DictConfig, rows: RLHFDataset, tokenizer: Any) -> list[list[int]]:
    """What veRL's agent loop gives the rollout for each row."""

    async def run() -> list[list[int]]:
        loop = SingleTurnAgentLoop(
            trainer_config=DictConfigWrap(config), server_manager=None, tokenizer=tokenizer, processor=None,
            dataset_cls=RLHFDataset, data_config=DictConfigWrap(config.data), hf_model_type="qwen2",
        )  # fmt: skip
        return [await loop.ct_build_initial_tokens(list(row["raw_prompt"])) for row in rows]

    return asyncio.run(run())


def responses(row: dict[str, Any], cold_start: dict[str, Any]) -> Iterator[str]:
    """A good answer, a bad one, a random one of good form, and two of bad form."""
    truth = row["reward_model"]["ground_truth"]
    others = [name for name in truth["candidate_text"] if name != truth["gt"]]
    for names in ([truth["gt"], *others], [*others, truth["gt"]]):
        answer = "\n".join(names) if row["data_source"] == "direct_ranking" else names[-1]
        yield f" Hm.</think>\n<answer>{answer}</answer>" if row["extra_info"]["think"] else f"{answer}</answer>"
    yield cold_start["completion"]
    yield "I cannot say."
    yield truth["gt"] + "</answer></answer>"


def test_the_documented_command_is_one_that_verl_takes(tiny_model: str) -> None:
    config = config_of("data", tiny_model)
    assert need_critic(config)
    assert need_reference_policy(config)
    validate_config(config, use_reference_policy=True, use_critic=True)
    assert (config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size) == (64, 32)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.prompt_length, rollout.response_length) == (1400, 1024)
    assert (config.actor_rollout_ref.actor.optim.lr, config.critic.optim.lr) == (1e-6, 2e-6)


def test_so_are_the_other_settings_that_the_document_names(tiny_model: str) -> None:
    named = re.findall(r"`(\w+(?:\.\w+)+=\w+)`", DOCUMENT)
    assert len(named) == 3
    config = config_of("data", tiny_model, *named)
    assert config.algorithm.adv_estimator == "grpo"
    assert not need_critic(config)
    validate_config(config, use_reference_policy=True, use_critic=False)
    reward = get_custom_reward_fn(config)
    assert reward is not None
    truth = {"candidate_text": ["a", "b", "c"], "gt": "a", "grades": [3.0, 1.0, 0.0]}
    answer = ("direct_ranking", "<answer>b\na\nc</answer>", truth, {"think": False})
    assert reward(*answer) == compute_score_linear(*answer) != compute_score(*answer)


@MODES
def test_its_dataset_yields_the_rows_as_they_are(mode: str, toy: Path, tiny_model: str) -> None:
    data = toy / f"{mode}_ranking"
    rows, _ = dataset_of(config_of(data, tiny_model))
    expected = list(read_training_rows([str(data / "train.parquet")]))
    assert len(rows) == len(expected)
    for row, one in zip(rows, expected, strict=True):
        assert {column: row[column] for column in COLUMNS} == one
        assert row["raw_prompt"] == one["prompt"]
        assert row["index"] == one["extra_info"]["index"]


@MODES
@pytest.mark.parametrize("think", [False, True])
def test_its_rollout_gets_the_token_ids_of_our_loader(
    mode: str, think: bool, toy: Path, toy_thinking: Path, tiny_model: str
) -> None:
    data = (toy_thinking if think else toy) / f"{mode}_ranking"
    config = config_of(data, tiny_model)
    rows, tokenizer = dataset_of(config)
    ours, _ = load_prompts([str(data / "train.parquet")], tokenizer, 1400)
    assert prompt_ids(config, rows, tokenizer) == [prompt.token_ids for prompt in ours]
    assert tokenizer.decode(ours[0].token_ids).endswith("<think>" if think else "assistant\n<answer>")
    assert tokenizer.chat_template == CHAT_TEMPLATE  # the model's own is as it was


def test_its_length_filter_leaves_out_what_ours_does(toy: Path, tiny_model: str) -> None:
    data = toy / "iterative_ranking"
    everything, tokenizer = dataset_of(config_of(data, tiny_model))
    files = [str(data / "train.parquet")]
    limit = sorted(len(prompt.token_ids) for prompt in load_prompts(files, tokenizer, 1400)[0])[len(everything) // 2]
    kept, left_out = load_prompts(files, tokenizer, limit)
    rows, _ = dataset_of(config_of(data, tiny_model, f"data.max_prompt_length={limit}"))
    assert left_out > 0
    assert [row["extra_info"]["index"] for row in rows] == [prompt.extra_info["index"] for prompt in kept]


def test_without_the_template_a_second_turn_is_opened(toy: Path, tiny_model: str) -> None:
    data = toy / "direct_ranking"
    config = config_of(data, tiny_model, NO_TEMPLATE)
    rows, tokenizer = dataset_of(config)
    for ids in prompt_ids(config, rows, tokenizer):
        assert tokenizer.decode(ids).endswith("<answer><|im_end|>\n<|im_start|>assistant\n")
    for argument in ("continue_final_message=true", "add_generation_prompt=false"):
        clashing = config_of(data, tiny_model, NO_TEMPLATE, f"+data.apply_chat_template_kwargs.{argument}")
        assert len(dataset_of(clashing)[0]) == 0
        with pytest.raises((TypeError, ValueError), match=r"multiple values|not compatible"):
            prompt_ids(clashing, rows, tokenizer)


@MODES
@pytest.mark.parametrize("path", ["pkg://r1ranker.rewards", r1ranker.rewards.__file__])
def test_its_loader_takes_our_reward(mode: str, path: str, toy: Path, tiny_model: str) -> None:
    data = toy / f"{mode}_ranking"
    config = config_of(data, tiny_model, f"reward.custom_reward_function.path={path}")
    reward = get_custom_reward_fn(config)
    assert reward is not None
    frame = pd.read_parquet(data / "train.parquet")
    cold_start = read_sft_rows([str(data / "sft.parquet")])
    scores = []
    for number, row in list(enumerate(dataset_of(config)[0]))[::9]:
        truth = frame["reward_model"].iloc[number]["ground_truth"]
        assert isinstance(truth["candidate_text"], np.ndarray)
        for text in responses(row, cold_start[number]):
            expected = compute_score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])
            for ground_truth in (row["reward_model"]["ground_truth"], truth):
                found = reward(
                    data_source=row["data_source"], solution_str=text, ground_truth=ground_truth,
                    extra_info=row["extra_info"] | {"num_turns": 2, "rollout_reward_scores": {}},
                )  # fmt: skip
                assert found == expected
            scores.append(expected["score"])
    assert set(scores[::5]) == {1.0}
    assert max(scores[3::5]) < 0


def test_the_older_key_of_the_reward_is_not_read(tiny_model: str) -> None:
    older = ("reward.custom_reward_function.path=null", "custom_reward_function.path=pkg://r1ranker.rewards")
    config = config_of("data", tiny_model, *older)
    assert config.custom_reward_function.path is not None
    assert get_custom_reward_fn(config) is None
    with pytest.raises(NotImplementedError, match="direct_ranking"):
        default_compute_score("direct_ranking", "<answer>a</answer>", {"candidate_text": ["a", "b"], "gt": "a"})


def padded(ids: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, longest] ids filled up with 0, and their mask."""
    side = "left" if left else "right"
    tensors = [torch.tensor(one) for one in ids]
    masks = [torch.ones_like(one) for one in tensors]
    return tuple(  # type: ignore[return-value]
        torch.nn.utils.rnn.pad_sequence(one, batch_first=True, padding_side=side) for one in (tensors, masks)
    )


@MODES
@pytest.mark.parametrize("think", [False, True])
def test_its_reward_worker_scores_a_batch_as_we_do(
    mode: str, think: bool, toy: Path, toy_thinking: Path, tiny_model: str
) -> None:
    data = (toy_thinking if think else toy) / f"{mode}_ranking"
    config = config_of(data, tiny_model)
    rows, tokenizer = dataset_of(config)
    ours, _ = load_prompts([str(data / "train.parquet")], tokenizer, 1400)
    cold_start = read_sft_rows([str(data / "sft.parquet")])
    chosen, sampled, stopped = [], [], []
    for number in range(0, len(rows), len(rows) // 4):
        for place, text in enumerate(responses(rows[number], cold_start[number])):
            chosen.append(number)
            stopped.append(place != 3)  # one that was cut off
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            sampled.append([*ids, tokenizer.eos_token_id] if stopped[-1] else ids)
    prompts, prompt_mask = padded([ours[number].token_ids for number in chosen], left=True)
    answers, answer_mask = padded(sampled, left=False)
    batch = collate_fn([rows[number] for number in chosen]) | {
        "prompts": prompts, "responses": answers, "attention_mask": torch.cat([prompt_mask, answer_mask], dim=1),
    }  # fmt: skip
    proto = DataProto.from_single_dict(batch)

    async def run() -> tuple[list[dict[str, Any]], torch.Tensor]:
        worker = RewardLoopWorker(config)
        found = await worker.compute_score_batch(proto)
        return found, worker.reward_manager.assemble_rm_scores(proto, [one["reward_score"] for one in found])

    found, tensor = asyncio.run(run())
    expected = [
        score_response(compute_score, ours[number], decode_response(tokenizer, ids, end))
        for number, ids, end in zip(chosen, sampled, stopped, strict=True)
    ]
    assert [one["reward_extra_info"] for one in found] == expected
    wanted = torch.zeros(answers.shape)
    for place, (ids, parts) in enumerate(zip(sampled, expected, strict=True)):
        wanted[place, len(ids) - 1] = parts["score"]
    assert torch.equal(tensor, wanted)
    assert len({one["score"] for one in expected}) > 2


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("name", ["vanilla", "gspo", "cispo"])
def test_policy_losses_are_verls(name: str, mode: str) -> None:
    torch.manual_seed(3)
    lengths, longest = (7, 1, 4, 9), 9
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    new = (torch.randn(4, longest) - 2).requires_grad_()
    old, advantages = new.detach() + 0.4 * torch.randn(4, longest), torch.randn(4, longest)
    config = VerlActorConfig(
        strategy="fsdp", rollout_n=2, ppo_mini_batch_size=4, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2, clip_ratio_high=0.28,
    )  # fmt: skip
    expected, metrics = get_policy_loss_fn(name)(old, new, advantages, mask.float(), mode, config)
    (of_verl,) = torch.autograd.grad(expected, new)
    shares = torch.from_numpy(
        np.concatenate(loss_weights([np.ones(length, bool) for length in lengths], mode, longest))
    )
    terms = TokenTerms(
        new[mask],
        old[mask],
        advantages[mask],
        torch.repeat_interleave(torch.tensor(lengths)),
        torch.ones(sum(lengths), dtype=torch.bool),
    )
    losses, clipped = POLICY_LOSSES[name](terms, ClipRange(0.2, 0.28, 3.0))
    found = (shares.float() * losses).sum()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found, new)[0], of_verl, atol=1e-6, rtol=1e-5)
    assert clipped.mean().item() == pytest.approx(metrics["actor/pg_clipfrac"], abs=1e-6)


@pytest.mark.parametrize("option", REJECTIONS)
def test_rejections_are_verls(option: str) -> None:
    torch.manual_seed(1)
    lengths, longest = (6, 1, 4, 8), 8
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    engine, difference = torch.randn(4, longest) - 2, 0.6 * torch.randn(4, longest)
    threshold = "0.6_1.4" if option.endswith("k1") else "0.3"
    kept, metrics = compute_rollout_rejection_mask(difference, mask.float(), option, threshold)
    bounds = parse_bounds("rollout_rs_threshold", threshold)
    found = [
        rejected_tokens(
            (engine + difference)[row, :length].double().numpy(), engine[row, :length].double().numpy(), option, bounds
        )
        for row, length in enumerate(lengths)
    ]
    for row, length in enumerate(lengths):
        assert found[row].tolist() == (kept[row, :length] == 0).tolist()
    share = sum(one.sum() for one in found) / sum(lengths)
    assert share == pytest.approx(metrics["rollout_rs_masked_fraction"], abs=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("threshold", [1.5, "0.6_1.4"])
def test_importance_weights_are_verls(level: str, threshold: float | str) -> None:
    torch.manual_seed(2)
    mask = torch.ones(3, 5)
    engine, difference = torch.randn(3, 5) - 2, 0.4 * torch.randn(3, 5)
    expected, _ = compute_rollout_correction_weights(difference, mask, level, threshold)
    bounds = parse_bounds("rollout_is_threshold", threshold)
    for row in range(3):
        weights = importance_weights(
            (engine + difference)[row].double().numpy(), engine[row].double().numpy(), level, bounds
        )
        np.testing.assert_allclose(weights, expected[row].numpy(), atol=1e-6)
