"""The model over packed rows: equal to transformers one by one, in logits and in every gradient."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.errors import UserError
from r1ranker.model import logprobs as logprobs_module
from r1ranker.model.attention import PACKED
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.init import ModelSize, init_model, word_vectors
from r1ranker.model.loading import checkpoint_activations, load_causal_lm
from r1ranker.model.logprobs import token_logprobs
from r1ranker.model.policy_model import PolicyModel
from r1ranker.model.value import ValueModel
from r1ranker.pretrained import check_model_directory, load_tokenizer
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.packing import MicroBatch, pack
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.learners.policy import PolicyLoss

SOURCE = Path(__file__).parents[2] / "r1ranker"


def trajectories(count: int = 7, seed: int = 0) -> list[Trajectory]:
    random = np.random.default_rng(seed)
    made = []
    for group in range(count):
        length = int(random.integers(1, 9))
        made.append(
            Trajectory(
                prompt_ids=random.integers(0, 300, int(random.integers(1, 12))).tolist(),
                response_ids=random.integers(0, 300, length).tolist(),
                rollout_logprobs=random.normal(-1, 0.3, length),
                finish_reason="stop",
                group_id=group,
                advantages=random.normal(size=length),
                old_logprobs=random.normal(-5.5, 0.2, length),
                ref_logprobs=random.normal(-5.5, 0.2, length),
            )
        )
    assign_loss_weights(made, "token-mean")
    return made


def logprobs_one_by_one(model: torch.nn.Module, one: Trajectory) -> Tensor:
    """transformers' own forward pass over one unpadded sequence."""
    logits = model(torch.tensor([[*one.prompt_ids, *one.response_ids]])).logits[0]
    chosen = logits.log_softmax(-1)[:-1].gather(1, torch.tensor([*one.prompt_ids, *one.response_ids])[1:, None])[:, 0]
    return chosen[len(one.prompt_ids) - 1 :]


def scored(model: torch.nn.Module, batch: MicroBatch, entropy: bool = True) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of a micro-batch's sampled tokens."""
    places = batch.predicting, batch.targets, batch.constrained, batch.allowed
    return PolicyModel(model)(*places, 1.0, entropy, entropy, **batch.model_inputs())


def test_packed_equals_one_by_one(tiny_model: str) -> None:
    packed = load_causal_lm(tiny_model, torch.float32, PACKED)
    plain = load_causal_lm(tiny_model, torch.float32, "sdpa")
    batch = pack(trajectories())
    together, _ = scored(packed, batch)
    apart = torch.cat([logprobs_one_by_one(plain, one) for one in trajectories()])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)


LOSS = PolicyLoss(ClipRange(), entropy_coeff=0.01, kl_coef=0.1)


def gradient(model: torch.nn.Module, bins: list[list[Trajectory]]) -> dict[str, Tensor]:
    model.zero_grad()
    for one in bins:
        batch = pack(one)
        logprobs, entropy = scored(model, batch)
        LOSS(batch, logprobs, entropy)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_gradient_does_not_depend_on_micro_batches(tiny_model: str) -> None:
    model, batch = load_causal_lm(tiny_model, torch.float32, PACKED), trajectories()
    whole = gradient(model, [batch])
    for bins in ([[one] for one in batch], [batch[:3], [], batch[3:]]):
        other = gradient(model, bins)
        for name, expected in whole.items():
            torch.testing.assert_close(other[name], expected, atol=1e-6, rtol=0, msg=name)


def test_the_gradient_is_that_of_finite_differences(tiny_model: str) -> None:
    model, one = load_causal_lm(tiny_model, torch.float32, PACKED).double(), trajectories(3)
    batch = pack(one)

    def value() -> Tensor:
        logprobs, entropy = scored(model, batch)
        return LOSS(batch, logprobs, entropy)[0].double()

    value().backward()
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        direction /= direction.norm()
        with torch.no_grad():
            step, sides = 1e-2, []
            for sign in (1, -1):
                parameter += sign * step * direction
                sides.append(value().item())
                parameter -= sign * step * direction
        assert parameter.grad is not None
        expected = (sides[0] - sides[1]) / (2 * step)
        # log-probabilities are float32 inside, which bounds how exact a difference can be
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=2e-2, abs=2e-4)


