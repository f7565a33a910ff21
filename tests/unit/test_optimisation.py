"""The norm of gradients and AdamW's step: fast, right at both ends of float32, the same after a state was read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_processes import process
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from r1ranker.trainer.checkpoint.shards import Learner, PartWriter, read_part
from r1ranker.trainer.config.models import OptimConfig
from r1ranker.trainer.learners.eight_bit import block_length
from r1ranker.trainer.learners.optimisation import Optimisation, total_norm


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def exact(gradients: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(one.double().square().sum()) for one in gradients))


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e-18, 1e-16, 1e-12, 1e-3, 1.0, 1e6, 1e17, 1e20, 1e30, 1e37])
def test_the_norm_is_right_at_every_scale_of_float32(scale: float) -> None:
    gradients = [
        drawn(300, 77, scale=scale),
        drawn(5, seed=1, scale=scale),
        drawn(2048, seed=2, scale=scale),
        torch.zeros(40, 40),
    ]
    assert total_norm(gradients) == pytest.approx(exact(gradients), rel=1e-6, abs=0)


def test_a_large_number_among_small_ones_is_not_lost_nor_are_they() -> None:
    for odd in (1e25, 1e-25):
        gradients = [drawn(5000, seed=3), drawn(7000, seed=4)]
        gradients[1][4321] = odd
        assert total_norm(gradients) == pytest.approx(exact(gradients), rel=1e-6, abs=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1023, 1024, 4999])
def test_one_number_that_is_not_finite_is_noticed(bad: float, place: int) -> None:
    gradients = [drawn(300, 7), drawn(5000, seed=1)]
    gradients[1][place] = bad
    assert math.isnan(total_norm(gradients))


def test_gradients_of_nothing_have_norm_zero() -> None:
    assert total_norm([]) == total_norm([torch.zeros(3000), torch.zeros(0, 4), torch.zeros(1)]) == 0
    assert math.isnan(total_norm([torch.ones(3)], is_finite=False))


def test_no_copy_of_a_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    double = Tensor.double
    monkeypatch.setattr(Tensor, "double", lambda self: sizes.append(self.numel()) or double(self))
    norm = torch.linalg.vector_norm

    def watched(tensor: Tensor, **named: object) -> Tensor:
        assert "dtype" not in named  # which would convert all of it first
        return norm(tensor, **named)

    monkeypatch.setattr(torch.linalg, "vector_norm", watched)
    for scale in (1.0, 1e30):
        total_norm([drawn(1000, 1000, scale=scale)])
    assert max(sizes) <= 2**16


def learner(seed: int) -> tuple[nn.Module, Optimisation]:
    torch.manual_seed(seed)
    module = nn.Linear(40, 30)
    return module, Optimisation(module, OptimConfig(lr=0.01), 100, grad_clip=0.5)


def update(one: tuple[nn.Module, Optimisation], number: int) -> float:
    one[0](drawn(8, 40, seed=number)).square().sum().backward()
    return one[1].step()


def test_adamw_is_fused_and_steps_as_the_plain_one() -> None:
    fused, plain = learner(0), learner(0)
    assert fused[1].optimizer.param_groups[0]["fused"]
    plain[1].optimizer.param_groups[0] |= {"fused": False, "foreach": False}
    for number in range(5):
        assert update(fused, number) == pytest.approx(update(plain, number), rel=1e-6)
    for found, wanted in zip(fused[0].parameters(), plain[0].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def shard_rows(module: nn.Module, rank: int, processes: int) -> None:
    """Keep a process's rows of each parameter of `module`, in place."""
    mesh = init_device_mesh("cpu", (processes,))
    for inner in module.modules():
        for name, parameter in list(inner.named_parameters(recurse=False)):
            share = -(-len(parameter) // processes)
            rows = parameter.detach()[rank * share : (rank + 1) * share]
            shape, stride = parameter.shape, parameter.stride()
            sharded = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
            setattr(inner, name, nn.Parameter(sharded))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_fused_step_takes_shards_and_processes_without_rows(rank: int) -> None:
    with process(rank, 3):
        torch.manual_seed(0)
        shards = nn.Linear(40, 2)
        shard_rows(shards, rank, 3)
        optimisation = Optimisation(shards, OptimConfig(lr=0.01), 100, grad_clip=1e9)
        for parameter in shards.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.to_local().detach().clone() for parameter in shards.parameters()]
        assert optimisation.step() == pytest.approx(math.sqrt(41) if rank < 2 else 0)  # nobody is there to add to it
        for parameter, value in zip(shards.parameters(), before, strict=True):
            torch.testing.assert_close(parameter.to_local(), value - 0.01 * (1 + 0.01 * value))  # AdamW's first step


