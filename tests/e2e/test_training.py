"""Whole runs on the built-in data: every estimator, the metrics they write, that they repeat themselves, and that they learn."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest
from runs import figures, hold, train
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from r1ranker import Ranker
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.errors import RunError, UserError
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.model.init import init_model
from r1ranker.rollout.hf import HFEngine
from r1ranker.trainer.monitoring.metrics import METRIC_NAMES, is_known_metric
from r1ranker.trainer.sft import SFTSettings, fine_tune
from r1ranker.trainer.workers.worker import Worker

RUNS = {
    "grpo": ["trainer.test_freq=1"],
    "grpo, direct": ["trainer.save_freq=1"],
    "rloo": ["algorithm.adv_estimator=rloo", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean"],
    "ppo": [
        "algorithm.adv_estimator=gae", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.actor.ppo_epochs=2",
        "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive", "algorithm.lam=0.95", "critic.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.recompute_old_log_probs=true", "trainer.critic_warmup=1",
    ],
    "gspo, dynamic sampling": [
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo", "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_epochs=2", "algorithm.filter_groups.enable=true", "algorithm.filter_groups.max_num_gen_batches=4",
    ],
    "cispo": [
        "actor_rollout_ref.actor.policy_loss.loss_mode=cispo", "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_epochs=2", "reward.overlong_buffer.enable=true", "reward.overlong_buffer.len=60",
        "reward.overlong_buffer.penalty_factor=0.5", "algorithm.rollout_correction.rollout_rs='token_k1,seq_max_k2'",
        "algorithm.rollout_correction.rollout_rs_threshold='0.5_2.0,1.0'",
    ],
    "dr_grpo": [
        "actor_rollout_ref.actor.policy_loss.loss_mode=dr_grpo", "algorithm.norm_adv_by_std_in_grpo=false",
    ],
    "reinforce++": [
        "algorithm.adv_estimator=reinforce_plus_plus", "algorithm.use_kl_in_reward=true", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
    ],
    "free answers": [
        "actor_rollout_ref.rollout.constrain=none", "data.think=true", "data.max_response_length=24", "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.use_dynamic_bsz=false", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3",
        "actor_rollout_ref.model.enable_gradient_checkpointing=true", "data.answer_style=label",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_kind_of_run_writes_known_finite_metrics_and_a_model_that_ranks(
    name: str, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    mode = "direct" if "direct" in name else "iterative"
    actor, lines = train(toy, tiny_model, tmp_path, *RUNS[name], mode=mode)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        for metric, value in line.items():
            assert metric == "step" or is_known_metric(metric), metric
            assert np.isfinite(value), metric
    last = lines[-1]
    assert last["rollout/logprob_diff_max"] < 1e-4
    assert last["training/bad_step"] == last["rollout/dropped_tokens"] == 0
    assert ("critic/values/mean" in last) == (name == "ppo")
    assert ("actor/kl_loss" in last) == (name == "free answers")
    assert ("actor/reward_kl_penalty" in last) == (name in ("ppo", "reinforce++"))
    if name == "ppo":
        assert "actor/pg_loss" not in lines[1]  # the critic warms up alone
        assert "timing_s/old_log_prob" in last
    assert ("filter_groups/kept" in last) == ("dynamic" in name)
    if "dynamic" in name:
        assert last["filter_groups/kept"] == 8
        assert last["critic/zero_signal_groups"] == 0
        assert lines[1]["filter_groups/num_gen_batches"] > 1
    assert ("reward/overlong/mean" in last) == (name == "cispo")
    assert last.get("rollout_corr/rollout_rs_masked_fraction") == (0 if name == "cispo" else None)
    if "free" not in name:
        assert last["reward/valid/mean"] == 1
    result = Ranker.from_pretrained(actor).rank(
        ["Silent Harbour"], ["Golden Verdict", "Broken Mirror", "Crimson Island"]
    )
    assert sorted(result.ranking) == ["Broken Mirror", "Crimson Island", "Golden Verdict"]


def test_chosen_steps_are_profiled(
    toy: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(toy, tiny_model, tmp_path, "trainer.profile_steps=[2]", "trainer.val_before_train=false")
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step_2_process_0.json.gz"]
    with gzip.open(tmp_path / "profile" / "step_2_process_0.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"aten::addmm", "aten::mm"} & names
    printed = capsys.readouterr().out
    assert "step 2, process 0: " in printed
    assert "aten::" in printed


def test_known_names_are_known_and_others_are_not() -> None:
    for name in (
        "critic/score/mean",
        "actor/pg_loss",
        "val-core/Rec-Movie/reward/mean",
        "reward/task/mean",
        "reward/failure_rate",
        "training/bad_step",
        "timing_s/gen",
    ):
        assert is_known_metric(name), METRIC_NAMES
    for name in ("critic/score", "actor/pg_los", "val-core/reward/mean", "timing_s/generation"):
        assert not is_known_metric(name)


def test_the_same_seed_gives_the_same_tokens_losses_and_weights(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    runs = [
        train(toy, tiny_model, tmp_path / name, f"trainer.seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    weights = [load_file(f"{actor}/model.safetensors") for actor, _ in runs]
    losses = [
        [{k: v for k, v in line.items() if not k.startswith(("timing", "perf"))} for line in lines] for _, lines in runs
    ]
    assert losses[0] == losses[1] != losses[2]
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
    assert any((value != weights[2][name]).any() for name, value in weights[0].items())


def test_a_mini_batch_of_the_whole_batch_starts_at_ratio_one(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    _, lines = train(toy, tiny_model, tmp_path)
    for line in lines[1:]:
        assert line["actor/pg_clipfrac"] == 0
        assert line["actor/ppo_kl"] == 0
        assert line["critic/advantages/mean"] == pytest.approx(0, abs=1e-6)


def test_a_batch_without_any_signal_takes_its_step_and_changes_nothing(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    reward = tmp_path / "flat.py"
    reward.write_text(
        "def flat(data_source, solution_str, ground_truth, extra_info=None):\n    return {'score': 0.4307, 'own_part': 2.0}\n"
    )
    actor, lines = train(
        toy, tiny_model, tmp_path / "run", f"custom_reward_function.path={reward}", "custom_reward_function.name=flat",
    )  # fmt: skip
    assert lines[-1]["critic/zero_signal_groups"] == 8
    assert lines[-1]["actor/grad_norm"] == 0
    assert lines[-1]["reward/own_part/mean"] == 2.0
    before, after = load_file(f"{tiny_model}/model.safetensors"), load_file(f"{actor}/model.safetensors")
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("return float('nan')", "finite number"),
        ("return 1 / 0", r"odd.py:2.*ZeroDivisionError"),
        ("return 'x'", "finite number"),
    ],
)
def test_a_reward_that_fails_is_named_with_its_place(
    body: str, wanted: str, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    file = tmp_path / "odd.py"
    file.write_text(f"def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    {body}\n")
    with pytest.raises(UserError, match=wanted):
        train(toy, tiny_model, tmp_path / "run", f"custom_reward_function.path={file}")


def test_wandb_offline_and_tensorboard_are_written_by_name(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    train(
        toy,
        tiny_model,
        tmp_path,
        "trainer.logger=[wandb,tensorboard]",
        "trainer.total_training_steps=1",
        "trainer.test_freq=1",
    )
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    # what was answered can be read there, as it is
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("rollouts", "validation"):
        (_, *_, last) = [None, *events.Tensors(f"{name}/text_summary")]
        assert last.step == 1
        (row, *_) = map(
            json.loads, (tmp_path / ("rollouts" if name == "rollouts" else "rollouts/validation") / "1.jsonl").open()
        )
        assert indent(row["output"], "    ") in last.tensor_proto.string_val[0].decode()
    tables = list((tmp_path / "wandb").glob("offline-run-*/files/media/table/*.table.json"))
    assert len(tables) >= 3  # a step, and validations before and after it
    assert all(json.loads(table.read_text())["columns"][3:5] == ["input", "output"] for table in tables)


@pytest.mark.parametrize("mode", ["iterative", "direct"])
def test_a_ranker_learns_the_toy_world(mode: str, tmp_path: Path) -> None:
    data, base = tmp_path / "data", str(tmp_path / "base")
    prepare(PrepareOptions("toy", str(data), think=False, size=100, tasks=["Rec-Movie"]))
    files = [str(data / f"{one}_ranking" / "train.parquet") for one in ("direct", "iterative")]
    init_model(base, files, vocab_size=500, title_tokens=True, title_words=True)
    overrides = [
        "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=16", "actor_rollout_ref.rollout.n=8",
        "trainer.total_training_steps=40", "actor_rollout_ref.actor.optim.lr=3e-3", "trainer.val_before_train=false",
        "actor_rollout_ref.actor.entropy_coeff=0.02",
    ]  # fmt: skip
    actor, _ = train(data, base, tmp_path / "run", *overrides, mode=mode)

    def measured(model: str) -> dict[str, Any]:
        own = {"strategy": mode, "think": False, "constrain": "candidates"}  # which the base does not say of itself
        options = EvaluationOptions(str(data / "bench"), output_dir=str(tmp_path), **own)  # type: ignore[arg-type]
        (report,) = run_evaluation("Rec-Movie", model, options, show=False)
        return report["tasks"]["Rec-Movie"]

    before, after = measured(base), measured(actor)
    assert after["metrics"]["mrr"]["mean"] > before["metrics"]["mrr"]["mean"] + 0.2
    assert after["metrics"]["mrr"]["low"] > after["baselines"]["most frequent label"]["mrr"]["mean"]


@pytest.mark.parametrize("every", ["true", "false"])
def test_pools_that_the_policy_leaves_are_small_and_the_same_again(
    every: str, toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    leaving = (
        "actor_rollout_ref.rollout.eliminate_to=3", "algorithm.adv_estimator=maxrl", f"actor_rollout_ref.rollout.every_answer={every}",
    )  # fmt: skip
    _, plain = train(toy, tiny_model, tmp_path / "plain")
    _, lines = train(toy, tiny_model, tmp_path / "left", *leaving)
    train(toy, tiny_model, tmp_path / "again", *leaving)
    for before, after in zip(plain[1:], lines[1:], strict=True):
        assert after["prompt_length/mean"] < before["prompt_length/mean"]
        assert after["prompt_length/max"] < before["prompt_length/max"]
    assert figures(tmp_path / "left") == figures(tmp_path / "again")


def test_a_cold_start_lowers_the_loss_and_teaches_the_form(toy_thinking: Path, tiny_model: str, tmp_path: Path) -> None:
    files = [str(toy_thinking / "iterative_ranking" / "sft.parquet")]
    losses = fine_tune(tiny_model, files, str(tmp_path / "sft"), SFTSettings(steps=100, batch_size=16, lr=1e-2))
    assert losses[-1] < 0.3 * losses[0]
    rough = fine_tune(tiny_model, files, str(tmp_path / "rough"), SFTSettings(steps=2, batch_size=16, dtype="bfloat16"))
    assert rough[0] != losses[0]
    assert rough[0] == pytest.approx(losses[0], rel=0.01)
    _, lines = train(
        toy_thinking, str(tmp_path / "sft"), tmp_path / "run", "actor_rollout_ref.rollout.constrain=none", "trainer.total_training_steps=1",
    )  # fmt: skip
    _, untaught = train(
        toy_thinking, tiny_model, tmp_path / "base", "actor_rollout_ref.rollout.constrain=none", "trainer.total_training_steps=1",
    )  # fmt: skip
    assert untaught[1]["reward/format/mean"] == -1
    assert lines[1]["reward/format/mean"] > -0.3
    assert lines[1]["reward/tags/mean"] > untaught[1]["reward/tags/mean"] + 0.3


def test_a_rollout_that_fails_ends_the_run_with_its_cause_and_leaves_the_last_actor(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    session = HFEngine.session

    def failing(self: HFEngine) -> Any:
        if next(calls) == 2:
            raise ArithmeticError("no such block")
        return session(self)

    monkeypatch.setattr(HFEngine, "session", failing)
    with pytest.raises(RunError, match=r"step 3: the rollout failed.*ArithmeticError: no such.*the actor of step 2"):
        train(
            toy, tiny_model, tmp_path, "trainer.save_freq=1", "trainer.total_training_steps=5", "trainer.val_before_train=false",
        )  # fmt: skip
    assert json.loads((tmp_path / "actor" / "r1ranker.json").read_text())["step"] == 2
    Ranker.from_pretrained(str(tmp_path / "actor")).rank(["Silent Harbour"], ["Golden Verdict", "Broken Mirror"])


@pytest.mark.usefixtures("one_ray")
def test_a_process_that_dies_ends_the_run_and_is_named(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Worker):
        def update_policy(self, bins: Any) -> dict[str, float]:
            os._exit(1)

    hold(monkeypatch, Dying)
    with pytest.raises(RunError, match=r"step 1: a process of the run died.*no actor was saved"):
        train(toy, tiny_model, tmp_path, "trainer.executor=ray", "trainer.max_restarts=0")