def test_gradient_checkpointing_changes_nothing_even_where_the_model_has_dropout(
    tiny_model: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    plain, saving = (load_causal_lm(str(tmp_path / "model"), torch.float32, PACKED) for _ in range(2))
    checkpoint_activations(saving)
    expected = gradient(plain, [trajectories()])
    for name, found in gradient(saving, [trajectories()]).items():
        torch.testing.assert_close(found, expected[name], atol=1e-7, rtol=0)


def test_unusable_tokens_leave_loss_and_gradient(tiny_model: str) -> None:
    model, batch = load_causal_lm(tiny_model, torch.float32, PACKED), trajectories(3)
    batch[1].rollout_logprobs[:] = np.nan
    batch[1].old_logprobs = batch[1].rollout_logprobs
    kept = [batch[0], batch[2]]
    for some in (batch, kept):
        assign_loss_weights(some, "token-mean")
        if some is batch:
            found = gradient(model, [batch])
    expected = gradient(model, [kept])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-7, rtol=0)


def test_a_process_without_work_has_a_gradient_of_zero(tiny_model: str) -> None:
    model = load_causal_lm(tiny_model, torch.float32, PACKED)
    gradients = gradient(model, [[]])
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert not any(value.any() for value in gradients.values())


def test_values_start_at_zero_and_belong_to_the_state_before_the_token(tiny_model: str) -> None:
    model = ValueModel(load_causal_lm(tiny_model, torch.float32, PACKED))
    batch = pack(trajectories())
    assert not model(batch.predicting, **batch.model_inputs()).any()
    torch.nn.init.normal_(model.head.weight)
    values = model(batch.predicting, **batch.model_inputs())
    plain = load_causal_lm(tiny_model, torch.float32, "sdpa")
    expected = []
    for one in trajectories():
        hidden = plain.model(torch.tensor([[*one.prompt_ids, *one.response_ids]])).last_hidden_state[0]
        expected.append(model.head(hidden)[len(one.prompt_ids) - 1 : -1, 0])
    torch.testing.assert_close(values, torch.cat(expected), atol=1e-5, rtol=0)


