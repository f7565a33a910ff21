"""Numbers that are not finite: nothing of them reaches weights or moments, and the samples are found, written and read again."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from r1ranker.errors import RunError, UserError
from r1ranker.model.execution import ExecutionOptions
from r1ranker.pretrained import load_tokenizer
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.models import OptimConfig
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.learners.critic import Critic
from r1ranker.trainer.learners.optimisation import Optimisation
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.monitoring.non_finite import (
    MAX_IN_A_ROW,
    NonFiniteError,
    NonFiniteSteps,
    read_samples,
    refuse_non_finite,
)
from r1ranker.trainer.monitoring.replay import replay
from r1ranker.trainer.workers.process import join_process_group

LOSS = PolicyLoss(ClipRange(), entropy_coeff=0.01, kl_coef=0.1)
DEVICE = torch.device("cpu")


def batch_of(seed: int = 0, groups: int = 2, n: int = 3) -> list[Trajectory]:
    random = np.random.default_rng(seed)
    batch = []
    for group in range(groups):
        prompt = random.integers(5, 100, 12).tolist()
        for _ in range(n):
            length = int(random.integers(2, 7))
            logprobs = random.normal(-5, 0.2, length)
            batch.append(
                Trajectory(
                    list(prompt), random.integers(5, 100, length).tolist(), logprobs, "stop", group,
                    score=float(random.normal()), old_logprobs=logprobs, ref_logprobs=logprobs - 0.1,
                    values=random.normal(size=length), returns=random.normal(size=length),
                    advantages=random.normal(size=length),
                )
            )  # fmt: skip
    assign_loss_weights(batch, "token-mean")
    return batch


def poisoned(column: str, value: float, place: int = 4) -> list[Trajectory]:
    batch = batch_of(1)
    array = getattr(batch[place], column).copy()
    array[1] = value
    setattr(batch[place], column, array)
    return batch


@pytest.fixture
def policy(tiny_model: str) -> Policy:
    join_process_group(None, 0, 1, DEVICE, timeout=60)
    return Policy(tiny_model, DEVICE, 1.0, ExecutionOptions())


@pytest.fixture
def critic(tiny_model: str) -> Critic:
    join_process_group(None, 0, 1, DEVICE, timeout=60)
    return Critic(tiny_model, DEVICE, 0.5, ExecutionOptions())


def state_after(
    model: Policy | Critic, start: dict, batches: list[list[Trajectory]]
) -> tuple[list[float], list[torch.Tensor]]:
    """Gradient norms of updates from `start`, one after another, and the weights and moments at the end."""
    model.module.load_state_dict(start)
    optimisation = Optimisation(model.module, OptimConfig(lr=1e-2), 10, grad_clip=1.0)
    norms = []
    for batch in batches:
        halves = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        if isinstance(model, Policy):
            norms.append(model.update(halves, LOSS, optimisation)["actor/grad_norm"])
        else:
            norms.append(model.update(halves, optimisation)["critic/grad_norm"])
    held = [one.detach().clone() for one in model.module.parameters()]
    for kept in optimisation.optimizer.state.values():
        held += [value.clone() for value in kept.values()]
    return norms, [one.full_tensor() if hasattr(one, "full_tensor") else one for one in held]


POISON: dict[str, Callable[[], list[Trajectory]]] = {
    "an advantage that is not finite": lambda: poisoned("advantages", math.nan),
    "an advantage over what float32 holds": lambda: poisoned("advantages", 1e200),
    "a reference that is not finite": lambda: poisoned("ref_logprobs", math.nan),
    "an old log-probability that is not finite": lambda: poisoned("old_logprobs", math.nan),
}


@pytest.mark.parametrize("case", POISON)
def test_nothing_of_a_bad_update_is_in_the_weights_or_the_moments(case: str, policy: Policy) -> None:
    bad = POISON[case]()
    start = copy.deepcopy(policy.module.state_dict())
    norms, with_it = state_after(policy, start, [batch_of(2), bad, batch_of(3)])
    assert [math.isfinite(norm) for norm in norms] == [True, False, True]
    others, without = state_after(policy, start, [batch_of(2), batch_of(3)])
    assert others == [norms[0], norms[2]]
    assert len(with_it) == len(without) > len(list(policy.module.parameters()))
    for found, wanted in zip(with_it, without, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    _, first = state_after(policy, start, [batch_of(2)])
    assert any((found != before).any() for found, before in zip(with_it, first, strict=True))


def test_a_bad_update_of_the_critic_changes_nothing_either(critic: Critic) -> None:
    start = copy.deepcopy(critic.module.state_dict())
    norms, with_it = state_after(critic, start, [batch_of(2), poisoned("returns", math.inf), batch_of(3)])
    assert [math.isfinite(norm) for norm in norms] == [True, False, True]
    _, without = state_after(critic, start, [batch_of(2), batch_of(3)])
    for found, wanted in zip(with_it, without, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    ((*losses,),) = critic.losses([poisoned("returns", math.inf)])
    assert [math.isfinite(one) for one in losses] == [True] * 4 + [False, True]


def test_a_loss_that_is_not_finite_stops_an_update_whose_gradient_is() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    module = torch.nn.ParameterList([weight])
    optimisation = Optimisation(module, OptimConfig(lr=1.0), 1, grad_clip=1.0)
    weight.grad = torch.ones(3)
    assert math.isnan(optimisation.step(is_finite=False))
    assert weight.grad is None
    assert weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize("case", POISON)
def test_the_offending_sample_is_known_by_its_own_loss(case: str, policy: Policy) -> None:
    batch = POISON[case]()
    found = [one for part in policy.losses([batch[:2], [], batch[2:]], LOSS) for one in part]
    assert [math.isfinite(one) for one in found] == [True] * 4 + [False, True]


def test_the_samples_own_losses_add_up_to_the_loss(policy: Policy) -> None:
    batch = batch_of()
    total = policy.accumulate_gradients([batch[:4], batch[4:]], LOSS)["loss"]
    assert sum(policy.losses([batch], LOSS)[0]) == pytest.approx(total, rel=1e-5)


def test_columns_are_checked_where_a_token_is_trained_on() -> None:
    batch = poisoned("values", math.nan)
    with pytest.raises(NonFiniteError, match="values are not finite") as found:
        refuse_non_finite(batch, ("ref_logprobs", "values"))
    assert found.value.offending == [batch[4]]
    batch[4].rollout_logprobs = np.where(np.arange(len(batch[4].response_ids)) == 1, np.nan, -1.0)
    refuse_non_finite(batch, ("ref_logprobs", "values"))  # the engine gave nothing for this token: it takes no part


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> Config:
    config = Config()
    config.actor_rollout_ref.model.path = tiny_model
    config.actor_rollout_ref.actor.use_kl_loss = True
    config.trainer.default_local_dir = str(tmp_path / "run")
    return config


def test_the_samples_are_written_whole_and_come_back(config: Config, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(config.actor_rollout_ref.model.path))
    batch = poisoned("advantages", math.nan)
    batch[4].allowed = [[7, 9], *[[] for _ in batch[4].response_ids[1:]]]
    batch[4].rejected = np.arange(len(batch[4].response_ids)) == 0
    said = NonFiniteSteps(config, tokenizer).record(NonFiniteError("advantages are not finite", batch, [batch[4]]), 7)
    file = tmp_path / "run" / "bad_steps" / "step_7.jsonl"
    assert said.startswith("advantages are not finite (1 of 6 samples, of group 1); no update was made of it")
    assert str(file) in said
    (line,) = [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]
    assert line["prompt"] == tokenizer.decode(batch[4].prompt_ids)
    assert line["response"] == tokenizer.decode(batch[4].response_ids)
    assert (line["step"], line["what"], line["advantages"][1]) == (7, "advantages are not finite", "nan")
    (back,) = read_samples([line])
    for name, value in vars(batch[4]).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(back, name), value)
        else:
            assert getattr(back, name) == value
    del line["rejected"], line["episode"]  # as written before there were these
    assert read_samples([line])[0].episode == -1


def test_a_bad_step_is_skipped_or_ends_the_run_and_so_do_many_in_a_row(config: Config) -> None:
    tokenizer = load_tokenizer(str(config.actor_rollout_ref.model.path))
    batch, bad_steps = batch_of(), NonFiniteSteps(config, tokenizer)
    found = NonFiniteError("the actor's loss or gradient is not finite", batch, [])
    for step in range(1, MAX_IN_A_ROW):
        assert "none of 6 samples by itself" in bad_steps.record(found, step)
    bad_steps.reset()
    for step in range(1, MAX_IN_A_ROW):
        bad_steps.record(found, step)
    with pytest.raises(RunError, match=r"step_10.jsonl; 10 steps in a row were such"):
        bad_steps.record(found, MAX_IN_A_ROW)
    config.trainer.on_bad_step = "stop"
    with pytest.raises(RunError, match=r"step_3.jsonl; trainer.on_bad_step is stop"):
        NonFiniteSteps(config, tokenizer).record(found, 3)


def test_a_bad_step_is_replayed_with_a_model(config: Config, policy: Policy, tmp_path: Path) -> None:
    model = str(config.actor_rollout_ref.model.path)
    batch = poisoned("advantages", math.inf)
    NonFiniteSteps(config, load_tokenizer(model)).record(NonFiniteError("the actor's loss", batch, []), 2)
    file = str(tmp_path / "run" / "bad_steps" / "step_2.jsonl")
    lines = list(replay(file, model))
    assert "the actor's loss in step 2; 6 samples" in lines[0]
    assert lines[-1] == "1 of 6 samples have numbers that are not finite"
    own = PolicyLoss.from_config(config.actor_rollout_ref.actor)
    (losses,) = policy.losses([[one] for one in batch][:1], own)
    assert f"log-probabilities finite, loss {losses[0]:.6g};" in lines[1]
    assert "line 5, group 1" in lines[5]
    found = "written down not finite: advantages (1 tokens), log-probabilities finite, loss -inf, not finite"
    assert found in lines[5]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('{"step": 1}\n', "not the samples of a bad step"),
        ("[1]\n", "line 1: found list"),
        ("", "empty"),
    ],
)
def test_another_file_is_refused_by_replay(content: str, wanted: str, tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "step_1.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=wanted):
        list(replay(str(file), tiny_model))


def test_tokens_that_a_model_does_not_have_are_refused_by_replay(config: Config, tmp_path: Path) -> None:
    model = str(config.actor_rollout_ref.model.path)
    batch = batch_of()
    NonFiniteSteps(config, load_tokenizer(model)).record(NonFiniteError("x", batch, []), 2)
    file = tmp_path / "run" / "bad_steps" / "step_2.jsonl"
    file.write_text(
        file.read_text().replace(f'"response_ids": [{batch[1].response_ids[0]},', '"response_ids": [99999,')
    )
    with pytest.raises(UserError, match="line 2: holds tokens that"):
        list(replay(str(file), model))
