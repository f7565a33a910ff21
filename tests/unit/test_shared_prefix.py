"""A prompt computed once for all its responses: the same log-probabilities, values, losses and gradients as each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from r1ranker.model import policy_model
from r1ranker.model.attention import PACKED, register_packed, segmented_attention
from r1ranker.model.layout import RowLayout
from r1ranker.model.loading import checkpoint_activations, load_causal_lm
from r1ranker.model.policy_model import PolicyModel
from r1ranker.model.prefix_attention import PrefixAttention
from r1ranker.model.value import ValueModel
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.algorithm.losses import value_loss
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.packing import pack
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import LOSS_AGG_MODES
from r1ranker.trainer.learners.policy import PolicyLoss

VOCABULARY = 300


def groups_of(sizes: list[tuple[int, list[int]]], mode: str = "token-mean", seed: int = 0) -> list[Trajectory]:
    """Groups given by the tokens of the prompt and of each response; every third response is constrained."""
    random = np.random.default_rng(seed)
    made = []
    for group, (prompt_length, lengths) in enumerate(sizes):
        prompt = random.integers(0, VOCABULARY, prompt_length).tolist()
        for length in lengths:
            response = random.integers(0, VOCABULARY, length).tolist()
            constrained = len(made) % 3 == 0
            made.append(
                Trajectory(
                    prompt_ids=list(prompt),
                    response_ids=response,
                    rollout_logprobs=random.normal(-1, 0.3, length),
                    finish_reason="stop",
                    group_id=group,
                    allowed=[[token, (token + 1) % VOCABULARY, (token + 7) % VOCABULARY] for token in response]
                    if constrained
                    else [],
                    advantages=random.normal(size=length),
                    returns=random.normal(size=length),
                    values=random.normal(size=length),
                    old_logprobs=random.normal(-5.5, 0.2, length),
                    ref_logprobs=random.normal(-5.5, 0.2, length),
                )
            )
    assign_loss_weights(made, mode)
    return made


LOSS = PolicyLoss(ClipRange(), entropy_coeff=0.01, kl_coef=0.1)


def policy_pass(
    model: PreTrainedModel, batch: list[Trajectory], share: bool, forced_ends: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and every parameter's gradient of the loss."""
    micro_batch = pack(batch, share, forced_ends)
    places = micro_batch.predicting, micro_batch.targets, micro_batch.constrained, micro_batch.allowed
    logprobs, entropy = PolicyModel(model)(*places, 0.8, True, True, **micro_batch.model_inputs())
    model.zero_grad()
    LOSS(micro_batch, logprobs, entropy)[0].backward()
    return logprobs.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    assert set(found[1]) == set(expected[1])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=0, msg=name)


sizes = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=5)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def model(tiny_model: str) -> PreTrainedModel:
    return load_causal_lm(tiny_model, torch.float32, PACKED)


@settings(max_examples=30)
@given(sizes, st.sampled_from(LOSS_AGG_MODES))
def test_sharing_changes_neither_losses_nor_gradients(
    model: PreTrainedModel, sizes: list[tuple[int, list[int]]], mode: str
) -> None:
    batch = groups_of(sizes, mode)
    assert_same(policy_pass(model, batch, True), policy_pass(model, batch, False))


@settings(max_examples=30)
@given(sizes, st.sampled_from(LOSS_AGG_MODES), st.data())
def test_ends_without_a_choice_need_not_be_computed(
    model: PreTrainedModel, sizes: list[tuple[int, list[int]]], mode: str, data: st.DataObject
) -> None:
    batch = groups_of(sizes, mode)
    for one in batch:
        length = len(one.response_ids)
        open_until = data.draw(st.integers(0, length))
        one.allowed = [
            [token] if place >= open_until or place % 3 == 2 else sorted({token, (token + 1) % VOCABULARY, 5})
            for place, token in enumerate(one.response_ids)
        ]
    found = policy_pass(model, batch, True, forced_ends=False)
    # a response without a constraint, and without a part in the loss, has every row of logits computed by itself
    (free,) = groups_of([(3, [2])])
    free.allowed, free.weights = [], np.zeros(2)
    logprobs, gradients = policy_pass(model, [*batch, free], False)
    assert_same(found, (logprobs[:-2], gradients))
    states = [one.prompt_ids + one.response_ids for one in batch]
    with torch.no_grad():
        logits = [
            model(input_ids=torch.tensor([ids]), layout=RowLayout.from_lengths([len(ids)])).logits[0] for ids in states
        ]
    expected = [
        (logits[index][len(one.prompt_ids) + place - 1, ids] / 0.8).log_softmax(-1)[ids.index(token)]
        for index, one in enumerate(batch)
        for place, (token, ids) in enumerate(zip(one.response_ids, one.allowed, strict=True))
    ]
    torch.testing.assert_close(found[0], torch.stack(expected), atol=1e-5, rtol=0)


