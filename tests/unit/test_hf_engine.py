"""The transformers engine against transformers' own decoding: what is batched, shared and moved must not show."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from r1ranker.errors import UserError
from r1ranker.model.attention import attend_at_end, packed_attention
from r1ranker.model.layout import RowLayout
from r1ranker.rollout import hf_batch, hf_kept
from r1ranker.rollout.constraint import PoolConstraint
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine

VOCABULARY, EOS = 97, 1
TOKENIZER: Any = SimpleNamespace(eos_token_id=EOS, decode=lambda ids: f"<{ids[0]}>")


def model_of(kv_heads: int = 2, seed: int = 0, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=1024, initializer_range=0.2, bos_token_id=0,
        eos_token_id=EOS, pad_token_id=0, **settings,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def engine_of(model: PreTrainedModel, max_num_seqs: int = 256, stop: tuple[int, ...] = (EOS,)) -> HFEngine:
    engine = HFEngine(copy.deepcopy(model), TOKENIZER, max_num_seqs)
    engine._stop = set(stop)
    return engine


def requests(count: int, seed: int = 5) -> list[Request]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [
        Request(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist(), seed=place)
        for place, length in enumerate(lengths)
    ]


def plain_logprobs(model: PreTrainedModel, request: Request, sample: Completion, temperature: float) -> torch.Tensor:
    """Log-probabilities [T, V] at the places of a response, of one unpadded forward pass."""
    ids = torch.tensor([[*request.token_ids, *sample.token_ids]])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, len(request.token_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def assert_logprobs_are_plain(
    model: PreTrainedModel, asked: list[Request], found: list[list[Completion]], temperature: float = 1.0
) -> None:
    for request, samples in zip(asked, found, strict=True):
        for sample in samples:
            plain = plain_logprobs(model, request, sample, temperature)
            expected = plain.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-5, rtol=0)


def tokens_of(found: list[list[Completion]]) -> list[list[list[int]]]:
    return [[sample.token_ids for sample in samples] for samples in found]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 8])
def test_greedy_decoding_is_that_of_transformers(n: int, kv_heads: int) -> None:
    model, asked = model_of(kv_heads), requests(7)
    found = engine_of(model).generate(asked, SamplingParams(n=n, temperature=0, max_tokens=15))
    for request, samples in zip(asked, found, strict=True):
        ids = torch.tensor([list(request.token_ids)])
        expected = model.generate(ids, max_new_tokens=15, do_sample=False)[0, ids.shape[1] :].tolist()
        assert [sample.token_ids for sample in samples] == [expected] * n
    assert_logprobs_are_plain(model, asked, found)


@pytest.mark.parametrize("n", [1, 8])
def test_log_probabilities_of_samples_are_those_of_a_plain_forward_pass(n: int) -> None:
    model, asked = model_of(), requests(9)
    params = SamplingParams(n=n, temperature=0.7, max_tokens=20)
    found = engine_of(model, max_num_seqs=16, stop=tuple(range(12))).generate(asked, params)
    assert_logprobs_are_plain(model, asked, found, 0.7)
    assert len({len(sample.token_ids) for samples in found for sample in samples}) > 5


@pytest.mark.parametrize("params", [SamplingParams(max_tokens=12), SamplingParams(n=3, max_tokens=12, top_p=0.9)])
def test_responses_do_not_depend_on_what_else_is_in_the_batch(params: SamplingParams) -> None:
    model, asked, stop = model_of(), requests(10), tuple(range(12))
    together = engine_of(model, stop=stop).generate(asked, params)
    narrow = engine_of(model, 3, stop).generate(asked, params)
    middle = engine_of(model, 7, stop).generate(asked[::-1], params)[::-1]
    apart = [engine_of(model, stop=stop).generate([request], params)[0] for request in asked]
    assert tokens_of(together) == tokens_of(narrow) == tokens_of(middle) == tokens_of(apart)


@pytest.mark.parametrize("n", [1, 3])
def test_no_more_prompts_are_kept_than_there_is_room_for(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, params = model_of(), requests(9), SamplingParams(n=n, max_tokens=12)
    everything = engine_of(model).generate(asked, params)
    monkeypatch.setattr(hf_batch, "PROMPT_TOKENS", 300)  # two rooms of 128 tokens
    batch = engine_of(model).batch(params)
    for key, request in enumerate(asked):
        batch.add(key, request)
    found = {}
    while not batch.is_empty:
        found.update(batch.step())
        assert len(batch._groups) <= 2
    (keys, _), *_ = batch._prompts.layers.values()
    assert keys.shape[0] == 2
    for place, samples in enumerate(everything):
        assert [one.token_ids for one in found[place]] == [one.token_ids for one in samples]


def test_where_probabilities_alone_are_wanted_what_was_begun_first_goes_on_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that rankings end one after the other: what has ended is kept, whatever becomes of the rest."""
    monkeypatch.setattr(hf_batch, "PREFILL_TOKENS", 256)  # twice that is four rooms of 128 tokens
    model, asked, params = model_of(), requests(12), SamplingParams(max_tokens=1, choices=True)
    constraint = PoolConstraint((), ((5,), (9,), (11,)), answer_open=True)
    asked = [replace(request, constraint=constraint) for request in asked]
    whole = engine_of(model).generate(asked, params)
    session = engine_of(model).session()
    for key in reversed(range(2, 12)):
        session.add(key, asked[key], params)
    order, found = [], {}
    while done := session.step():
        order.append(sorted(key for key, _ in done))
        found.update(done)
        for key in (0, 1) if len(order) == 1 else ():
            session.add(key, asked[key], params)
    assert order == [[2, 3, 4, 5], [0, 1, 6, 7], [8, 9, 10, 11]]
    for key, (expected,) in enumerate(whole):
        assert found[key][0].choices == pytest.approx(expected.choices, abs=1e-5)


