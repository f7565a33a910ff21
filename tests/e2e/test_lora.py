"""Adapters: what they compute, that they alone learn, and that they are saved, resumed, merged and read elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from runs import SMALL, assert_same_run, config_of, figures, requests_of, run_command, train, trajectories_of, weights
from safetensors.numpy import load_file
from test_processes import batch, conversations, run
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from r1ranker.errors import UserError
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.lora import LoraOptions, adapted_layers, add_adapters, base_name, is_adapter
from r1ranker.model.policy_model import PolicyModel
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.engine import SamplingParams
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.checkpoint.export import export_actor
from r1ranker.trainer.workers.cluster import Cluster, call_all, start_cluster
from r1ranker.trainer.workers.dispatch import fill, generate, update
from r1ranker.trainer.workers.process import join_process_group

pytestmark = pytest.mark.usefixtures("one_ray")

LORA = (
    "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8", "critic.model.lora_rank=2",
    "actor_rollout_ref.actor.optim.lr=1e-2", "critic.optim.lr=1e-2",
)  # fmt: skip
PPO = ("algorithm.adv_estimator=gae", "actor_rollout_ref.actor.use_kl_loss=true")


def config(model: str, *overrides: str):
    return config_of(model, f"critic.model.path={model}", *PPO, *LORA, *overrides)


def learn(cluster: Cluster, budget: Budget) -> dict[str, np.ndarray]:
    """Two steps from made-up rewards: all that they compute, and the weights after both."""
    steps = [run(cluster, budget, seed) for seed in range(2)]
    return {
        name if name.startswith("weight") else f"{step} {name}": value
        for step, own in enumerate(steps)
        for name, value in own.items()
    }


@pytest.fixture(scope="module")
def alone(tiny_model: str) -> dict[str, np.ndarray]:
    """One process, one micro-batch."""
    with start_cluster(config(tiny_model), 10) as cluster:
        return learn(cluster, Budget(10_000))


def test_adapters_alone_learn_and_the_reference_is_the_model_without_them(
    alone: dict[str, np.ndarray], tiny_model: str
) -> None:
    before = weights(Path(tiny_model))
    gradients = [name.split("gradient ")[1] for name in alone if "gradient" in name]
    assert gradients
    assert all(map(is_adapter, gradients))
    now = {base_name(name.removeprefix("weight ")): value for name, value in alone.items() if name.startswith("weight")}
    for name, value in before.items():
        np.testing.assert_array_equal(now[name], value)
    ups = [value for name, value in alone.items() if name.startswith("weight") and ".lora_B." in name]
    assert all(np.abs(value).max() > 1e-3 for value in ups)
    # a reference of its own has the same log-probabilities, after an update, too
    with start_cluster(config_of(tiny_model, *PPO[1:]), 10) as cluster:
        for step in range(2):
            trajectories = batch(step) + conversations()
            fill(cluster, trajectories, "ref_logprobs", Budget(10_000), "logprobs", "reference")
            found = np.concatenate([one.ref_logprobs for one in trajectories])
            np.testing.assert_array_equal(found, alone[f"{step} ref"])


@pytest.mark.parametrize(
    ("overrides", "budget"),
    [
        ((), Budget(60)),
        (("actor_rollout_ref.model.share_prompts=false",), Budget(10_000, 1)),
        (("actor_rollout_ref.model.enable_gradient_checkpointing=true",), Budget(10_000)),
        (("trainer.executor=ray", "trainer.n_gpus_per_node=2"), Budget(60)),
    ],
    ids=["micro-batches", "one by one", "checkpointing", "two processes"],
)
def test_steps_are_the_same_however_they_are_computed(
    alone: dict[str, np.ndarray], tiny_model: str, overrides: tuple[str, ...], budget: Budget
) -> None:
    with start_cluster(config(tiny_model, *overrides), 10) as cluster:
        found = learn(cluster, budget)
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        if name.startswith(("0 gradient", "0 ref", "0 values")):
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        elif not name.startswith(("1 ", "0 perf")):
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=2e-5, err_msg=name)


def test_a_run_is_resumed_exactly_and_its_actor_read_by_peft(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    common = (*SMALL, *PPO, *LORA, "trainer.total_training_steps=3")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(toy, tiny_model, whole, *common)
    train(toy, tiny_model, parts, *common, "trainer.total_training_steps=2")
    train(toy, tiny_model, parts, *common)
    assert_same_run(parts, whole)
    for line in figures(whole):
        assert line["rollout/logprob_diff_max"] < 1e-4  # the engine has them merged
    assert figures(whole)[0]["actor/kl_loss"] == pytest.approx(0, abs=1e-9)
    assert figures(whole)[2]["actor/kl_loss"] > 1e-6
    # of the state what learns alone
    state = whole / "state" / "step_3"
    names = {name for file in state.glob("*.safetensors") for name in load_file(file)}
    assert {name for name in names if not is_adapter(name)} == {
        f"critic/{kind}head.{part}" for kind in ("", "exp_avg/", "exp_avg_sq/") for part in ("weight", "bias")
    }
    # the actor: merged, by peft beside the model that it began with, and from the state
    actor = whole / "actor"
    ids = torch.randint(0, 400, (2, 30), generator=torch.Generator().manual_seed(0))
    merged = AutoModelForCausalLM.from_pretrained(actor, dtype=torch.float32)(ids).logits.log_softmax(-1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = base(ids).logits.log_softmax(-1)
    beside = PeftModel.from_pretrained(base, actor / "lora_adapter")(ids).logits.log_softmax(-1)
    torch.testing.assert_close(beside, merged, rtol=0, atol=1e-5)
    assert (merged - before).abs().max() > 1e-2
    assert json.loads((actor / "lora_adapter" / "adapter_config.json").read_text())["r"] == 4
    assert export_actor(str(state), str(tmp_path / "exported")) == 3
    for name, value in weights(actor).items():
        np.testing.assert_allclose(weights(tmp_path / "exported")[name], value, rtol=0, atol=1e-6)


def test_two_processes_save_what_one_goes_on_with(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    common = (*SMALL, *PPO, *LORA, "trainer.executor=ray", "actor_rollout_ref.actor.optim.lr_warmup_steps=0")
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    train(toy, tiny_model, parts, *common, "trainer.n_gpus_per_node=2", "trainer.total_training_steps=1")
    train(toy, tiny_model, parts, *common, "trainer.n_gpus_per_node=1", "trainer.total_training_steps=2")
    train(toy, tiny_model, whole, *common, "trainer.n_gpus_per_node=1", "trainer.total_training_steps=2")
    for line in figures(parts):
        assert line["rollout/logprob_diff_max"] < 1e-4
        assert line["training/bad_step"] == 0
    adapters = "actor/lora_adapter/adapter_model.safetensors"
    expected = load_file(whole / adapters)
    assert any(np.abs(value).max() > 5e-3 for name, value in expected.items() if "lora_B" in name)
    for name, value in load_file(parts / adapters).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-3, err_msg=name)


def test_in_bfloat16_the_model_rests_in_it_and_adapters_in_float32(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    options = (*SMALL, *PPO, *LORA, "actor_rollout_ref.model.dtype=bfloat16", "trainer.total_training_steps=2")
    actor, _ = train(toy, tiny_model, tmp_path, *options)
    for line in figures(tmp_path):
        assert 0 < line["rollout/logprob_diff_max"] < 0.2
    join_process_group(None, 0, 1, torch.device("cpu"), timeout=60)
    execution = ExecutionOptions(dtype="bfloat16", lora=LoraOptions(4, 8))
    module = execution.load(tiny_model, torch.device("cpu"), PolicyModel)
    resting = {(is_adapter(name), value.requires_grad, value.dtype) for name, value in module.named_parameters()}
    assert resting == {(True, True, torch.float32), (False, False, torch.bfloat16)}
    assert {
        str(value.dtype) for value in load_file(Path(actor) / "lora_adapter" / "adapter_model.safetensors").values()
    } == {"float32"}


def test_named_layers_alone_have_adapters(toy: Path, tiny_model: str) -> None:
    named = "actor_rollout_ref.model.target_modules=[q_proj,v_proj]"
    with start_cluster(config_of(tiny_model, *LORA[:2], named), 10) as cluster:
        requests = requests_of(load_tokenizer(tiny_model), toy, 2)
        samples = trajectories_of(requests, generate(cluster, requests, SamplingParams(n=1, max_tokens=4)))
        update(cluster, samples, Budget(10_000), "update_policy")
        names = {name for name in call_all(cluster, "weights")[0] if is_adapter(name)}
    assert names
    assert all(".q_proj." in name or ".v_proj." in name for name in names)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "actor_rollout_ref.model.target_modules=[q_prj]",
            "actor_rollout_ref.model.target_modules: found 'q_prj' (did you mean 'q_proj'?)",
        ),
        ("actor_rollout_ref.model.target_modules=[lm_head]", "actor_rollout_ref.model.target_modules: found 'lm_head'"),
        (
            "actor_rollout_ref.model.target_modules=[foo.q_proj,v_proj]",
            "actor_rollout_ref.model.target_modules: found 'foo.q_proj'",
        ),
        (
            "actor_rollout_ref.model.target_modules=q_proj",
            "actor_rollout_ref.model.target_modules: found 'q_proj'; all-linear, or a list",
        ),
        ("actor_rollout_ref.model.target_modules=[]", "actor_rollout_ref.model.target_modules: found []"),
        ("actor_rollout_ref.model.lora_rank=-1", "actor_rollout_ref.model.lora_rank: found -1"),
        ("actor_rollout_ref.actor.optim.name=muon", "actor_rollout_ref.actor.optim.name: found muon"),
        ("actor_rollout_ref.model.lora_alpha=0", "actor_rollout_ref.model.lora_alpha: found 0"),
    ],
)
def test_what_cannot_be_adapted_is_said(toy: Path, tiny_model: str, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        train(toy, tiny_model, tmp_path, *LORA, override)
    assert said in str(error.value)
    assert not (tmp_path / "actor").exists()


def test_a_dry_run_counts_what_learns_and_says_a_rate_of_whole_weights(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    options = (
        f"data.train_files={toy}/iterative_ranking/train.parquet", "data.val_files=null", "trainer.test_freq=-1",
        "trainer.val_before_train=false", f"actor_rollout_ref.model.path={tiny_model}", f"trainer.default_local_dir={tmp_path}",
        "actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.optim.lr=1e-6",
    )  # fmt: skip
    whole, _ = run_command("train", "--config-name", "quickstart", *options, "--dry-run")
    printed, said = run_command(
        "train", "--config-name", "quickstart", *options, "actor_rollout_ref.model.lora_rank=4", "--dry-run"
    )
    learning = sum(
        4 * sum(value.shape) for name, value in weights(Path(tiny_model)).items() if name.endswith("_proj.weight")
    )
    assert f"of adapters {learning:,} that learn" in printed
    assert "reference: weights" in whole
    assert "reference: weights" not in printed
    assert "actor_rollout_ref.actor.optim.lr=1e-06: a rate for whole weights" in said


def test_of_a_mixture_of_experts_attention_alone_has_adapters() -> None:
    """peft itself takes all-linear for the stacked experts and the router as well."""
    for kind in (Qwen3MoeConfig, MixtralConfig):
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        model = AutoModelForCausalLM.from_config(kind(vocab_size=50, **sizes))
        add_adapters(model, LoraOptions(2, 4))
        names = {name.rpartition(".")[2] for name, _ in adapted_layers(model)}
        assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
        with pytest.raises(UserError, match="target_modules: found"):
            add_adapters(
                AutoModelForCausalLM.from_config(kind(vocab_size=50, **sizes)), LoraOptions(2, 4, ["gate", "up_proj"])
            )
