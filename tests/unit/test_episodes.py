"""Episodes: how a conversation goes on and ends, what is packed of it, and how credit goes from turn to turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_shared_prefix import policy_pass
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from r1ranker.data.tokenise import encode_chat
from r1ranker.data.turns import drop_thought
from r1ranker.model.attention import PACKED, register_packed
from r1ranker.model.loading import load_causal_lm
from r1ranker.model.value import ValueModel
from r1ranker.rewards import compute_score
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.episodes import EpisodeRequest, EpisodeRules, Turn, sample_episodes
from r1ranker.tasks.answers import ParsedAnswer
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, render_problem
from r1ranker.trainer.algorithm.advantages import grpo, maxrl, rloo
from r1ranker.trainer.algorithm.estimation import assign_advantages, assign_loss_weights
from r1ranker.trainer.algorithm.kl import KLController
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.chains import chain
from r1ranker.trainer.batch.packing import pack
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import AlgorithmConfig

FORMAT = AnswerFormat("label", think=False)
POOL = ("Alien", "Heat", "Ran", "Vertigo", "Psycho")


class Scripted:
    """A session whose answers are a script's: the texts that each conversation says in turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, scripts: Sequence[Sequence[str]]) -> None:
        self.tokenizer, self.scripts = tokenizer, [list(script) for script in scripts]
        self.asked: dict[int, list[Request]] = {}
        self.open: list[int] = []
        self.cancelled: list[int] = []

    def add(self, key: int, request: Request, params: SamplingParams) -> None:
        assert key not in self.open
        self.asked.setdefault(key, []).append(request)
        self.open.append(key)

    def step(self, once: bool = False) -> list[tuple[int, list[Completion]]]:
        key = self.open.pop()
        text = self.scripts[key].pop(0)
        stopped = not text.endswith("...")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id] * stopped
        return [(key, [Completion(ids, [-0.5] * len(ids), "stop" if stopped else "length")])]

    def cancel(self, key: int) -> None:
        self.cancelled.append(key)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return found


@pytest.fixture(scope="module")
def model(tiny_model: str) -> PreTrainedModel:
    register_packed()
    return load_causal_lm(tiny_model, torch.float32, PACKED)


def asked(tokenizer: PreTrainedTokenizerBase, form: AnswerFormat = FORMAT, **changes: Any) -> EpisodeRequest:
    """An episode about POOL, in which Ran is to stay; `changes` are of its rules, `grades` and `constrained` its own."""
    grades = changes.pop("grades", ())
    example = RankingExample("Rec-Movie", POOL, positive="Ran", history=("Rope",), grades=grades)
    messages = chat_messages(render_problem(example, "iterative", form.answer_style), form, "iterative")
    rules = EpisodeRules(form, tuple(one["role"] for one in messages), messages[-1]["content"])
    constraint = build_constraint(tokenizer, POOL, "iterative", form) if changes.pop("constrained", False) else None
    return EpisodeRequest(encode_chat(tokenizer, messages), example, 7, constraint, replace(rules, **changes))


def played(
    tokenizer: PreTrainedTokenizerBase, *said: str, form: AnswerFormat = FORMAT, **changes: Any
) -> tuple[list[Turn], Scripted]:
    session = Scripted(tokenizer, [said])
    ((place, turns),) = sample_episodes(session, tokenizer, [asked(tokenizer, form, **changes)], SamplingParams())
    assert place == 0
    assert session.cancelled == [0]
    return turns, session


@pytest.mark.parametrize(
    ("said", "changes", "out"),
    [
        (["[1]</answer>", "[2]</answer>", "[5]</answer>", "[4]</answer>"], {}, [(), (0,), (0, 1), (0, 1, 4)]),
        (["[1]</answer>", "[3]</answer>"], {}, [(), (0,)]),  # the positive
        (["[1]</answer>", "[1]</answer>"], {}, [(), (0,)]),  # who is out already
        (["[9]</answer>"], {}, [()]),
        (["[1]..."], {}, [()]),  # cut off
        (["[1]</answer>", "[2]</answer>"], {"max_turns": 2}, [(), (0,)]),
        (["[1]</answer>"], {"max_prompt_length": 60}, [()]),
        # with grades there is more to learn when the best has gone
        (["[3]</answer>", "[2]</answer>", "[5]</answer>", "[4]</answer>"], {"grades": (0, 1, 2, 0, 0)},
         [(), (2,), (2, 1), (2, 1, 4)]),
    ],
)  # fmt: skip
def test_an_episode_ends_where_nothing_more_can_be_learned(
    tokenizer: PreTrainedTokenizerBase, said: list[str], changes: dict[str, Any], out: list[tuple[int, ...]]
) -> None:
    turns, session = played(tokenizer, *said, **changes)
    assert [turn.out for turn in turns] == out
    assert session.scripts == [[]], "an answer that was asked for was not used"
    assert len({request.seed for request in session.asked[0]}) == len(turns)
    for turn, following in pairwise(turns):
        whole = [*turn.prompt_ids, *turn.completion.token_ids[:-1]]
        assert following.prompt_ids[: len(whole)] == whole, "what was sampled was tokenised again"