def test_gradients_are_clipped_in_place() -> None:
    one = learner(0)
    one[0](drawn(8, 40)).square().sum().backward()
    gradients = [parameter.grad for parameter in one[0].parameters()]
    before = [gradient.clone() for gradient in gradients]
    norm = one[1].step()
    assert norm > 0.5
    for found, wanted in zip(gradients, before, strict=True):
        torch.testing.assert_close(found, wanted * (0.5 / norm))


def test_a_state_that_was_read_goes_on_with_fused_steps(tmp_path: Path) -> None:
    one = learner(0)
    for number in range(3):
        update(one, number)
    assert isinstance(PartWriter(str(tmp_path), 0, {"actor": one}).result(wait=True), dict)
    found = learner(1)
    read_part(str(tmp_path), 0, {"actor": found})
    for parameter in found[0].parameters():
        count = found[1].optimizer.state[parameter]["step"]
        assert (count.dtype, count.device, count.item()) == (torch.float32, parameter.device, 3)
    for number in range(3, 6):
        assert update(found, number) == update(one, number)
    for own, wanted in zip(found[0].parameters(), one[0].parameters(), strict=True):
        assert torch.equal(own, wanted)


class Blocks(nn.Module):
    """An embedding, two blocks with a norm each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.embedding(ids)
        for layer in self.layers:
            states = states + layer(states).tanh()
        result: Tensor = self.head(states)
        return result


def with_optimizer(kind: type[nn.Module], seed: int, name: str) -> Learner:
    torch.manual_seed(seed)
    module = kind()
    return module, Optimisation(module, OptimConfig(name=name, lr=0.01, lr_warmup_steps=3), 100, grad_clip=1e9)


def minimise(one: Learner, loss: Tensor) -> float:
    loss.backward()
    one[1].step()
    one[1].schedule.step()
    return loss.item()


def blocks(seed: int, name: str) -> Learner:
    return with_optimizer(Blocks, seed, name)


def learn(one: Learner, number: int) -> None:
    ids = torch.randint(0, 12, (20,), generator=torch.Generator().manual_seed(number))
    minimise(one, one[0](ids).square().sum())


def test_muon_turns_the_blocks_matrices_and_adamw_the_rest() -> None:
    muon, adamw = blocks(0, "muon"), blocks(0, "adamw")
    before = {name: value.detach().clone() for name, value in muon[0].named_parameters()}
    for one in (muon, adamw):
        learn(one, 0)
    expected = dict(adamw[0].named_parameters())
    for name, value in muon[0].named_parameters():
        if value.ndim == 2 and name.startswith("layers"):
            # orthogonal but for what five iterations leave of directions with next to no gradient; as large as an update of
            # AdamW, at the warm-up's rate
            rate = 0.01 / 4
            change = (before[name] * (1 - rate * 0.01) - value.detach()) / (rate * 0.2 * math.sqrt(8))
            first, *_, last = torch.linalg.svdvals(change)[:6].tolist()
            assert 0.5 < last < first < 1.5
        else:
            assert torch.equal(value, expected[name])


def assert_goes_on(tmp_path: Path, one: Learner, found: Learner, learn: Callable[[Learner, int], object]) -> None:
    """A learner that reads another's state goes on as that one does."""
    for number in range(3):
        learn(one, number)
    assert isinstance(PartWriter(str(tmp_path), 0, {"actor": one}).result(wait=True), dict)
    read_part(str(tmp_path), 0, {"actor": found})
    assert found[1].lr == one[1].lr
    for number in range(3, 6):
        learn(one, number)
        learn(found, number)
    for own, wanted in zip(found[0].parameters(), one[0].parameters(), strict=True):
        assert torch.equal(own, wanted)


