"""A pretrained language model: both engines' log-probabilities against transformers' own, of prompts with words in them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from r1ranker.rollout.loops import ends_in_loop

SAMPLE = """
import json, sys
import torch
from r1ranker.data.tokenise import encode_chat
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.start import start_engine
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, render_problem

name, directory, output = sys.argv[1:]
engine = start_engine(name, directory, torch.device("cpu"), EngineSettings(max_model_len=1024, dtype="float32"))
short = RankingExample("Rec-Movie", ("Alien", "Heat"), history=("Blade Runner",))
long = RankingExample(
    "Passage-5",
    ("passage 0", "passage 1", "passage 2"),
    query="how are glacier caves formed ?",
    texts=(
        "Glacier caves are often called ice caves, but this term describes bedrock caves with ice the whole year.",
        "A glacier cave is a cave formed within the ice of a glacier, most of them by water that runs under it.",
        "The ice facade is approximately 60 m high, and it is partly submerged.",
    ),
)
asked = [(short, True, False), (long, True, False), (short, False, True), (long, False, True)]
requests = []
for seed, (example, think, free) in enumerate(asked):
    form = AnswerFormat("name", think)
    prompt = encode_chat(engine.tokenizer, chat_messages(render_problem(example, "iterative"), form, "iterative"))
    bound = build_constraint(engine.tokenizer, example.candidates, "iterative", form) if free else None
    requests.append(Request(prompt, seed, bound))
found = []
for temperature in (1.0, 0.7):
    params = SamplingParams(n=2, temperature=temperature, max_tokens=24)
    for request, answers in zip(requests, engine.generate(requests, params), strict=True):
        for one in answers:
            found.append([temperature, list(request.token_ids), one.token_ids, one.logprobs, one.allowed])
params = SamplingParams(temperature=0, max_tokens=200)
ended = SamplingParams(temperature=0, max_tokens=200, end_loops=True)
greedy = [[one.token_ids for (one,) in engine.generate(requests[:2], which)] for which in (params, ended)]
open(output, "w").write(json.dumps([found, greedy]))
"""


@pytest.mark.parametrize("engine", ["hf", "vllm"])
@torch.no_grad()
def test_engines_sample_with_the_probabilities_that_transformers_computes(
    engine: str, smollm2: str, tmp_path: Path
) -> None:
    if engine == "vllm" and not find_spec("vllm"):
        pytest.skip("vLLM is not installed; '.[cpu]' brings it")
    output = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, engine, smollm2, str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    model = AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation="eager", dtype=torch.float32)
    found, (whole, ended) = json.loads(output.read_text())
    assert any(len(cut) < len(answer) for answer, cut in zip(whole, ended, strict=True))
    for answer, cut in zip(whole, ended, strict=True):
        assert cut == answer[: len(cut)]
        assert [ends_in_loop(cut[:end]) for end in range(1, len(cut))] == [False] * (len(cut) - 1)
        assert ends_in_loop(cut) or cut == answer
    assert len(found) == 16
    assert len({len(prompt) for _, prompt, *_ in found}) == 4
    for temperature, prompt, answer, logprobs, allowed in found:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1] / temperature
        for place, ids in enumerate(allowed):
            if ids:
                outside = torch.ones(logits.shape[1], dtype=torch.bool)
                outside[ids] = False
                logits[place, outside] = -torch.inf
        expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert torch.tensor(logprobs) == pytest.approx(expected, abs=1e-4)