def test_a_session_lets_late_requests_in_and_hands_each_out_as_it_ends() -> None:
    model, asked, stop = model_of(), requests(12), tuple(range(12))
    params = SamplingParams(n=2, max_tokens=30)
    expected = tokens_of(engine_of(model, stop=stop).generate(asked, params))
    session = engine_of(model, 8, stop).session()
    waiting = list(enumerate(asked))
    for key, request in waiting[:6]:
        session.add(key, request, params)
    del waiting[:6]
    found: dict[int, list[list[int]]] = {}
    steps = 0
    while done := session.step():
        steps += 1
        for key, samples in done:
            found[key] = [sample.token_ids for sample in samples]
            if waiting:
                late, request = waiting.pop(0)
                session.add(late, request, params)
    assert found == dict(enumerate(expected))
    assert steps > 4  # they ended at different times
    assert session.step() == []


@pytest.mark.parametrize("fair", [False, True])
def test_what_is_cancelled_leaves_the_others_as_they_are(fair: bool) -> None:
    model, asked, stop = model_of(), requests(12), tuple(range(12))
    params = SamplingParams(n=2, max_tokens=30)
    expected = tokens_of(engine_of(model, stop=stop).generate(asked, params))
    session = engine_of(model, 8, stop).session(fair)
    for key, request in enumerate(asked):
        session.add(key, request, params)
    found = dict(session.step(once=True))
    under_way = [row.open.key for row in session._batches[0]._rows]  # type: ignore[attr-defined]
    gone = {under_way[0], next(key for key in range(12) if key not in found and key not in under_way)}
    for key in gone:
        session.cancel(key)
    while done := session.step():
        found.update(done)
    assert not gone & set(found)
    assert {key: [one.token_ids for one in samples] for key, samples in found.items()} == {
        key: expected[key] for key in range(12) if key not in gone
    }
    session.add(0, asked[0], params)
    session.cancel(0)
    assert session.step() == []


def test_a_fair_session_begins_what_came_first_and_lets_nothing_pass_another_kind() -> None:
    model, asked = model_of(), sorted(requests(8), key=lambda one: len(one.token_ids))
    long, short = SamplingParams(max_tokens=6), SamplingParams(temperature=0, max_tokens=2)
    session = engine_of(model, 2).session(fair=True)
    for key in range(4):
        session.add(key, asked[key], long)
    session.step(once=True)
    session.add(4, asked[4], short)
    for key in (5, 6):
        session.add(key, asked[key], long)
    session.add(7, asked[7], short)
    order = []
    while done := session.step():
        order += [key for key, _ in done]
    assert sorted(order) == list(range(8))
    assert set(order[:4]) == {0, 1, 2, 3}  # as they came, not the longest first
    assert set(order[4:6]) == {4, 7}
    assert set(order[6:]) == {5, 6}