def test_the_row_ends_where_there_is_no_choice_any_more() -> None:
    batch = groups_of([(20, [5, 5, 5])])
    batch[0].allowed = [[one] for one in batch[0].response_ids]
    batch[1].allowed = [[one, 1] for one in batch[1].response_ids[:3]] + [[one] for one in batch[1].response_ids[3:]]
    batch[2].allowed = []
    assert pack(batch, forced_ends=False).input_ids.shape[1] == 20 + 0 + 2 + 4
    assert pack(batch).input_ids.shape[1] == 20 + 4 + 4 + 4


def test_groups_that_lie_apart_or_are_split_come_out_the_same(model: PreTrainedModel) -> None:
    batch = groups_of([(20, [5, 1, 9, 4]), (7, [3]), (33, [2, 2, 8])])
    mixed = [batch[index] for index in (0, 4, 1, 5, 2, 6, 3, 7)]
    logprobs, gradients = policy_pass(model, mixed, True)
    assert_same((logprobs, gradients), policy_pass(model, mixed, False))
    split: dict[str, Tensor] = {}
    for part in (batch[:2], batch[2:6], batch[6:]):
        for name, gradient in policy_pass(model, part, True)[1].items():
            split[name] = split.get(name, torch.zeros_like(gradient)) + gradient
    assert_same((logprobs, split), (logprobs, gradients))


def test_the_row_holds_a_prompt_once(model: PreTrainedModel) -> None:
    batch = groups_of([(20, [5, 1, 9, 4]), (7, [3])])
    assert pack(batch).input_ids.shape[1] == 20 + 4 + 0 + 8 + 3 + 7 + 2
    assert pack(batch, share_prompts=False).input_ids.shape[1] == 4 * 20 + 15 + 7 + 2


def test_sharing_works_with_checkpointed_activations(tiny_model: str, model: PreTrainedModel) -> None:
    saving = load_causal_lm(tiny_model, torch.float32, PACKED)
    checkpoint_activations(saving)
    batch = groups_of([(20, [5, 1, 9, 4]), (7, [3])])
    assert_same(policy_pass(saving, batch, True), policy_pass(model, batch, False))


