"""Groups of every answer that a pool has: probabilities are transformers', and an update is what infinitely many samples would make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.data.loader import load_prompts
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import RunError, UserError
from r1ranker.model.init import save_hf
from r1ranker.rollout.constraint import PoolConstraint, build_constraint
from r1ranker.tasks.answers import parse_answer
from r1ranker.trainer.algorithm.estimation import assign_advantages, assign_loss_weights
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.enumeration import (
    MOST_RANKED,
    _enumerate_paths,
    answer_probabilities,
    enumerate_answers,
)
from r1ranker.trainer.loop import Run
from r1ranker.trainer.monitoring.metrics import batch_metrics
from r1ranker.trainer.workers.cluster import Cluster, start_cluster


@pytest.fixture
def config(toy: Path, tiny_model: str, tmp_path: Path) -> Config:
    return load_config(
        "quickstart",
        [
            f"data.train_files={toy}/iterative_ranking/train.parquet",
            f"data.val_files={toy}/iterative_ranking/test.parquet",
            f"actor_rollout_ref.model.path={tiny_model}",
            f"trainer.default_local_dir={tmp_path}",
            "actor_rollout_ref.rollout.every_answer=true",
        ],
    )


def path_probabilities(model: Any, prompt: Prompt, paths: Sequence[Sequence[int]]) -> torch.Tensor:
    """Of each path [K], renormalised at each token over those that some path goes on with."""
    found = []
    for path in paths:
        logits = model(torch.tensor([[*prompt.token_ids, *path]])).logits[0].double()
        logprob = torch.zeros((), dtype=torch.float64)
        for depth, token in enumerate(path):
            going = sorted({other[depth] for other in paths if tuple(other[:depth]) == tuple(path[:depth])})
            row = logits[len(prompt.token_ids) + depth - 1]
            logprob = logprob + row[token] - row[going].logsumexp(0)
        found.append(logprob.exp())
    return torch.stack(found)


def first_batch(run: Run, cluster: Cluster) -> tuple[Sequence[Prompt], list[Trajectory], dict[str, float]]:
    """The first step's prompts, their scored trajectories, and the means of the rewards' parts."""
    sampling = run.sampler.begin(cluster, 1, 0, {})
    sampling.receive({})
    return sampling.prompts, *sampling.trajectories({})


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6))
def test_what_every_answer_allows_is_what_sampling_does(names: list[list[int]]) -> None:
    last = tuple(dict.fromkeys((*name, 9) for name in names))  # 9 ends an answer, so that none begins another
    check_paths(PoolConstraint((), last, True), list(last))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=4), st.booleans())
def test_so_are_the_orders_of_a_direct_ranking(names: list[list[int]], same: bool) -> None:
    distinct = list(dict.fromkeys(map(tuple, names)))
    last, more = (tuple((*name, end) for name in distinct) for end in (9, 8))
    first = () if same else tuple((7, *name) for name in more)  # spelled in another way directly behind the tag
    orders = [
        (*chain.from_iterable((first or more)[place] if not at else more[place] for at, place in enumerate(order[:-1])),
         *last[order[-1]])
        for order in permutations(range(len(last)))
    ]  # fmt: skip
    check_paths(PoolConstraint(more, last, True, first), orders)


def check_paths(constraint: PoolConstraint, expected: Sequence[tuple[int, ...]]) -> None:
    """What is enumerated, and what is allowed at each place: what some path goes on with, and its own token where one path is left."""
    prompt: Any = SimpleNamespace(token_ids=[5])
    going: dict[tuple[int, ...], set[int]] = {}
    for ids in expected:
        for depth, token in enumerate(ids):
            going.setdefault(ids[:depth], set()).add(token)
    for ids, answer in zip(expected, _enumerate_paths(constraint, prompt, 0, np.random.default_rng(1)), strict=True):
        assert answer.response_ids == list(ids)
        assert answer.allowed == [sorted(going[ids[:depth]]) for depth in range(len(ids))]


def test_probabilities_are_those_of_the_model_over_the_pool(config: Config, toy: Path, tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompts = load_prompts([f"{toy}/iterative_ranking/train.parquet"], tokenizer, 2000)[0][:40:4]
    with start_cluster(config, 1) as cluster:
        found = enumerate_answers(cluster, config, tokenizer, prompts)
    for prompt, answers in zip(prompts, found, strict=True):
        paths = build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format).final_ids
        assert [tuple(answer.token_ids) for answer in answers] == list(paths)
        expected = path_probabilities(model, prompt, paths).detach().numpy()
        assert expected.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(answer_probabilities(answers), expected, atol=1e-5)


@pytest.mark.parametrize("logarithm", [False, True])
def test_the_gradient_is_that_of_the_expected_reward_or_its_logarithm(
    logarithm: bool, config: Config, tiny_model: str
) -> None:
    config.algorithm.adv_estimator = "maxrl" if logarithm else "grpo"
    config.algorithm.norm_adv_by_std_in_grpo = False
    config.actor_rollout_ref.rollout.eliminate_to = 6
    config.data.train_batch_size = 6
    run = Run(config)
    with start_cluster(config, 1) as cluster:
        prompts, trajectories, metrics = first_batch(run, cluster)
        metrics |= assign_advantages(trajectories, config.algorithm, run.kl_control, every_answer=True)
        metrics |= batch_metrics(trajectories, 1000, 1000)
        assign_loss_weights(trajectories, "token-mean")
        gradients = cluster.each("gradients", [([trajectories],)])[0]
    run.close()
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokens, means, objective = sum(len(one.response_ids) for one in trajectories), [], torch.zeros(())
    for group in range(6):
        own = [one for one in trajectories if one.group_id == group]
        assert 2 <= len(own) <= 6
        asked = prompts[group]
        policy = path_probabilities(model, asked, [one.response_ids for one in own])
        expected = policy @ torch.tensor([one.score for one in own], dtype=torch.float64)
        means.append((len(own), expected.item()))
        objective = objective + len(own) * (expected.log() if logarithm else expected)
    (-objective / tokens).backward()
    wanted = {name: one.grad.numpy() for name, one in model.named_parameters() if one.grad is not None}
    assert set(gradients) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(gradients[name], value, atol=2e-6, rtol=1e-3, err_msg=name)
    weighted = sum(size * mean for size, mean in means) / sum(size for size, _ in means)
    for name in ("reward/score/mean", "critic/score/mean", "critic/rewards/mean"):
        assert metrics[name] == pytest.approx(weighted, abs=1e-5), name
    # what is better than the mean of its group is so by as much as the rest is worse: weighted by the policy
    assert metrics["critic/advantages/mean"] == pytest.approx(0, abs=1e-6)
    assert (
        abs(np.mean([one.score for one in trajectories]) - weighted) > 1e-3
    )  # all answers alike would be another figure


def test_weights_that_have_diverged_are_named(config: Config, toy: Path, tiny_model: str, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    save_hf(str(tmp_path / "diverged"), model, tokenizer)
    config.actor_rollout_ref.model.path = str(tmp_path / "diverged")
    prompts = load_prompts([f"{toy}/iterative_ranking/train.parquet"], tokenizer, 2000)[0][:2]
    with start_cluster(config, 1) as cluster, pytest.raises(RunError, match="weights have diverged"):
        enumerate_answers(cluster, config, tokenizer, prompts)


def test_a_large_pool_has_every_first_choice_before_an_order_that_is_given(
    config: Config, toy: Path, tiny_model: str
) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    prompts = load_prompts([f"{toy}/direct_ranking/train.parquet"], tokenizer, 2000)[0][:2]
    with start_cluster(config, 1) as cluster:
        config.data.max_response_length = 8
        with pytest.raises(
            UserError, match=r"row 0: an answer of \d+ candidates has \d+ tokens; found data.max_response"
        ):
            enumerate_answers(cluster, config, tokenizer, prompts, 1)
        config.data.max_response_length = 512
        found = enumerate_answers(cluster, config, tokenizer, prompts, 1)
        again, other = (enumerate_answers(cluster, config, tokenizer, prompts, step) for step in (1, 2))
    assert found == again != other  # the step says which order is drawn
    for prompt, answers in zip(prompts, found, strict=True):
        size = len(prompt.candidates)
        assert size > MOST_RANKED
        texts = [tokenizer.decode(answer.token_ids, skip_special_tokens=True) for answer in answers]
        orders = [parse_answer(text, prompt.candidates, "direct", prompt.answer_format).named for text in texts]
        assert [sorted(order) for order in orders] == [list(range(size))] * size
        assert [sorted(place) for place in zip(*orders, strict=True)] == [list(range(size))] * size
        constraint = build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format)
        paths = constraint.first_ids or constraint.separated_ids
        expected = path_probabilities(model, prompt, paths).detach().numpy()
        np.testing.assert_allclose(answer_probabilities(answers), expected[[order[0] for order in orders]], atol=1e-5)


def test_prompts_with_thoughts_are_refused(config: Config, toy_thinking: Path, tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = load_prompts([f"{toy_thinking}/iterative_ranking/train.parquet"], tokenizer, 2000)[0][:1]
    with (
        start_cluster(config, 1) as cluster,
        pytest.raises(UserError, match=r"row 0: .*every_answer wants answers at once"),
    ):
        enumerate_answers(cluster, config, tokenizer, prompts)


def test_a_group_counts_as_many_samples_as_its_pool_has_candidates(config: Config, tmp_path: Path) -> None:
    rows = [{"candidates": [*"abcdef"][:size], "positive": "b"} for size in (3, 4, 6)]
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"split": split, "query": f"{split} {len(row['candidates'])}", **row}) + "\n"
            for split in ("train", "test")
            for row in rows
        )
    )
    prepare(PrepareOptions(str(tmp_path / "own.jsonl"), str(tmp_path / "data"), think=False))
    config.data.train_files = config.data.val_files = f"{tmp_path}/data/direct_ranking/train.parquet"
    config.data.train_batch_size = config.actor_rollout_ref.actor.ppo_mini_batch_size = 3
    config.data.max_response_length = 100
    run = Run(config)
    with start_cluster(config, 1) as cluster:
        prompts, trajectories, _ = first_batch(run, cluster)
    run.close()
    for group, prompt in enumerate(prompts):
        own, size = [one for one in trajectories if one.group_id == group], len(prompt.candidates)
        assert len(own) == {3: 6, 4: 24, 6: 6}[size]
        assert sum(one.sample_weight for one in own) == pytest.approx(size)