def test_a_built_model_loads_in_transformers_with_its_tokenizer(tiny_model: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    assert model.config.model_type == "qwen2"
    assert model.config.vocab_size == len(tokenizer)
    text = "- Silent Harbour\n<answer>[3]</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("Silent Harbour")["input_ids"]) == 1
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_same_seed_builds_the_same_model(toy: Path, tmp_path: Path) -> None:
    files = [str(toy / "direct_ranking" / "test.parquet")]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        init_model(str(tmp_path / name), files, ModelSize(32, 1, 1, 1), vocab_size=300, seed=seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_names_are_as_near_as_the_words_that_they_share() -> None:
    names = ["Harbour Nine", "harbour nine (1998)", "Harbour Lights", "Other Words", "***"]
    torch.manual_seed(1)
    vectors = word_vectors(names, 20_000)
    torch.testing.assert_close(vectors.std(dim=1), torch.ones(5), atol=0.03, rtol=0)
    sets = [{"harbour", "nine"}, {"harbour", "nine", "1998"}, {"harbour", "lights"}, {"other", "words"}, {"***"}]
    wanted = [[len(a & b) / (len(a) * len(b)) ** 0.5 for b in sets] for a in sets]
    torch.testing.assert_close(vectors @ vectors.T / 20_000, torch.tensor(wanted), atol=0.04, rtol=0)


@pytest.mark.parametrize("tie", [True, False])
def test_with_title_words_both_tokens_of_a_title_begin_with_its_words(toy: Path, tmp_path: Path, tie: bool) -> None:
    files = [str(toy / f"{mode}_ranking" / "train.parquet") for mode in ("direct", "iterative")]
    size = ModelSize(hidden_size=64, tie_embeddings=tie)
    for name, words in (("plain", False), ("words", True)):
        init_model(str(tmp_path / name), files, size, 300, title_tokens=True, title_words=words)
    plain, model = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("plain", "words"))
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "words").get_vocab()
    titles = [token for token in vocabulary if "\n- " + token in vocabulary]
    own, listed = ([vocabulary[before + title] for title in titles] for before in ("", "\n- "))
    assert len(titles) > 20
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        torch.testing.assert_close(weight[own], weight[listed], atol=0, rtol=0)
    untouched = [place for place in range(len(vocabulary)) if place not in {*own, *listed}]
    new, old = model.state_dict(), plain.state_dict()
    for name in old:
        rows = untouched if "embed" in name or "lm_head" in name else slice(None)
        torch.testing.assert_close(new[name][rows], old[name][rows], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (ModelSize(30, 1, 4, 2), "multiple of --heads"),
        (ModelSize(64, 1, 4, 2), "heads of width 16; vLLM takes"),
        (ModelSize(128, 1, 4, 3), "--kv-heads"),
    ],
)
def test_impossible_sizes_are_refused(toy: Path, tmp_path: Path, size: ModelSize, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        init_model(str(tmp_path / "m"), [str(toy / "direct_ranking" / "test.parquet")], size)
    assert not (tmp_path / "m").exists()


def test_model_directories_that_lack_something_are_named(tiny_model: str, tmp_path: Path) -> None:
    import shutil

    for removed, wanted in (
        ("tokenizer", "without tokenizer"),
        ("model.safetensors", "no model.safetensors"),
        ("config.json", "no config.json"),
    ):
        copy = tmp_path / removed
        shutil.copytree(tiny_model, copy)
        for file in copy.glob(removed + "*"):
            file.unlink()
        with pytest.raises(UserError, match=wanted):
            check_model_directory(str(copy))
    with pytest.raises(UserError, match="no such model directory"):
        load_tokenizer(str(tmp_path / "nowhere"))
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        load_causal_lm(str(damaged), torch.float32, "sdpa")


def test_the_accelerator_is_named_in_one_module_alone() -> None:
    named = re.compile(r"\.cuda\b|[\"']cuda|torch\.cuda")
    found = [path.name for path in SOURCE.rglob("*.py") if named.search(path.read_text())]
    assert found == ["device.py"]


def test_a_window_of_attention_is_refused_where_it_would_cut(tiny_model: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention"] * 2,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model = load_causal_lm(str(tmp_path / "model"), torch.float32, PACKED)
    longest = max(len(one) for one in trajectories())
    assert longest > 8
    with pytest.raises(UserError, match="window of 8 tokens"):
        gradient(model, [trajectories()])


def test_a_generation_config_with_a_temperature_can_be_saved_again(tiny_model: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": 0.7, "top_p": 0.8}')
    load_causal_lm(str(tmp_path / "model"), torch.float32, "sdpa").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_entropies_without_gradient_change_no_value(tiny_model: str) -> None:
    logits = torch.randn(5, 11, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    arguments = (torch.arange(5), 0.7, empty, torch.zeros(0, 1, dtype=torch.long), True)
    for learns in (True, False):
        logprobs, entropy = token_logprobs(logits, *arguments, entropy_requires_grad=learns)
        assert entropy is not None
        assert entropy.requires_grad == learns
        expected = torch.distributions.Categorical(logits=logits / 0.7)
        torch.testing.assert_close(entropy, expected.entropy(), check_stride=False)
        torch.testing.assert_close(logprobs, expected.log_prob(arguments[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_blocks_of_rows_change_no_log_probability_and_no_gradient(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scale: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (8 * torch.randn(7, 13, generator=generator)).to(dtype).requires_grad_()
    targets, direction = torch.arange(7), torch.randn(7, generator=generator)
    free = (torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, dtype=torch.long))

    def computed() -> list[torch.Tensor]:
        logprobs, entropy = token_logprobs(logits, targets, scale, *free, True, entropy_requires_grad=False)
        assert entropy is not None
        return [logprobs, entropy, *torch.autograd.grad(logprobs, logits, direction)]

    whole = computed()
    exact = logits.detach().double().requires_grad_()
    expected = (exact / scale).log_softmax(dim=1)[torch.arange(7), targets]
    torch.testing.assert_close(whole[0].double(), expected, atol=1e-5, rtol=0)
    (of_exact,) = torch.autograd.grad(expected, exact, direction.double())
    torch.testing.assert_close(whole[2].double(), of_exact, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=0)
    for numbers in (1, 3 * 13, 4 * 13):
        monkeypatch.setattr(logprobs_module, "CPU_BLOCK_NUMBERS", numbers)
        for one, other in zip(computed(), whole, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("numbers", [2**20, 2 * 11])
def test_free_and_constrained_tokens_of_one_batch_have_the_gradients_of_float64(
    monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setattr(logprobs_module, "CPU_BLOCK_NUMBERS", numbers)
    generator = torch.Generator().manual_seed(7)
    logits = (4 * torch.randn(6, 11, generator=generator)).requires_grad_()
    with torch.no_grad():
        logits[4, 2] = -torch.inf
    allowed, targets = {1: [0, 4, 9], 3: [5, 2]}, torch.tensor([3, 4, 10, 2, 0, 6])
    exact = logits.detach().double().requires_grad_()
    expected, spread = [], []
    for row, target in enumerate(targets.tolist()):
        ids = allowed.get(row, [id_ for id_ in range(11) if exact[row, id_] > -torch.inf])
        every = (exact[row, ids] / 0.8).log_softmax(dim=0)
        expected.append(every[ids.index(target)])
        spread.append(-(every.exp() * every).sum())
    rows, ids = torch.tensor(list(allowed)), torch.tensor([[0, 4, 9], [5, 2, -1]])
    logprobs, entropy = token_logprobs(logits, targets, 0.8, rows, ids, True, entropy_requires_grad=False)
    assert entropy is not None
    torch.testing.assert_close(logprobs.double(), torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), torch.stack(spread), atol=1e-5, rtol=0)
    direction = torch.randn(6, generator=generator)
    (found,) = torch.autograd.grad(logprobs, logits, direction)
    (of_exact,) = torch.autograd.grad(torch.stack(expected), exact, direction.double())
    torch.testing.assert_close(found.double(), of_exact, atol=1e-5, rtol=0)


def test_of_free_tokens_the_logits_alone_are_kept_for_the_backward_pass() -> None:
    logits, kept = torch.randn(6, 50).bfloat16().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        free = (torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, dtype=torch.long))
        token_logprobs(logits, torch.arange(6), 0.7, *free, True, entropy_requires_grad=False)
    assert {one.dtype for one in kept if one.numel() >= logits.numel()} == {torch.bfloat16}


@pytest.mark.parametrize("height", [0.0, 300.0, 3000.0])
@pytest.mark.parametrize("allowed", [None, [[0, 3, 7, -1]] * 4])
def test_an_entropy_that_learns_is_that_of_float64_however_large_the_logits(
    height: float, allowed: list[list[int]] | None
) -> None:
    exact = (torch.randn(4, 11, generator=torch.Generator().manual_seed(5)) + height).double()
    scores = exact if allowed is None else exact[:, [0, 3, 7]]
    scores = scores.requires_grad_()
    expected = torch.distributions.Categorical(logits=scores).entropy()
    logits = scores.detach().float() if allowed is None else exact.float()
    logits.requires_grad_()
    constrained = torch.zeros(0, dtype=torch.long) if allowed is None else torch.arange(4)
    ids = torch.zeros(0, 1, dtype=torch.long) if allowed is None else torch.tensor(allowed)
    logprobs, entropy = token_logprobs(logits, torch.zeros(4, dtype=torch.long), 1.0, constrained, ids, True)
    assert entropy is not None
    torch.testing.assert_close(entropy.double(), expected, atol=2e-6, rtol=0, check_stride=False)
    torch.testing.assert_close(logprobs.double(), scores.log_softmax(1)[:, 0], atol=2e-6, rtol=0)
    (of_scores,) = torch.autograd.grad(expected.sum(), scores)
    (of_logits,) = torch.autograd.grad(entropy.sum(), logits)
    found = of_logits if allowed is None else of_logits[:, [0, 3, 7]]
    torch.testing.assert_close(found.double(), of_scores, atol=2e-6, rtol=0)


def test_weights_that_are_not_those_of_the_config_are_named_and_never_made_up(
    untied_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(Path(untied_model) / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    without = {key: weight for key, weight in weights.items() if key != name}
    more = weights | {"model.layers.2.mlp.up_proj.weight": weights[name].clone()}
    for case, changed, words in (
        ("missing", without, f"no weights for {name};"),
        (
            "renamed",
            {f"trunk.{key}": weight for key, weight in weights.items()},
            "trunk.lm_head.weight and the like are there",
        ),
        ("narrow", weights | {name: weights[name][:-1].clone()}, f"{name} is of shape "),
    ):
        directory = tmp_path / case
        shutil.copytree(untied_model, directory)
        save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=re.escape(words)):
            load_causal_lm(str(directory), torch.float32, PACKED)
        with pytest.raises(UserError, match=re.escape(words)):
            ExecutionOptions().load(str(directory), torch.device("cpu"), PolicyModel)
    shutil.copytree(untied_model, tmp_path / "more")
    save_file(more, tmp_path / "more" / "model.safetensors", metadata={"format": "pt"})
    load_causal_lm(str(tmp_path / "more"), torch.float32, PACKED)
    assert "1 weights that config.json's model lacks are left out (model.layers.2" in capsys.readouterr().err
