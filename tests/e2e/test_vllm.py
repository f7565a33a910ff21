"""The real vLLM behind the engine's protocol: alone, in the trainer's processes, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from runs import config_of, hold, requests_of, train, trajectories_of
from shared_ray import SharedRay

from r1ranker.data.loader import load_prompts
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.engine import SamplingParams
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.conversing import build_episodes
from r1ranker.trainer.workers.cluster import Cluster, start_cluster
from r1ranker.trainer.workers.dispatch import fill, generate, stream_episodes, update
from r1ranker.trainer.workers.worker import Worker

pytestmark = [
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; '.[cpu]' brings it"),
    pytest.mark.usefixtures("one_ray"),
]

VLLM = ("trainer.executor=ray", "actor_rollout_ref.rollout.name=vllm")
FAST = "actor_rollout_ref.actor.optim.lr=0.01"


@pytest.fixture(scope="module")
def trained(toy: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model after some steps, so that its distributions are no longer flat."""
    actor, _ = train(
        toy, tiny_model, tmp_path_factory.mktemp("trained"), "trainer.total_training_steps=12",
        "actor_rollout_ref.actor.optim.lr=3e-3", "trainer.val_before_train=false",
    )  # fmt: skip
    return actor


@pytest.fixture(scope="module")
def vllm_cluster(shared_ray: SharedRay, trained: str) -> Iterator[Cluster]:
    """A process with vLLM over that model."""
    shared_ray.start()
    with start_cluster(config_of(trained, *VLLM), 10) as cluster:
        yield cluster


def test_both_engines_decode_the_same_greedily(vllm_cluster: Cluster, trained: str, toy: Path) -> None:
    tokenizer = load_tokenizer(trained)
    requests = [
        request
        for mode in ("direct", "iterative")
        for constrain in (True, False)
        for request in requests_of(tokenizer, toy, 50, constrain, mode)
    ]
    assert len(requests) == 200
    params = SamplingParams(temperature=0, max_tokens=32)
    found = {"vllm": generate(vllm_cluster, requests, params)}
    for name, overrides in {
        "hf": ["actor_rollout_ref.rollout.name=hf"],
        "vllm over two processes": [
            *VLLM, "trainer.n_gpus_per_node=2", "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
        ],
    }.items():  # fmt: skip
        config = config_of(trained, *overrides)
        with start_cluster(config, 10) as cluster:
            size = config.actor_rollout_ref.rollout.tensor_model_parallel_size
            found[name] = generate(cluster, requests, params, engine_size=size)
    for name in ("vllm", "vllm over two processes"):
        for (own,), (expected,) in zip(found[name], found["hf"], strict=True):
            assert own.token_ids == expected.token_ids
            assert own.finish_reason == expected.finish_reason
            assert own.allowed == expected.allowed
            np.testing.assert_allclose(own.logprobs, expected.logprobs, atol=1e-4)


def test_samples_have_seeds_of_their_own_whatever_the_batch(vllm_cluster: Cluster, trained: str, toy: Path) -> None:
    requests = requests_of(load_tokenizer(trained), toy, 8, constrain=False)
    params = SamplingParams(n=6, max_tokens=16)
    together = generate(vllm_cluster, requests, params)
    reversed_ = generate(vllm_cluster, requests[::-1], params)[::-1]
    tokens = [[[one.token_ids for one in samples] for samples in run] for run in (together, reversed_)]
    assert tokens[0] == tokens[1]
    for samples in tokens[0]:
        assert len({tuple(one) for one in samples}) == 6


def gap(cluster: Cluster, trajectories: list[Trajectory]) -> float:
    """Largest difference between the engine's and the trainer's log-probabilities."""
    fill(cluster, trajectories, "old_logprobs", Budget(10_000), "logprobs", "policy")
    return max(float(np.abs(one.old_logprobs - one.rollout_logprobs).max()) for one in trajectories)  # type: ignore[operator]


def before_and_after_a_sync(config: Config, model: str, toy: Path) -> tuple[float, float]:
    requests = requests_of(load_tokenizer(model), toy, 6) + requests_of(load_tokenizer(model), toy, 6, constrain=False)
    params = SamplingParams(n=2, temperature=0.7, max_tokens=24)
    with start_cluster(config, 10) as cluster:
        stale = trajectories_of(requests, generate(cluster, requests, params))
        for _ in range(3):
            update(cluster, stale, Budget(10_000), "update_policy")
        moved = gap(cluster, stale)
        cluster.sync_weights()
        return moved, gap(cluster, trajectories_of(requests, generate(cluster, requests, params)))


def test_conversations_go_on_over_kept_prefixes(vllm_cluster: Cluster, trained: str, toy: Path) -> None:
    tokenizer, config = (
        load_tokenizer(trained),
        config_of(trained, *VLLM, "data.rounds=conversation", "actor_rollout_ref.rollout.eliminate_to=2"),
    )
    prompts, _ = load_prompts([str(toy / "iterative_ranking" / "test.parquet")], tokenizer, 2000, True, "label", False)
    episodes = build_episodes(config, tokenizer, prompts[:60:5], 2, 1, to_learn=True)
    played = dict(stream_episodes(vllm_cluster, episodes, SamplingParams(temperature=1.0, max_tokens=16)))
    trajectories = [
        Trajectory(
            turn.prompt_ids, turn.completion.token_ids, np.array(turn.completion.logprobs), "stop", place // 2,
            allowed=turn.completion.allowed, episode=place, turn=len(turn.out), root_length=len(episodes[place].token_ids),
        )
        for place, turns in sorted(played.items())
        for turn in turns
    ]  # fmt: skip
    assert len(played) == len(episodes)
    assert len(trajectories) > 2 * len(episodes)
    assert gap(vllm_cluster, trajectories) < 1e-4
    later = [turn for turns in played.values() for turn in turns if turn.out]
    # whole blocks of what came before are not computed again
    assert sum(turn.completion.cached_tokens for turn in later) > 0.6 * sum(len(turn.prompt_ids) for turn in later)