def test_the_positive_stays_in_while_the_pool_is_large(tokenizer: PreTrainedTokenizerBase) -> None:
    _, session = played(tokenizer, "[1]</answer>", "[2]</answer>", "[3]</answer>", kept_until=3, constrained=True)
    whole = build_constraint(tokenizer, POOL, "iterative", FORMAT)
    assert [request.constraint for request in session.asked[0]] == [
        whole.without({2}), whole.without({0, 2}), whole.without({0, 1}),
    ]  # fmt: skip


def test_thoughts_of_earlier_turns_stay_or_go(tokenizer: PreTrainedTokenizerBase) -> None:
    form, said = AnswerFormat("label", think=True), "Alien is old.</think>\n<answer>[1]</answer>"
    (_, kept), _ = played(tokenizer, said, said, form=form)
    (first, dropped), _ = played(tokenizer, said, said, form=form, keep_thoughts=False)
    assert "Alien is old." in tokenizer.decode(kept.prompt_ids)
    text = tokenizer.decode(dropped.prompt_ids)
    assert "Alien is old." not in text
    assert "<think></think>\n<answer>[1]</answer>" in text
    assert dropped.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert drop_thought(tokenizer, [5, 6]) == [5, 6]
    shortened = drop_thought(tokenizer, first.completion.token_ids)
    assert shortened == first.completion.token_ids[-len(shortened) :]


def test_rewards_know_who_is_out() -> None:
    truth = {"candidate_text": list(POOL), "gt": "Ran", "grades": [0, 1, 3, 0, 0]}
    about = {"think": False, "answer_style": "label"}

    def score(text: str, **extra: Any) -> dict[str, float]:
        return compute_score("iterative_ranking", text + "</answer>", truth, about | extra)

    assert score("[1]")["score"] == 1.0
    gone = score("[1]", out=[0])
    assert (gone["task"], gone["valid"]) == (-0.5, 0.0)
    # without the best, the one of grade 1 is the best that is left
    assert score("[2]")["task"] == pytest.approx(1 - 1 / 3)
    assert score("[2]", out=[2])["task"] == 0.0
    assert ParsedAnswer("", "x", (0, 3)).without([3]).named == (0,)


def episode(
    number: int, turns: int, random: np.random.Generator, group: int = 0, root: Sequence[int] = (1, 2, 3)
) -> list[Trajectory]:
    """The turns of a conversation with answers of one to three tokens, some under a constraint, and numbers of its own."""
    ids, made = list(root), []
    for turn in range(turns):
        length = int(random.integers(1, 4))
        response = random.integers(0, 300, length).tolist()
        allowed = [[token, (token + 1) % 300] for token in response[:1]] + [[token] for token in response[1:]]
        made.append(
            Trajectory(
                list(ids), response, random.normal(-5, 0.3, length), "stop", group, score=float(random.normal()),
                allowed=allowed if turn % 2 else [],
                advantages=random.normal(size=length), returns=random.normal(size=length), values=random.normal(size=length),
                old_logprobs=random.normal(-5.5, 0.2, length), ref_logprobs=random.normal(-5.5, 0.2, length),
                episode=number, turn=turn, root_length=len(root),
            )
        )  # fmt: skip
        ids += [*response[:-1], *random.integers(0, 300, int(random.integers(1, 5))).tolist()]
    return made


def batch_of(seed: int, sizes: Sequence[Sequence[int]]) -> list[Trajectory]:
    """For each prompt conversations of so many turns."""
    random = np.random.default_rng(seed)
    made: list[Trajectory] = []
    for group, lengths in enumerate(sizes):
        root = random.integers(0, 300, 5).tolist()
        for turns in lengths:
            made += episode(len(made), turns, random, group, root)
    return made


conversations = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=3)


