"""The update is the same for one process and two, here and through Ray, in one micro-batch and in seven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import ray
import runs

from r1ranker.errors import UserError
from r1ranker.trainer.algorithm.estimation import assign_loss_weights, drop_without_gradient
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.workers import hosts
from r1ranker.trainer.workers.cluster import Cluster, RayWorkers, call_all, start_cluster
from r1ranker.trainer.workers.dispatch import fill, update
from r1ranker.trainer.workers.worker import Worker


def config_of(model: str, *overrides: str) -> Config:
    return runs.config_of(
        model,
        f"critic.model.path={model}",
        "algorithm.adv_estimator=gae",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.entropy_coeff=0.01",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        *overrides,
    )


def batch(seed: int = 0, count: int = 7) -> list[Trajectory]:
    random = np.random.default_rng(seed)
    made = []
    prompts = [random.integers(0, 400, int(random.integers(3, 30))).tolist() for _ in range(3)]
    for group in range(count):
        length = int(random.integers(2, 9))
        made.append(
            Trajectory(
                # three prompts of 3, 3 and 1 responses
                prompt_ids=list(prompts[group % 3]),
                response_ids=random.integers(0, 400, length).tolist(),
                rollout_logprobs=random.normal(-6.1, 0.1, length),
                finish_reason="stop",
                group_id=group,
                advantages=random.normal(size=length),
                returns=random.normal(size=length),
                old_logprobs=random.normal(-6.1, 0.1, length),
                allowed=[[]] * (length - 1) + [[int(token) for token in (1, 2, 3)]] if group == 1 else [],
            )
        )
        if group == 1:
            made[-1].response_ids[-1] = 2
    assign_loss_weights(made, "token-mean")
    return made


def conversations() -> list[Trajectory]:
    """Two conversations on one prompt, of three turns and of one, and another answer to a turn of the first."""
    random = np.random.default_rng(8)
    made: list[Trajectory] = []
    root = random.integers(0, 400, 6).tolist()
    for episode, turns in ((100, 3), (101, 1)):
        ids = list(root)
        for turn in range(turns):
            answers = 2 if turn == 1 else 1
            response = random.integers(0, 400, 2).tolist()
            for other in range(answers):
                made.append(
                    Trajectory(
                        prompt_ids=ids,
                        response_ids=[(response[0] + other) % 400, response[1]],
                        rollout_logprobs=random.normal(-6.1, 0.1, 2),
                        finish_reason="stop",
                        group_id=100,
                        advantages=random.normal(size=2),
                        returns=random.normal(size=2),
                        old_logprobs=random.normal(-6.1, 0.1, 2),
                        episode=episode,
                        turn=turn,
                        root_length=len(root),
                    )
                )
            ids = [*ids, response[0], *random.integers(0, 400, 3).tolist()]
    return made


def run(cluster: Cluster, budget: Budget, seed: int = 0) -> dict[str, np.ndarray]:
    """Everything a step computes: reference, values, the gradient, both updates, and the weights after them."""
    trajectories = batch(seed) + conversations()
    assign_loss_weights(trajectories, "token-mean")
    fill(cluster, trajectories, "ref_logprobs", budget, "logprobs", "reference")
    fill(cluster, trajectories, "values", budget, "values")
    bins = [
        [[trajectories[index] for index in one] for one in hand]
        for hand in arrange_micro_batches(trajectories, cluster.size, budget)
    ]
    gradients = cluster.each("gradients", [(hand,) for hand in bins])[0]
    critic = update(cluster, trajectories, budget, "update_critic")
    policy = update(cluster, trajectories, budget, "update_policy")
    weights = call_all(cluster, "weights")[0]
    return (
        {f"gradient {name}": value for name, value in gradients.items()}
        | {f"weight {name}": value for name, value in weights.items()}
        | {name: np.array(value) for name, value in (critic | policy).items()}
        | {"ref": np.concatenate([one.ref_logprobs for one in trajectories])}
        | {"values": np.concatenate([one.values for one in trajectories])}
    )


@pytest.fixture(scope="module")
def alone(tiny_model: str) -> dict[str, np.ndarray]:
    """One process, one micro-batch."""
    with start_cluster(config_of(tiny_model), 10) as cluster:
        return run(cluster, Budget(10_000))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        # norms and sums are of order 1 to 10, gradients and weights below 1; Adam moves a weight by up to the learning rate, 1e-4, whose
        # gradient is rounding alone
        atol = 5e-6 if name.startswith("weight") else 1e-6
        np.testing.assert_allclose(found[name], value, atol=atol, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("budget", [Budget(10_000, 1), Budget(40), Budget(10_000, 3)])
def test_micro_batches_make_no_difference(tiny_model: str, alone: dict[str, np.ndarray], budget: Budget) -> None:
    with start_cluster(config_of(tiny_model), 10) as cluster:
        assert_same(run(cluster, budget), alone)


def test_sharing_prompts_makes_no_difference(tiny_model: str, alone: dict[str, np.ndarray]) -> None:
    for checkpointing in (False, True):
        config = config_of(
            tiny_model,
            "actor_rollout_ref.model.share_prompts=false",
            f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}",
        )
        with start_cluster(config, 10) as cluster:
            assert_same(run(cluster, Budget(10_000, share_prompts=False)), alone)


def test_an_update_without_the_groups_that_say_nothing_is_the_same(tiny_model: str) -> None:
    weights = []
    overrides = "actor_rollout_ref.actor.use_kl_loss=false", "actor_rollout_ref.actor.entropy_coeff=0"
    for skip in (True, False):
        config = config_of(tiny_model, *overrides)
        trajectories = batch()
        for index in (0, 3, 4, 6):
            trajectories[index].advantages = np.zeros(len(trajectories[index].response_ids))
        learning = drop_without_gradient(trajectories, config.actor_rollout_ref.actor)
        assert learning == [trajectories[index] for index in (1, 2, 5)]
        with start_cluster(config, 10) as cluster:
            for _ in range(2):
                update(cluster, learning if skip else trajectories, Budget(10_000), "update_policy")
            update(cluster, learning[:0] if skip else trajectories[:1], Budget(10_000), "update_policy")
            weights.append(call_all(cluster, "weights")[0])
    assert_same(*weights)


def test_every_group_takes_part_where_a_kl_or_an_entropy_term_has_a_gradient(tiny_model: str) -> None:
    for override in ("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.entropy_coeff=0.1"):
        others = "actor_rollout_ref.actor.use_kl_loss=false", "actor_rollout_ref.actor.entropy_coeff=0"
        config, trajectories = config_of(tiny_model, *others, override), batch()
        trajectories[0].advantages = np.zeros(len(trajectories[0].response_ids))
        assert drop_without_gradient(trajectories, config.actor_rollout_ref.actor) == trajectories


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(
    ("processes", "budget"), [(1, Budget(10_000)), (2, Budget(10_000)), (2, Budget(10_000, 1)), (2, Budget(60))]
)
def test_processes_make_no_difference(
    tiny_model: str, alone: dict[str, np.ndarray], processes: int, budget: Budget
) -> None:
    config = config_of(tiny_model, "trainer.executor=ray", f"trainer.n_gpus_per_node={processes}")
    with start_cluster(config, 10) as cluster:
        assert cluster.size == processes
        assert_same(run(cluster, budget), alone)


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("name", ["muon", "adamw_8bit"])
def test_an_optimizer_takes_one_step_whatever_holds_the_matrices(tiny_model: str, name: str) -> None:
    chosen = (
        f"actor_rollout_ref.actor.optim.name={name}",
        f"critic.optim.name={name}",
        "actor_rollout_ref.actor.use_kl_loss=false",
    )
    weights = []
    for overrides in ((), ("trainer.executor=ray", "trainer.n_gpus_per_node=2")):
        with start_cluster(config_of(tiny_model, *chosen, *overrides), 10) as cluster:
            for seed in range(2):
                trajectories = batch(seed)
                fill(cluster, trajectories, "values", Budget(10_000), "values")
                update(cluster, trajectories, Budget(10_000), "update_policy")
                update(cluster, trajectories, Budget(10_000), "update_critic")
            fill(cluster, trajectories, "values", Budget(10_000), "values")
            values = np.concatenate([one.values for one in trajectories if one.values is not None])
            weights.append(call_all(cluster, "weights")[0] | {"values": values})
    for name, value in weights[0].items():
        # of updates of at most 1e-4 the first digits are the same: Muon makes matrices orthogonal in bfloat16, and a moment of
        # eight bits may be rounded the other way
        np.testing.assert_allclose(weights[1][name], value, atol=2e-5, rtol=0, err_msg=name)


def sum_whole(host: hosts.Host) -> None:
    """As where GPUs have room for the gradients of models that rest in host memory."""
    worker: Worker = host.process
    for learner in (worker.policy, worker.critic):
        assert learner is not None
        learner._execution = replace(learner._execution, sums_on_device=True)


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(("processes", "budget"), [(1, Budget(10_000, 1)), (2, Budget(10_000, 1)), (2, Budget(60))])
def test_gradients_that_are_summed_whole_are_the_same(
    tiny_model: str, alone: dict[str, np.ndarray], processes: int, budget: Budget
) -> None:
    offload = [f"{role}.fsdp_config.param_offload=true" for role in ("actor_rollout_ref.actor", "critic.model")]
    config = config_of(tiny_model, "trainer.executor=ray", f"trainer.n_gpus_per_node={processes}", *offload)
    with start_cluster(config, 10) as cluster:
        assert isinstance(cluster, RayWorkers)
        ray.get([actor.__ray_call__.remote(sum_whole) for actor in cluster._actors])
        assert_same(run(cluster, budget), alone)


@pytest.mark.usefixtures("one_ray")
def test_an_actor_that_cannot_be_written_leaves_no_process_waiting(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = config_of(tiny_model, "trainer.executor=ray", "trainer.n_gpus_per_node=2")
    with start_cluster(config, 10) as cluster:
        with pytest.raises(UserError, match="cannot be written"):
            call_all(cluster, "save_policy", str(tmp_path / "file" / "actor"), {})
        call_all(cluster, "save_policy", str(tmp_path / "actor"), {})  # and all are in step
    assert (tmp_path / "actor" / "model.safetensors").is_file()


@pytest.mark.usefixtures("one_ray")
def test_a_batch_of_one_leaves_a_process_without_work_and_nothing_hangs(tiny_model: str) -> None:
    config = config_of(tiny_model, "trainer.executor=ray", "trainer.n_gpus_per_node=2")
    with start_cluster(config, 10) as cluster:
        only = batch(count=1)
        for one in only:
            one.ref_logprobs = one.old_logprobs
        metrics = update(cluster, only, Budget(10_000), "update_policy")
    with start_cluster(config_of(tiny_model), 10) as cluster:
        expected = update(cluster, only, Budget(10_000), "update_policy")
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6, rel=1e-6), name


@pytest.mark.usefixtures("one_ray")
def test_processes_that_were_begun_are_taken_and_others_are_ended(tiny_model: str) -> None:
    apart = "actor_rollout_ref.rollout.placement=separate"
    config = config_of(tiny_model, "trainer.executor=ray", apart)
    with hosts.begin_hosts(config, Event()):
        begun = list(hosts._begun.values())
        with start_cluster(config, 1) as cluster:
            assert isinstance(cluster, RayWorkers)
            assert isinstance(cluster.rollout, RayWorkers)
            assert [cluster._hosts, cluster.rollout._hosts] == begun
            assert not hosts._begun
    with hosts.begin_hosts(config, Event()):
        begun = list(hosts._begun.values())
    assert not hosts._begun
    for placed in begun:
        table = ray.util.placement_group_table(placed.groups[0])
        assert table["state"] == "REMOVED"
    ended = Event()
    ended.set()
    with hosts.begin_hosts(config, ended):
        assert not hosts._begun