PLACES = {
    "one process": ("trainer.n_gpus_per_node=1",),
    "two processes": ("trainer.n_gpus_per_node=2",),
    "processes of its own": ("actor_rollout_ref.rollout.placement=separate", "actor_rollout_ref.rollout.n_workers=2"),
}


@pytest.mark.parametrize(
    ("model", "place"),
    [("tiny_model", "one process"), ("tiny_model", "processes of its own"), ("untied_model", "two processes")],
)
def test_engine_and_trainer_agree_right_after_a_sync(
    model: str, place: str, toy: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    config = config_of(path, *VLLM, FAST, *PLACES[place], "actor_rollout_ref.rollout.temperature=0.7")
    before, after = before_and_after_a_sync(config, path, toy)
    assert before > 1e-2
    assert after < 1e-4


def test_without_the_repair_a_tied_head_stays_stale(
    tiny_model: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unrepaired(Worker):
        """Syncs without packing the tied output embedding anew."""

        def start_engine(self) -> None:
            from r1ranker.rollout import vllm

            vllm._repack_tied_head = lambda model: None  # type: ignore[assignment]
            super().start_engine()

    hold(monkeypatch, Unrepaired)
    config = config_of(tiny_model, *VLLM, FAST, "actor_rollout_ref.rollout.temperature=0.7")
    _, after = before_and_after_a_sync(config, tiny_model, toy)
    assert after > 1e-2  # if this no longer holds, vLLM repacks the head itself and the repair can go


@pytest.mark.parametrize(("model", "rank"), [("tiny_model", 0), ("untied_model", 4)])
def test_a_run_of_two_processes_keeps_engine_and_trainer_together(
    model: str, rank: int, toy: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of whole weights, and of adapters, which the engine has merged."""
    _, lines = train(
        toy, request.getfixturevalue(model), tmp_path, *VLLM, "trainer.n_gpus_per_node=2", "trainer.total_training_steps=3",
        "actor_rollout_ref.actor.optim.lr=3e-3", "algorithm.rollout_correction.rollout_is=sequence",
        f"actor_rollout_ref.model.lora_rank={rank}",
    )  # fmt: skip
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines[1:]:
        assert line["rollout/logprob_diff_max"] < 1e-4
        assert abs(line["rollout/kl"]) < 1e-4
        assert line["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=1e-4)


RANK = """
import json, os, sys
from dataclasses import replace
from r1ranker import Ranker, load_examples
from r1ranker.ranking.settings import EliminationSettings
from r1ranker.tasks.prompts import AnswerFormat
examples = [one for one in load_examples(sys.argv[2]) if one.task in ("Rec-Movie", "Router-Cost", "Passage-9")][:24:2]
# what vLLM keeps of a prompt is whole blocks: requests long enough to fill some
examples = [replace(one, history=one.history * 8, query=" ".join([one.query] * 8).strip()) for one in examples]
found = {}
for engine in ("hf", "vllm"):
    for votes in (1, 3):
        settings = EliminationSettings(eliminate=votes, votes=votes)
        ranker = Ranker.from_pretrained(sys.argv[1], engine=engine, elimination=settings, think=False, constrain="candidates")
        for waves in (False, True):
            results = dict(ranker.rank_stream(examples, waves))
            found[f"{engine} {votes} {waves}"] = [
                [results[place].ranking, results[place].calls, results[place].cached_tokens, results[place].prompt_tokens]
                for place in range(len(examples))
            ]
        for style in ("label", "letter") if votes == 1 else ():
            asked = replace(ranker.settings, strategy="logits", answer_format=AnswerFormat(style, think=False))
            ranker.settings = asked
            results = dict(ranker.rank_stream(examples))
            found[f"{engine} {style}"] = [
                [list(results[place].scores.items()), results[place].calls, results[place].cached_tokens]
                for place in range(len(examples))
            ]
        ranker.engine.close()
print(json.dumps(found), flush=True)
os._exit(0)  # to take all apart that vLLM has imported is four seconds' work
"""


def test_queries_that_go_on_by_themselves_are_ranked_as_in_step(trained: str, toy: Path) -> None:
    command = [sys.executable, "-c", RANK, trained, str(toy / "bench")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    rankings = {name: [one[0] for one in rows] for name, rows in found.items()}
    for votes in (1, 3):
        assert rankings[f"vllm {votes} False"] == rankings[f"vllm {votes} True"]
        assert rankings[f"hf {votes} False"] == rankings[f"hf {votes} True"]
    assert rankings["vllm 1 False"] == rankings["hf 1 False"]  # greedy
    calls = {name: sum(one[1] for one in rows) for name, rows in found.items()}
    assert calls["vllm 3 False"] < calls["vllm 1 False"]
    for ranking, calls_of_it, cached, prompt in found["vllm 1 False"]:
        assert calls_of_it == len(ranking) - 1
        assert 0 < cached < prompt
    for style in ("label", "letter"):
        for (ours, calls_of_it, _), (theirs, *_) in zip(found[f"hf {style}"], found[f"vllm {style}"], strict=True):
            assert dict(theirs) == pytest.approx(dict(ours), abs=1e-4)
            assert calls_of_it == 1 or style == "label"
