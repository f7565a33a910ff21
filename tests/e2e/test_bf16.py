"""The policy in bfloat16, as on GPUs, over two processes with offload: step, save, resume, export; and vLLM beside it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import SMALL, config_of, figures, requests_of, train, trajectories_of
from safetensors import safe_open
from safetensors.torch import load_file

from r1ranker.model.loading import load_causal_lm
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.engine import SamplingParams
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.workers.cluster import Cluster, call_all, start_cluster
from r1ranker.trainer.workers.dispatch import fill, generate, update

pytestmark = pytest.mark.usefixtures("one_ray")

BF16 = (
    "trainer.executor=ray", "actor_rollout_ref.model.dtype=bfloat16",
    *(f"{role}.fsdp_config.{part}_offload=true" for role in ("actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic.model")
      for part in ("param", "grad", "optimizer")),
)  # fmt: skip
PPO = (
    "algorithm.adv_estimator=gae",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.actor.kl_loss_coef=0.01",
)


def test_a_run_in_bfloat16_saves_and_goes_on_in_another_number_of_processes(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    common = (*SMALL, *PPO, *BF16)
    actor, _ = train(toy, tiny_model, tmp_path, *common, "trainer.n_gpus_per_node=2", "trainer.total_training_steps=2")
    train(toy, tiny_model, tmp_path, *common, "trainer.n_gpus_per_node=1", "trainer.total_training_steps=3")
    lines = figures(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["training/bad_step"] == 0
        assert 0 < line["actor/grad_norm"] < 100
        assert 0 < line["critic/grad_norm"] < 100
        # rounding to eight bits may differ between the engine and the trainer, but not by much
        assert 0 <= line["rollout/logprob_diff_max"] < 0.2
    assert json.loads((Path(actor) / "config.json").read_text())["dtype"] == "bfloat16"
    assert {one.dtype for one in load_file(Path(actor) / "model.safetensors").values()} == {torch.bfloat16}
    assert load_causal_lm(actor, torch.float32, "sdpa").num_parameters() > 0
    files = sorted((tmp_path / "state" / "step_2").glob("*.safetensors"))
    assert len(files) >= 2
    for file in files:  # what learns rests in float32, whatever it is computed in
        with safe_open(file, "pt") as state:
            assert {state.get_slice(name).get_dtype() for name in state.keys()} == {"F32"}  # noqa: SIM118


def test_a_state_saved_after_a_pass_without_gradients_is_that_of_the_shards(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    """FSDP2 leaves the root gathered after such a pass: saved as it is, it was in bfloat16, and without moments."""
    config = config_of(tiny_model, f"critic.model.path={tiny_model}", *PPO, *BF16, "trainer.n_gpus_per_node=2")
    requests = requests_of(load_tokenizer(tiny_model), toy, 4)
    with start_cluster(config, 10) as cluster:
        samples = trajectories_of(requests, generate(cluster, requests, SamplingParams(n=1, max_tokens=8)))
        for one in samples:
            one.ref_logprobs, one.returns, one.values = one.rollout_logprobs, one.advantages, 0 * one.rollout_logprobs
        update(cluster, samples, Budget(10_000), "update_policy")
        update(cluster, samples, Budget(10_000), "update_critic")
        kept = saved(cluster, tmp_path / "before")
        for method, of in (("logprobs", ("policy",)), ("logprobs", ("reference",)), ("values", ())):
            fill(cluster, samples, "old_logprobs", Budget(10_000), method, *of)
        bins = [
            [[samples[i] for i in one] for one in hand] for hand in arrange_micro_batches(samples, 2, Budget(10_000))
        ]
        cluster.each("losses", [(hand, "policy") for hand in bins])
        cluster.each("losses", [(hand, "critic") for hand in bins])
        after = saved(cluster, tmp_path / "after")
    assert any("exp_avg/" in name and "embed_tokens" in name for name in kept)
    assert set(after) == set(kept)
    for name, (dtype, rows) in kept.items():
        assert (dtype, after[name][0]) == ("float32", "float32"), name
        np.testing.assert_array_equal(after[name][1], rows, err_msg=name)


def saved(cluster: Cluster, directory: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name and file -> type and rows of a state."""
    directory.mkdir()
    call_all(cluster, "save_state", str(directory))
    assert all(isinstance(part, dict) for part in call_all(cluster, "state_result", True))
    return {
        f"{file.name} {name}": (str(rows.dtype).removeprefix("torch."), rows.float().numpy())
        for file in sorted(directory.glob("*.safetensors"))
        for name, rows in load_file(file).items()
    }


def test_an_update_in_bfloat16_is_close_to_the_one_in_float32(toy: Path, tiny_model: str) -> None:
    requests = requests_of(load_tokenizer(tiny_model), toy, 6)
    found: list[dict[str, Any]] = []
    samples = None
    for dtype in ("float32", "bfloat16"):
        more = ("trainer.executor=ray", "trainer.n_gpus_per_node=2", f"actor_rollout_ref.model.dtype={dtype}")
        with start_cluster(config_of(tiny_model, *more), 10) as cluster:
            if samples is None:
                samples = trajectories_of(requests, generate(cluster, requests, SamplingParams(n=2, max_tokens=8)))
                for place, one in enumerate(samples):
                    one.advantages = one.advantages * (-1) ** place
            bins = [
                [[samples[i] for i in one] for one in hand]
                for hand in arrange_micro_batches(samples, 2, Budget(10_000))
            ]
            gradients = cluster.each("gradients", [(hand,) for hand in bins])[0]
            found.append(
                gradients | {"norm": update(cluster, samples, Budget(10_000), "update_policy")["actor/grad_norm"]}
            )
    exact, rounded = found
    assert rounded["norm"] == pytest.approx(exact["norm"], rel=0.05)
    flat = [np.concatenate([one[name].ravel() for name in exact if name != "norm"]) for one in (exact, rounded)]
    cosine = float(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))
    assert cosine > 0.99


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; '.[cpu]' brings it")
def test_vllm_in_bfloat16_and_importance_weights_against_its_log_probabilities(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    _, lines = train(
        toy, tiny_model, tmp_path, *BF16, "actor_rollout_ref.rollout.name=vllm", "trainer.val_before_train=false",
        "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=16", "actor_rollout_ref.actor.optim.lr=1e-4",
        "algorithm.rollout_correction.rollout_is=token",
    )  # fmt: skip
    assert len(lines) == 2
    for line in lines:
        assert 0 < line["rollout/logprob_diff_mean"] < line["rollout/logprob_diff_max"] < 0.05
        assert line["rollout_corr/rollout_is_min"] < 1 < line["rollout_corr/rollout_is_max"]
        assert line["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=0.01)
        assert line["training/bad_step"] == 0
