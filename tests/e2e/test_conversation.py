"""Elimination as one conversation: what the engine is asked, turn by turn, and that it ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from r1ranker.errors import UserError
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import EliminationSettings, RankerSettings
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import AnswerStyle

Call = Callable[..., tuple[int, str, str]]
EXAMPLES = [
    RankingExample("Rec-Movie", tuple(f"film {place} of {count}" for place in range(count)), history=("Alien", "Heat"))
    for count in (2, 7, 5, 6)
]


@pytest.fixture(scope="module")
def engine(tiny_model: str) -> HFEngine:
    return HFEngine.from_pretrained(tiny_model)


def ranker_of(engine: HFEngine, rounds: str, style: AnswerStyle = "label", **changes: Any) -> Ranker:
    own = RankerSettings(constrain="candidates", max_tokens=12, rounds=rounds, **changes)  # type: ignore[arg-type]
    return Ranker(
        engine,
        engine.tokenizer,
        replace(own, answer_format=replace(own.answer_format, answer_style=style, think=False)),
    )


@pytest.mark.parametrize("style", ["label", "label_after", "name", "letter"])
def test_each_turn_goes_on_with_the_last_one(
    engine: HFEngine, style: AnswerStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = ranker_of(engine, "conversation", style)
    turns: list[tuple[Request, Completion]] = []
    to_replies = Ranker._to_replies

    def noting(self: Ranker, question: Any, request: Request, completions: Any) -> Any:
        turns.append((request, completions[0]))
        return to_replies(self, question, request, completions)

    monkeypatch.setattr(Ranker, "_to_replies", noting)
    (result,) = ranker.rank_many(EXAMPLES[1:2])
    assert sorted(result.ranking) == sorted(EXAMPLES[1].candidates)
    assert (result.calls, result.fallbacks) == (6, 0)
    assert len(turns) == 6
    for (request, said), (following, _) in pairwise(turns):
        whole = [*request.token_ids, *said.token_ids[:-1]]  # the template's end of a turn takes the place of EOS
        assert said.token_ids[-1] == engine.tokenizer.eos_token_id
        assert following.token_ids[: len(whole)] == whole
        assert following.constraint is not None
        assert request.constraint is not None
        assert len(following.constraint.final_ids) == len(request.constraint.final_ids) - 1
        assert tuple(said.token_ids) not in following.constraint.final_ids
    assert result.cached_tokens > 0.6 * result.prompt_tokens
    # what the engine kept of a turn is what it would have computed
    alone = engine.generate([request for request, _ in turns], SamplingParams(temperature=0, max_tokens=12))
    for (_, said), (fresh,) in zip(turns, alone, strict=True):
        assert said.token_ids == fresh.token_ids
        assert said.logprobs == pytest.approx(fresh.logprobs, abs=1e-5)


def test_one_turn_is_the_separate_round(engine: HFEngine) -> None:
    (one,), (other,) = (
        list(ranker_of(engine, rounds).rank_many(EXAMPLES[:1])) for rounds in ("separate", "conversation")
    )
    assert one == other


def test_many_at_once_and_what_no_longer_fits_is_begun_anew(tiny_model: str) -> None:
    roomy = HFEngine.from_pretrained(tiny_model)
    whole = list(ranker_of(roomy, "conversation").rank_many(EXAMPLES))
    assert [sorted(one.ranking) for one in whole] == [sorted(example.candidates) for example in EXAMPLES]
    roomy.max_model_len = max(one.prompt_tokens // max(1, one.calls) for one in whole)
    tight = list(ranker_of(roomy, "conversation").rank_many(EXAMPLES))
    assert [sorted(one.ranking) for one in tight] == [sorted(example.candidates) for example in EXAMPLES]
    assert sum(one.prompt_tokens for one in tight) < sum(one.prompt_tokens for one in whole)


def test_settings_say_how_a_model_was_trained(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "ranker"
    shutil.copytree(tiny_model, directory)
    about = {
        "strategy": "iterative",
        "answer_style": "label",
        "think": False,
        "constrain": "candidates",
        "max_response_length": 8,
    }
    (directory / "r1ranker.json").write_text(json.dumps(about | {"rounds": "conversation"}))
    assert Ranker.settings_of(str(directory)).rounds == "conversation"
    assert Ranker.settings_of(str(directory), rounds="separate").rounds == "separate"
    assert "trained with conversation rounds, and asked with --rounds separate" in capsys.readouterr().err
    (directory / "r1ranker.json").write_text(json.dumps(about | {"rounds": "together"}))
    with pytest.raises(UserError, match="rounds is 'together'"):
        Ranker.settings_of(str(directory))
    for changes in (
        {"strategy": "direct"}, {"strategy": "logits", "trained": "iterative"}, {"elimination": EliminationSettings(votes=2)},
    ):  # fmt: skip
        with pytest.raises(UserError, match="--rounds: a conversation"):
            replace(RankerSettings(), rounds="conversation", constrain="candidates", **changes).check()  # type: ignore[arg-type]


def test_an_evaluation_by_conversation_has_a_name_of_its_own(
    call: Call, tiny_model: str, toy: Path, tmp_path: Path
) -> None:
    code, _, error = call(
        "eval", "--dataset", "Rec-Movie", "--data", str(toy / "bench"), "--model-path", tiny_model, "--engine", "hf", "--limit", "3",
        "--strategy", "iterative", "--constrain", "candidates", "--no-think", "--answer-style", "label", "--max-tokens", "12",
        "--rounds", "conversation", "--output-dir", str(tmp_path),
    )  # fmt: skip
    assert code == 0, error
    (file,) = [file for file in tmp_path.glob("*.json") if "timing" not in file.name]
    assert "_conversation" in file.name
    (task,) = json.loads(file.read_text())["tasks"].values()
    assert task["valid_answer_rate"] == 1
