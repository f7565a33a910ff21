"""Groups of every answer that a pool has: probabilities are transformers', and an update is what infinitely many samples would make."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.data.loader import load_prompts
from r1ranker.errors import UserError
from r1ranker.rollout.constraint import build_constraint
from r1ranker.trainer.cluster import started
from r1ranker.trainer.config import Config
from r1ranker.trainer.config_load import load_config
from r1ranker.trainer.every_answer import every_answer, probabilities


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


def test_probabilities_are_those_of_the_model_over_the_pool(config: Config, toy: Path, tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompts = load_prompts([f"{toy}/iterative_ranking/train.parquet"], tokenizer, 2000)[0][:40:4]
    with started(config, 1) as cluster:
        found = every_answer(cluster, config, tokenizer, prompts)
    for prompt, answers in zip(prompts, found, strict=True):
        paths = build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format).last
        assert [tuple(answer.token_ids) for answer in answers] == list(paths)
        expected = []
        for path in paths:
            logits = model(torch.tensor([[*prompt.token_ids, *path]])).logits[0].double().log_softmax(-1)
            logprob = 0.0
            for depth, token in enumerate(path):
                # renormalised over the tokens that some candidate goes on with
                going = sorted({other[depth] for other in paths if other[:depth] == path[:depth]})
                row = logits[len(prompt.token_ids) + depth - 1]
                logprob += float(row[token] - row[going].logsumexp(0))
            expected.append(math.exp(logprob))
        assert sum(expected) == pytest.approx(1.0)
        np.testing.assert_allclose(probabilities(answers), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["direct", "thinking"])
def test_prompts_with_other_answers_are_refused(
    kind: str, config: Config, toy: Path, toy_thinking: Path, tiny_model: str
) -> None:
    directory = toy / "direct_ranking" if kind == "direct" else toy_thinking / "iterative_ranking"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = load_prompts([f"{directory}/train.parquet"], tokenizer, 2000)[0][:1]
    with started(config, 1) as cluster, pytest.raises(UserError, match=r"row 0: .*every_answer wants eliminations"):
        every_answer(cluster, config, tokenizer, prompts)
