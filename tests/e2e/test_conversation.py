"""Elimination as one conversation: what the engine is asked, turn by turn, and that it ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fuzz.chat_models import tokenizer_of
from runs import SMALL, assert_same_run, config_of, train

from r1ranker.errors import UserError
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import EliminationSettings, RankerSettings
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.episodes import _Open
from r1ranker.rollout.hf import HFEngine
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import AnswerStyle
from r1ranker.trainer.loop import Run
from r1ranker.trainer.monitoring.metrics import is_known_metric

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


def test_several_that_go_out_at_once_have_a_turn_each(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = ranker_of(engine, "conversation", elimination=EliminationSettings(eliminate=3))
    prompts: list[list[int]] = []
    to_request = Ranker._to_request

    def noting(self: Ranker, question: Any) -> Any:
        request, params = to_request(self, question)
        prompts.append(list(request.token_ids))
        return request, params

    monkeypatch.setattr(Ranker, "_to_request", noting)
    (result,) = ranker.rank_many(EXAMPLES[1:2])
    assert sorted(result.ranking) == sorted(EXAMPLES[1].candidates)
    assert (result.calls, set(result.out_in_round.values())) == (2, {1, 2})
    first, second = (engine.tokenizer.decode(prompt) for prompt in prompts)
    assert second.startswith(first.removesuffix("<answer>"))
    gone = sorted(result.ranking[-3:], key=result.ranking.index, reverse=True)
    for name in gone:
        label = f"[{EXAMPLES[1].candidates.index(name) + 1}]"
        assert f"<answer>{label}</answer>" in second
        assert f"{label} is out." in second


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
        {"elimination": EliminationSettings(eliminate=2)},
    ):  # fmt: skip
        with pytest.raises(UserError, match="--rounds: a conversation"):
            replace(RankerSettings(), rounds="conversation", constrain="candidates", **changes).check()  # type: ignore[arg-type]


LEARNING = (
    "data.rounds=conversation", "data.think=false", "data.answer_style=label", "actor_rollout_ref.rollout.constrain=candidates",
)  # fmt: skip
KINDS = {
    "samples": (),
    "returns over turns, with a critic": ("algorithm.adv_estimator=gae", "algorithm.turn_gamma=1.0"),
    "every answer": ("actor_rollout_ref.rollout.every_answer=true", "algorithm.adv_estimator=maxrl"),
    "the last turns": ("actor_rollout_ref.rollout.eliminate_to=3", "algorithm.adv_estimator=rloo"),
    "two turns": ("actor_rollout_ref.rollout.max_turns=2", "algorithm.adv_estimator=reinforce_plus_plus"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_learns_from_conversations(kind: str, toy: Path, tiny_model: str, tmp_path: Path) -> None:
    actor, lines = train(toy, tiny_model, tmp_path, *LEARNING, *KINDS[kind])
    steps = [line for line in lines if "critic/score/mean" in line]
    assert len(steps) == 2
    assert all(is_known_metric(name) for line in lines for name in line if name != "step")
    assert all(line["rollout/logprob_diff_max"] < 1e-4 for line in steps)
    assert all(line["actor/grad_norm"] > 0 for line in steps)
    assert all("val-aux/Rec-Movie/turns/mean" in line for line in lines if "val-core/Rec-Movie/reward/mean" in line)
    longest = max(line["conversation/turns/max"] for line in steps)
    assert longest == 2 if kind.startswith("two") else longest > 4
    assert Ranker.settings_of(actor).rounds == "conversation"
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "1.jsonl").read_text().splitlines()]
    if kind == "every answer":
        # probabilities of the answers to each turn, and the last turn of an episode is one between two
        assert {row["turn"] for row in rows} == set(range(max(row["turn"] for row in rows) + 1))
        by_turn = Counter((row["row"], row["turn"]) for row in rows)
        assert min(by_turn.values()) == 2
        for (name, turn), count in by_turn.items():
            own = [row for row in rows if (row["row"], row["turn"]) == (name, turn)]
            assert sum(math.exp(row["logprob"]) for row in own) == pytest.approx(1.0, abs=1e-5)
            assert len(own) == count
    elif kind == "the last turns":
        assert all(len(row["gts"]["candidate_text"]) - row["turn"] <= 3 for row in rows)


def test_conversations_with_every_answer_are_played_until_enough_have_a_signal(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    # the engine goes on sampling after the policy's passes over the answers of the batch before
    filtered = ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=format")
    most = "algorithm.filter_groups.max_num_gen_batches=2"
    _, lines = train(toy, tiny_model, tmp_path, *LEARNING, *KINDS["every answer"], *filtered, most)
    steps = [line for line in lines if "critic/score/mean" in line]
    assert [line["filter_groups/num_gen_batches"] for line in steps] == [2, 2]


def test_a_run_of_conversations_that_is_stopped_goes_on_as_if_nothing_had_been(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy, tiny_model, tmp_path / "whole", *SMALL, *LEARNING, "trainer.total_training_steps=4")
    begun = Run.step

    def killed(self: Run, cluster: Any, now: int) -> dict[str, float]:
        if now == 3:
            # in the middle of its episodes
            monkeypatch.setattr(_Open, "take", _stop_after(5, _Open.take))
        return begun(self, cluster, now)

    monkeypatch.setattr(Run, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(toy, tiny_model, tmp_path / "stopped", *SMALL, *LEARNING, "trainer.total_training_steps=4")
    monkeypatch.undo()
    train(toy, tiny_model, tmp_path / "stopped", *SMALL, *LEARNING, "trainer.total_training_steps=4")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def _stop_after(turns: int, take: Callable[..., bool]) -> Callable[..., bool]:
    left = [turns]

    def stopping(*arguments: Any) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return take(*arguments)

    return stopping


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.rounds=turns"], "data.rounds: found 'turns'"),
        (["actor_rollout_ref.rollout.max_turns=0"], "max_turns: found 0; at least 1 is wanted"),
        (["actor_rollout_ref.rollout.constrain=none", "actor_rollout_ref.rollout.eliminate_to=3"], "so candidates is wanted"),
        (["actor_rollout_ref.rollout.every_answer=true", "algorithm.turn_gamma=0.5"], "algorithm.turn_gamma: found 0.5"),
        (["algorithm.turn_gamma=2"], "a number from 0 to 1 is wanted"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_in_conversations_is_refused(overrides: list[str], said: str, tiny_model: str) -> None:
    with pytest.raises(UserError, match=said):
        config_of(tiny_model, *LEARNING, *overrides)


def test_rows_and_templates_without_conversations_are_refused(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 0: data.rounds=conversation is of iterative_ranking rows"):
        train(toy, tiny_model, tmp_path, *LEARNING, mode="direct")
    rewriting = tmp_path / "rewriting"
    shutil.copytree(tiny_model, rewriting)
    family = tokenizer_of("byte-level", "GLM-4.5")
    (rewriting / "chat_template.jinja").write_text(str(family.chat_template))
    with pytest.raises(UserError, match="writes earlier turns anew"):
        train(toy, str(rewriting), tmp_path, *LEARNING)


def test_a_prompt_that_holds_few_turns_is_said(
    toy: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = train(
        toy, tiny_model, tmp_path, *LEARNING, "data.max_prompt_length=200", "trainer.total_training_steps=1"
    )
    assert "turns of the longest prompt's conversation" in capsys.readouterr().out
    assert max(line.get("prompt_length/max", 0) for line in lines) <= 200


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