def test_a_session_takes_requests_with_different_sampling() -> None:
    model, asked = model_of(), requests(4)
    kinds = [SamplingParams(temperature=0, max_tokens=4), SamplingParams(n=2, max_tokens=6)]
    session = engine_of(model).session()
    for key, request in enumerate(asked):
        session.add(key, request, kinds[key % 2])
    found: dict[int, list[Completion]] = {}
    while done := session.step():
        found.update(done)
    for key, request in enumerate(asked):
        alone = engine_of(model).generate([request], kinds[key % 2])
        assert tokens_of([found[key]]) == tokens_of(alone)


def test_a_prompt_is_computed_once_and_no_more_than_asked_for_are_under_way() -> None:
    asked = requests(9)
    asked.append(Request(asked[0].token_ids, seed=77))
    passes: list[int] = []
    engine = engine_of(model_of(), max_num_seqs=16, stop=())
    engine.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: passes.append(ids[0].numel()))
    found = engine.generate(asked, SamplingParams(n=4, max_tokens=10))
    again = found[0] + found[9]
    assert len({tuple(sample.token_ids) for sample in again}) == 8  # alike prompts, each with its own seed
    prompts = sum(len(request.token_ids) for request in asked)
    assert sum(passes) in (prompts + 10 * 4 * 9, prompts - len(asked[0].token_ids) + 10 * 4 * 9)
    assert max(passes[1:10]) <= 16


def test_end_of_sequence_stops_and_length_is_told_apart() -> None:
    asked, params = requests(20), SamplingParams(n=4, max_tokens=25)
    samples = [sample for of in engine_of(model_of()).generate(asked, params) for sample in of]
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert EOS not in sample.token_ids[:-1]
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] == EOS)
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 25
        assert len(sample.token_ids) == len(sample.logprobs)
        assert sample.allowed == []


def test_one_token_alone() -> None:
    model, asked = model_of(), requests(5)
    found = engine_of(model, max_num_seqs=4).generate(asked, SamplingParams(n=2, max_tokens=1))
    assert [[len(sample.token_ids) for sample in samples] for samples in found] == [[1, 1]] * 5
    assert_logprobs_are_plain(model, asked, found)
    assert engine_of(model).generate([], SamplingParams()) == []


def test_responses_longer_than_the_room_that_was_made_first() -> None:
    model, asked = model_of(), requests(3)
    found = engine_of(model, max_num_seqs=5, stop=()).generate(asked, SamplingParams(n=2, max_tokens=300))
    assert {len(sample.token_ids) for samples in found for sample in samples} == {300}
    assert_logprobs_are_plain(model, asked, found)


def test_under_a_constraint_log_probabilities_are_those_over_what_is_allowed() -> None:
    model, prompts = model_of(), requests(6)
    constraint = PoolConstraint(
        separated_ids=((5, 6, 7, 2), (5, 9, 2), (30, 2)),
        final_ids=((5, 6, 7, 3, EOS), (5, 9, 3, EOS), (30, 3, EOS)),
        answer_open=True,
    )
    asked = [Request(one.token_ids, one.seed, constraint if place % 2 else None) for place, one in enumerate(prompts)]
    found = engine_of(model, max_num_seqs=6).generate(asked, SamplingParams(n=3, max_tokens=12))
    assert_logprobs_are_plain(model, asked[::2], found[::2])
    for request, samples in zip(asked[1::2], found[1::2], strict=True):
        for sample in samples:
            plain = plain_logprobs(model, request, sample, 1.0)
            assert sample.token_ids[-1] == EOS
            assert sum(token in (2, 3) for token in sample.token_ids) == 3  # each candidate once
            for place, (token, ids) in enumerate(zip(sample.token_ids, sample.allowed, strict=True)):
                expected = plain[place, ids].log_softmax(0)[ids.index(token)]
                assert sample.logprobs[place] == pytest.approx(float(expected), abs=1e-5)


def test_new_weights_are_used_from_the_next_call_on() -> None:
    old, new, asked = model_of(seed=0), model_of(seed=1), requests(3)
    params = SamplingParams(n=2, max_tokens=10)
    engine = engine_of(old)
    before = engine.generate(asked, params)
    engine.load_weights(new.named_parameters())
    after = engine.generate(asked, params)
    assert tokens_of(before) != tokens_of(after)
    assert_logprobs_are_plain(new, asked, after)


