"""Two Ray nodes on this machine: a trainer over both, and the rollout on the second."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import config_of, train

from r1ranker.trainer.workers.cluster import call_all, start_cluster

pytestmark = pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; '.[cpu]' brings it")

APART = ("trainer.executor=ray", "actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.placement=separate")


@pytest.mark.usefixtures("forking")
def test_two_nodes_with_the_rollout_on_the_second(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster as RayNodes

    nodes = RayNodes(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    try:
        config = config_of(tiny_model, "trainer.executor=ray", "trainer.nnodes=2")
        with start_cluster(config, 10) as cluster:
            assert len(set(call_all(cluster, "node"))) == 2
        actor, lines = train(
            toy, tiny_model, tmp_path, *APART, "trainer.total_training_steps=1",
        )  # fmt: skip
        assert lines[-1]["rollout/logprob_diff_max"] < 1e-4
        config = config_of(tiny_model, *APART)
        with start_cluster(config, 10) as cluster:
            assert call_all(cluster, "node") != call_all(cluster.rollout, "node")
        assert json.loads((Path(actor) / "r1ranker.json").read_text())["step"] == 1
    finally:
        ray.shutdown()
        nodes.shutdown()