@given(st.integers(0, 99), conversations, st.booleans())
def test_a_row_holds_each_conversation_once(seed: int, sizes: list[list[int]], forced_ends: bool) -> None:
    batch = batch_of(seed, sizes)
    row = pack(batch, forced_ends=forced_ends)
    tokens, positions = row.input_ids[0].tolist(), row.position_ids[0].tolist()
    chains = chain(batch, forced_ends=forced_ends)
    assert sorted(place for one in chains for place in one.members) == list(range(len(batch)))
    assert len(chains) == sum(map(len, sizes)), "a conversation is more than one sequence"
    assert len(tokens) == sum(5 for _ in sizes) + sum(len(one.inputs) for one in chains)
    segment_of = {place: number for number, (start, end) in enumerate(row.layout.spans) for place in range(start, end)}
    predicting = iter(row.predicting.tolist())
    for one in batch:
        for offset in range(len(one.response_ids)):
            place = next(predicting)
            if not forced_ends and offset > one.count_inputs(False):
                continue
            segment = segment_of[place]
            seen = tokens[row.layout.spans[segment][0] : place + 1]
            if row.layout.prefixes[segment] >= 0:
                seen = tokens[slice(*row.layout.spans[row.layout.prefixes[segment]])] + seen
            assert seen == [*one.prompt_ids, *one.response_ids[:offset]]
            assert positions[place] == len(seen) - 1


@given(st.integers(0, 99), conversations, st.integers(1, 3), st.one_of(st.none(), st.integers(1, 4)))
def test_a_conversation_is_never_split_over_micro_batches(
    seed: int, sizes: list[list[int]], processes: int, sequences: int | None
) -> None:
    batch = batch_of(seed, sizes)
    hands = arrange_micro_batches(batch, processes, Budget(70, sequences, forced_ends=True))
    bins = [one for hand in hands for one in hand]
    assert sorted(index for one in bins for index in one) == list(range(len(batch)))
    homes = {(batch[index].episode, number) for number, one in enumerate(bins) for index in one}
    assert len(homes) == sum(map(len, sizes))
    assert all(pack([batch[index] for index in one]).input_ids.shape[1] <= 70 for one in bins)


@pytest.mark.parametrize("forced_ends", [True, False])
def test_gradients_of_a_conversation_are_those_of_its_turns_one_by_one(
    model: PreTrainedModel, forced_ends: bool
) -> None:
    batch = batch_of(3, [[4, 2, 3], [5], [1, 1]])
    other = replace(batch[1], response_ids=[7, 8], rollout_logprobs=np.zeros(2), allowed=[])  # another answer to a turn
    for name in ("advantages", "returns", "values", "old_logprobs", "ref_logprobs"):
        setattr(other, name, np.full(2, 0.3))
    batch.append(other)
    assign_loss_weights(batch, "token-mean")
    logprobs, gradients = policy_pass(model, batch, True, forced_ends)
    apart, of_turns = policy_pass(model, batch, False, forced_ends)
    torch.testing.assert_close(logprobs, apart, atol=1e-5, rtol=1e-5)
    for name, gradient in of_turns.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert pack(batch).input_ids.shape[1] < 0.5 * pack(batch, False).input_ids.shape[1]


def test_values_of_a_conversation_are_those_of_its_turns_one_by_one(model: PreTrainedModel) -> None:
    batch = batch_of(4, [[4, 2], [3]])
    critic = ValueModel(model)
    torch.nn.init.normal_(critic.head.weight)
    with torch.no_grad():
        found, apart = (critic(row.predicting, **row.model_inputs()) for row in (pack(batch), pack(batch, False)))
    torch.testing.assert_close(found, apart, atol=1e-5, rtol=1e-5)


def test_every_answer_of_a_turn_costs_no_token_where_answers_differ_in_one(model: PreTrainedModel) -> None:
    (first, last) = episode(0, 2, np.random.default_rng(1))
    every = [
        replace(one, response_ids=[token, 9], allowed=[[4, 5, 6], [9]], rollout_logprobs=np.zeros(2))
        for one in (replace(first, response_ids=[4, 9], allowed=[]), last)
        for token in (4, 5, 6)
    ]
    assert pack(every, forced_ends=False).input_ids.shape[1] == len(last.prompt_ids)
    logprobs = policy_pass_logprobs(model, every)
    assert logprobs.view(2, 3, 2)[..., 0].exp().sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert logprobs.view(2, 3, 2)[..., 1].abs().max() == 0