def test_values_and_their_gradients_are_the_same(tiny_model: str) -> None:
    critic = ValueModel(load_causal_lm(tiny_model, torch.float32, PACKED))
    torch.nn.init.normal_(critic.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    results = []
    for share in (True, False):
        batch = pack(groups_of([(20, [5, 1, 9, 4]), (7, [3]), (12, [6, 6])]), share)
        values = critic(batch.predicting, **batch.model_inputs())
        losses, _ = value_loss(values, batch.columns["values"], batch.columns["returns"], 0.5)
        critic.zero_grad()
        (batch.columns["weights"] * losses).sum().backward()
        gradients = {name: one.grad.clone() for name, one in critic.named_parameters() if one.grad is not None}
        results.append((values.detach(), gradients))
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_in_parts_is_that_of_each_sequence(dtype: torch.dtype, groups: int) -> None:
    layout = RowLayout.from_lengths([17, 3, 4, 1, 5, 9, 2, 600, 70, 80], [-1, 0, 0, 0, -1, -1, 5, -1, 7, 7])
    random = torch.Generator().manual_seed(0)
    length = layout.bounds[-1]
    inputs = [
        torch.randn(1, length, heads, 8, dtype=dtype, generator=random).transpose(1, 2).requires_grad_()
        for heads in (4, groups, groups)
    ]
    direction = torch.randn(1, 4, length, 8, dtype=dtype, generator=random)
    found, expected = PrefixAttention.apply(*inputs, layout, 0.3), segmented_attention(*inputs, layout, 0.3)
    atol = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    for one, other in zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def test_key_places_give_a_kernel_what_each_segment_attends_to() -> None:
    layout = RowLayout.from_lengths([3, 2, 1, 2], [-1, 0, 0, -1])
    assert layout.key_indices.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert layout.cu_seqlens_k.tolist() == [0, 3, 8, 12, 14]
    assert layout.cu_seqlens_q.tolist() == [0, 3, 5, 6, 8]
    assert (layout.max_seqlen_q, max(layout.lengths)) == (3, 5)


@pytest.mark.parametrize(("most", "of_a_cpu", "at_once", "passes"), [(4, 8, 4, 2), (8, 4, 4, 2), (34, 4, 34, 1)])
def test_logits_in_chunks_change_nothing(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, most: int, of_a_cpu: int, at_once: int, passes: int
) -> None:
    """Rows that may be there at once, rows of a chunk on a CPU; those that are there, and how often each row is computed."""
    batch = groups_of([(20, [5, 1, 9, 4]), (7, [3]), (12, [6, 6])])
    whole = policy_pass(model, batch, True)
    calls = []
    inner = PolicyModel._scaled
    monkeypatch.setattr(PolicyModel, "_scaled", lambda self, logits: calls.append(len(logits)) or inner(self, logits))
    monkeypatch.setattr(policy_model, "LOGITS_BYTES", most * 4 * model.config.vocab_size)
    monkeypatch.setattr(policy_model, "CPU_CHUNK_BYTES", of_a_cpu * 4 * model.config.vocab_size)
    assert_same(policy_pass(model, batch, True), whole)
    assert max(calls) == at_once
    assert sum(calls) == passes * 34


@pytest.mark.parametrize("chunk", [2**28, 4 * 3 * 5])
def test_constrained_tokens_take_the_logits_of_allowed_ids_alone(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    policy = PolicyModel(load_causal_lm(tiny_model, torch.float32, PACKED))
    whole = load_causal_lm(tiny_model, torch.float32, "eager")
    prompts, allowed = ([5, 9, 7], [12, 8]), ([[11, 3, 30], [4, 11]], [[30, 2, 6], [6, 3]])
    answers = [(0, [11, 4]), (0, [3, 11]), (0, [30, 4]), (1, [2, 3]), (1, [30, 6])]
    batch = pack([Trajectory(prompts[g], ids, np.zeros(2), "stop", g, allowed=allowed[g]) for g, ids in answers])
    widths = []
    inner = PolicyModel._scaled
    monkeypatch.setattr(
        PolicyModel, "_scaled", lambda self, logits: widths.append(logits.shape[1]) or inner(self, logits)
    )
    monkeypatch.setattr(policy_model, "LOGITS_BYTES", chunk)
    places = batch.predicting, batch.targets, batch.constrained, batch.allowed
    logprobs, entropy = policy(*places, 0.7, True, True, **batch.model_inputs())
    assert set(widths) == {len({id_ for one in allowed for ids in one for id_ in ids})}
    expected, spread = [], []
    for group, ids in answers:
        logits = whole(torch.tensor([[*prompts[group], *ids]])).logits[0] / 0.7
        for place, token in enumerate(ids):
            own = logits[len(prompts[group]) + place - 1]
            every = own[allowed[group][place]].log_softmax(dim=0)
            expected.append(every[allowed[group][place].index(token)])
            spread.append(-(every.exp() * every).sum())
    torch.testing.assert_close(logprobs, torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, torch.stack(spread), atol=1e-5, rtol=0)
    directions = torch.randn(2, len(expected), generator=torch.Generator().manual_seed(3))
    (directions[0] * logprobs + directions[1] * entropy).sum().backward()
    (directions[0] * torch.stack(expected) + directions[1] * torch.stack(spread)).sum().backward()
    others = dict(whole.named_parameters())
    for name, one in policy.language_model.named_parameters():
        torch.testing.assert_close(one.grad, others[name].grad, atol=1e-5, rtol=0, msg=name)


SHAPE = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=3.0)),
        (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.3)),
        (Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=None)),
    ],
)  # fmt: skip
def test_logits_are_finished_as_the_model_does(kind: type[PreTrainedModel], config: object) -> None:
    register_packed()
    torch.manual_seed(0)
    plain = kind(config).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.tensor([[5, 9, 11, 30, 7]])
    expected = plain(ids).logits[0].log_softmax(-1)[1:-1].gather(1, ids[0, 2:, None])[:, 0]
    plain.set_attn_implementation(PACKED)
    batch = pack([Trajectory([5, 9], [11, 30, 7], np.zeros(3), "stop", 0)])
    places = batch.predicting, batch.targets, batch.constrained, batch.allowed
    logprobs, _ = PolicyModel(plain)(*places, 1.0, False, False, **batch.model_inputs())
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