def test_a_state_of_muon_goes_on_as_it_was(tmp_path: Path) -> None:
    assert_goes_on(tmp_path, blocks(0, "muon"), blocks(1, "muon"), learn)


class Wide(nn.Module):
    """Rows that divide into blocks of 96, an odd one, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.odd = nn.Linear(192, 33), nn.Linear(33, 192), nn.Linear(192, 3, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        result: Tensor = self.odd(self.second(self.first(given).tanh()))
        return result


def wide(seed: int, name: str) -> Learner:
    return with_optimizer(Wide, seed, name)


def fit(one: Learner, number: int) -> float:
    given = drawn(16, 192, seed=number)
    return minimise(one, (one[0](given) - given[:, :3]).square().mean())


def test_moments_of_eight_bits_learn_as_those_of_float32_do() -> None:
    eight, adamw = wide(0, "adamw_8bit"), wide(0, "adamw")
    losses = [[fit(one, number) for number in range(60)] for one in (eight, adamw)]
    assert losses[0][0] == losses[1][0]
    assert sum(losses[0][-10:]) == pytest.approx(sum(losses[1][-10:]), rel=0.1)
    assert sum(losses[1][-10:]) < 0.5 * sum(losses[1][:10])
    kept = {kind: rows for kind, rows, _ in eight[1].moments_of(eight[0].first.weight)}
    assert {kind: (rows.dtype, tuple(rows.shape)) for kind, rows in kept.items()} == {
        "exp_avg_codes": (torch.uint8, (33, 192)),
        "exp_avg_scale": (torch.float32, (33, 1)),
        "exp_avg_sq_codes": (torch.uint8, (33, 192)),
        "exp_avg_sq_scale": (torch.float32, (33, 1)),
    }
    for parameter in (eight[0].second.weight, eight[0].first.bias):
        assert {rows.dtype for _, rows, _ in eight[1].moments_of(parameter)} == {torch.float32}
    exact = dict(adamw[1].state_of(adamw[0].first.weight))
    scale = kept["exp_avg_scale"]
    assert scale.flatten().tolist() == pytest.approx(exact["exp_avg"].abs().amax(1).tolist(), rel=0.3)


def test_a_state_of_eight_bits_goes_on_as_it_was(tmp_path: Path) -> None:
    assert_goes_on(tmp_path, wide(0, "adamw_8bit"), wide(1, "adamw_8bit"), fit)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_find_the_codes_and_scales_that_one_wrote(tmp_path: Path, rank: int) -> None:
    one = wide(0, "adamw_8bit")
    fit(one, 0)
    assert isinstance(PartWriter(str(tmp_path), 0, {"actor": one}).result(wait=True), dict)
    with process(rank, 2):
        module = Wide()
        shard_rows(module, rank, 2)
        found = Optimisation(module, OptimConfig(name="adamw_8bit", lr=0.01), 100, grad_clip=1e9)
        read_part(str(tmp_path), 0, {"actor": (module, found)})
        for own, wanted in zip(module.parameters(), one[0].parameters(), strict=True):
            whole = {kind: rows for kind, rows, _ in one[1].moments_of(wanted)}
            held = list(found.moments_of(own))
            assert {kind for kind, _, _ in held} == whole.keys()
            for kind, rows, first in held:
                assert torch.equal(rows, whole[kind][first : first + len(rows)])
                assert first == rank * -(-len(wanted) // 2)
        for own in module.parameters():
            own.grad = torch.ones_like(own)
        assert found.step() > 0  # what was read is laid out as the step wants it


@pytest.mark.parametrize(
    ("columns", "length"), [(576, 192), (1536, 256), (192, 192), (96, 96), (33, 0), (262, 131), (1, 0)]
)
def test_a_block_lies_within_its_row(columns: int, length: int) -> None:
    assert block_length(columns) == length