def test_a_sequence_beyond_a_sliding_window_is_refused() -> None:
    model = model_of(use_sliding_window=True, sliding_window=20, max_window_layers=0)
    asked = [Request([5] * 15, seed=0)]
    found = engine_of(model, stop=()).generate(asked, SamplingParams(max_tokens=5))
    assert_logprobs_are_plain(model, asked, found)
    with pytest.raises(UserError, match="window of 20 tokens"):
        engine_of(model, stop=()).generate(asked, SamplingParams(max_tokens=10))
    with pytest.raises(UserError, match="window of 20 tokens"):
        engine_of(model).generate([Request([5] * 30)], SamplingParams(max_tokens=1))


def take_turn(session: Any, asked: list[Request], params: SamplingParams) -> list[list[Completion]]:
    """What comes of requests under the keys 0, 1, ..."""
    for key, request in enumerate(asked):
        session.add(key, request, params)
    found: dict[int, list[Completion]] = {}
    while done := session.step():
        found.update(done)
    return [found[key] for key in range(len(asked))]


def go_on(asked: list[Request], answers: list[list[Completion]]) -> list[Request]:
    """Most with their answer and more; some with half of the prompt, one with another prompt."""
    following = []
    for key, (request, (first, *_)) in enumerate(zip(asked, answers, strict=True)):
        said = [*request.token_ids, *first.token_ids]
        if key % 3 == 1:
            said = said[: len(request.token_ids) // 2 + 1]
        following.append(replace(request, token_ids=[90] if key == 2 else [*said, 80, 81, 82]))
    return following


@pytest.mark.parametrize("max_num_seqs", [4, 256])
def test_what_a_request_goes_on_with_is_not_computed_again(max_num_seqs: int) -> None:
    model, params = model_of(), SamplingParams(max_tokens=7)
    asked = [replace(one, is_continued=True) for one in requests(9)]
    session, shared = engine_of(model, max_num_seqs).session(), [0] * len(asked)
    for _ in range(4):
        answers = take_turn(session, asked, params)
        assert_logprobs_are_plain(model, asked, answers)
        assert [one.cached_tokens for (one,) in answers] == shared
        following = go_on(asked, answers)
        for key, (before, (said,), after) in enumerate(zip(asked, answers, following, strict=True)):
            computed = [*before.token_ids, *said.token_ids[:-1]]
            same = takewhile(lambda pair: pair[0] == pair[1], zip(computed, after.token_ids, strict=False))
            shared[key] = min(sum(1 for _ in same), len(after.token_ids) - 1)
        asked = following


def test_several_samples_go_on_with_what_was_computed_of_one() -> None:
    engine, params = engine_of(model_of()), SamplingParams(3, max_tokens=7)
    session, asked = engine.session(), [replace(one, is_continued=True) for one in requests(9)]
    for _ in range(3):
        answers = take_turn(session, asked, params)
        assert tokens_of(answers) == tokens_of(engine.generate(asked, params))
        asked = go_on(asked, answers)
    assert sum(one.cached_tokens for one, *_ in answers) > 0


def test_what_nobody_goes_on_with_is_given_back_and_what_has_no_room_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(model_of())
    session: Any = engine.session()
    asked = [replace(one, is_continued=True) for one in requests(6)]
    monkeypatch.setattr(hf_kept, "KEPT_TOKENS", sum(len(one.token_ids) + 3 for one in asked[:3]))
    for key, request in enumerate(asked):
        session.add(key, request, SamplingParams(max_tokens=3))
    while session.step():
        pass
    kept = session._kept
    assert 0 < len(kept._kept) < 6
    assert kept._tokens == sum(len(one.ids) for one in kept._kept.values()) <= hf_kept.KEPT_TOKENS
    for key in range(6):
        session.cancel(key)
    assert (kept._kept, kept._tokens) == ({}, 0)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("width", [8, 5])
def test_the_last_tokens_attend_as_they_do_in_the_whole(softcap: float | None, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 12, size, generator=generator) for heads, size in ((4, 8), (2, 8), (2, width))
    )
    whole = attend_at_end(query, key, value, 0.4, softcap)
    torch.testing.assert_close(attend_at_end(query[:, :, 7:], key, value, 0.4, softcap), whole[:, :, 7:])
    layout = RowLayout.from_lengths([12])
    found, _ = packed_attention(torch.nn.Module(), query, key, value, None, layout=layout, scaling=0.4, softcap=softcap)
    torch.testing.assert_close(whole.transpose(1, 2), found)
