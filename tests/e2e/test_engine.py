"""The rollout engine over a real model: its log-probabilities, its samples, and what it holds after a sync."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from runs import requests_of, trajectories_of
from safetensors.torch import load_file, save_file

from r1ranker.model.loading import load_causal_lm
from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.workers.worker import Worker


def test_greedy_decoding_is_transformers_own(tiny_model: str, toy) -> None:
    engine = HFEngine.from_pretrained(tiny_model)
    requests = requests_of(engine.tokenizer, toy, constrain=False)
    found = engine.generate(requests, SamplingParams(temperature=0, max_tokens=20))
    plain = load_causal_lm(tiny_model, torch.float32, "sdpa")
    for request, (completion,) in zip(requests, found, strict=True):
        ids = torch.tensor([list(request.token_ids)])
        expected = plain.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        assert completion.token_ids == expected.tolist()


def test_a_response_does_not_depend_on_what_else_is_in_the_batch(tiny_model: str, toy) -> None:
    engine = HFEngine.from_pretrained(tiny_model)
    requests = requests_of(engine.tokenizer, toy)
    params = SamplingParams(n=3, max_tokens=40)
    together = engine.generate(requests, params)
    apart = [engine.generate([request], params)[0] for request in requests]
    narrow = HFEngine.from_pretrained(tiny_model, settings=EngineSettings(max_num_seqs=4)).generate(
        requests[::-1], params
    )[::-1]
    tokens = [[[one.token_ids for one in samples] for samples in run] for run in (together, apart, narrow)]
    assert tokens[0] == tokens[1] == tokens[2]


def test_no_two_samples_of_a_group_are_alike(tiny_model: str, toy) -> None:
    engine = HFEngine.from_pretrained(tiny_model)
    (samples,) = engine.generate(
        requests_of(engine.tokenizer, toy, 1, constrain=False), SamplingParams(n=16, max_tokens=12)
    )
    assert len({tuple(sample.token_ids) for sample in samples}) == 16


def test_end_of_sequence_is_part_of_the_response_and_length_is_told_apart(tiny_model: str, toy) -> None:
    engine = HFEngine.from_pretrained(tiny_model)
    eos = engine.tokenizer.eos_token_id
    for samples in engine.generate(requests_of(engine.tokenizer, toy), SamplingParams(n=2, max_tokens=60)):
        for sample in samples:
            assert (sample.finish_reason, sample.token_ids[-1]) == ("stop", eos)
            assert eos not in sample.token_ids[:-1]
            assert len(sample.token_ids) == len(sample.logprobs) == len(sample.allowed)
    for samples in engine.generate(requests_of(engine.tokenizer, toy), SamplingParams(max_tokens=3)):
        assert (samples[0].finish_reason, len(samples[0].token_ids)) == ("length", 3)


def worker_of(model: str, toy, *overrides: str) -> Worker:
    files = [f"data.{split}_files={toy}/direct_ranking/test.parquet" for split in ("train", "val")]
    config = load_config("quickstart", [*files, f"actor_rollout_ref.model.path={model}", *overrides])
    worker = Worker(config, rank=0)
    worker.setup(None, total_steps=10)
    return worker


def sampled(worker: Worker, requests: list[Request], temperature: float) -> list[Trajectory]:
    params = SamplingParams(n=2, temperature=temperature, max_tokens=40)
    completions = dict(complete for done in worker.generate(requests, params) for complete in done)
    return trajectories_of(requests, [completions[place] for place in range(len(requests))])


@pytest.mark.parametrize("constrain", [True, False])
@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_engine_and_trainer_agree_right_after_a_sync(model: str, constrain: bool, toy, request) -> None:
    temperature = 0.7
    worker = worker_of(
        request.getfixturevalue(model), toy, f"actor_rollout_ref.rollout.temperature={temperature}",
        "actor_rollout_ref.actor.optim.lr=0.01",
    )  # fmt: skip
    requests = requests_of(worker.tokenizer, toy, constrain=constrain)
    before = sampled(worker, requests, temperature)
    for _ in range(3):
        worker.update_policy([before])
    # the policy has moved on and the engine has not: they differ before the sync, and no longer after it
    stale = worker.logprobs([before], "policy")[0]
    assert max(np.abs(new - one.rollout_logprobs).max() for new, one in zip(stale, before, strict=True)) > 1e-2
    worker.sync_weights()
    after = sampled(worker, requests, temperature)
    trained = worker.logprobs([after], "policy")[0]
    assert max(np.abs(new - one.rollout_logprobs).max() for new, one in zip(trained, after, strict=True)) < 1e-4


def test_an_engine_has_the_parameters_of_a_model_with_two_embeddings_where_its_config_means_one(
    tiny_model: str, toy, tmp_path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    worker = worker_of(str(tmp_path / "model"), toy)
    after = sampled(worker, requests_of(worker.tokenizer, toy), 1.0)
    trained = worker.logprobs([after], "policy")[0]
    assert max(np.abs(new - one.rollout_logprobs).max() for new, one in zip(trained, after, strict=True)) < 1e-4