def test_answers_of_several_tokens_share_all_that_came_before_them(model: PreTrainedModel) -> None:
    *_, last = episode(0, 4, np.random.default_rng(2))
    every = [
        replace(last, response_ids=[token, 8, 9], allowed=[[4, 5, 6, 7], [8, 10], [9]], rollout_logprobs=np.zeros(3))
        for token in (4, 5, 6, 7)
    ]
    (_, *others) = chain(every, forced_ends=False)
    assert [list(one.prompt) for one in others] == [last.prompt_ids] * 3
    # a single one costs least behind the prompt that its group shares
    assert len(chain(every[:2], forced_ends=False)[1].prompt) == last.root_length
    torch.testing.assert_close(
        policy_pass_logprobs(model, every), policy_pass(model, every, False, False)[0], atol=1e-5, rtol=1e-5
    )


def policy_pass_logprobs(model: PreTrainedModel, batch: list[Trajectory]) -> torch.Tensor:
    assign_loss_weights(batch, "token-mean")
    for one in batch:
        for name in ("advantages", "returns", "values", "old_logprobs", "ref_logprobs"):
            setattr(one, name, np.zeros(len(one.response_ids)))
    return policy_pass(model, batch, True, False)[0]


estimated = st.sampled_from(["grpo", "rloo", "maxrl"])


@given(st.integers(0, 99), conversations, estimated, st.sampled_from([0.0, 0.5, 1.0]))
def test_group_baselines_are_of_the_same_turn(seed: int, sizes: list[list[int]], name: str, gamma: float) -> None:
    batch = batch_of(seed, sizes)
    assign_advantages(batch, AlgorithmConfig(adv_estimator=name, turn_gamma=gamma), KLController(0.0))
    estimator = {"grpo": grpo, "rloo": rloo, "maxrl": maxrl}[name]
    for one in batch:
        # returns by the sum, not by the recursion; then those who are still alive in this turn
        alive = [other for other in batch if (other.group_id, other.turn) == (one.group_id, one.turn)]
        returns = [
            sum(
                gamma ** (later.turn - other.turn) * later.score
                for later in batch
                if later.episode == other.episode and later.turn >= other.turn
            )
            for other in alive
        ]
        expected = estimator(returns, [0] * len(alive))[[id(other) for other in alive].index(id(one))]
        np.testing.assert_allclose(one.advantages, np.full(len(one.response_ids), expected), atol=1e-9)


@given(
    st.integers(0, 99), conversations, st.sampled_from([0.0, 0.7, 1.0]), st.sampled_from([0.9, 1.0]), st.sampled_from([0.0, 0.95])
)  # fmt: skip
def test_gae_goes_over_turns(seed: int, sizes: list[list[int]], turn_gamma: float, gamma: float, lam: float) -> None:
    batch = batch_of(seed, sizes)
    config = AlgorithmConfig(adv_estimator="gae", gamma=gamma, lam=lam, turn_gamma=turn_gamma)
    assign_advantages(batch, config, KLController(0.0))
    for number in {one.episode for one in batch}:
        turns = [one for one in batch if one.episode == number]
        steps = [(one, place) for one in turns for place in range(len(one.response_ids))]
        for start, (one, place) in enumerate(steps):
            # A_t = sum of (product of the discounts and lams before it) times delta, written out
            total, weight = 0.0, 1.0
            for at in range(start, len(steps)):
                now, offset = steps[at]
                is_last = offset == len(now.response_ids) - 1
                discount = turn_gamma if is_last else gamma
                following = 0.0
                if at + 1 < len(steps):
                    then, there = steps[at + 1]
                    assert then.values is not None
                    following = float(then.values[there])
                assert now.values is not None
                delta = (now.score if is_last else 0.0) + discount * following - float(now.values[offset])
                total += weight * delta
                weight *= discount * lam
            assert one.returns is not None
            assert one.values is not None
            assert one.returns[place] == pytest.approx(total + one.values[place], abs=1e-9)


def test_without_a_discount_over_turns_each_is_by_itself() -> None:
    batch = batch_of(5, [[4, 2], [3]])
    alone = [replace(one, episode=-1) for one in batch]
    for name in ("gae", "reinforce_plus_plus"):
        config = AlgorithmConfig(adv_estimator=name, gamma=0.9, lam=0.8)
        for each in (batch, alone):
            assign_advantages(each, config, KLController(0.0))
        for one, other in zip(batch, alone, strict=True):
            np.testing.assert_allclose(one.advantages, other.advantages, atol=1e-12)  # type: ignore[arg-type]
