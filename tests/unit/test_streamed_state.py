"""Training states written from live tensors: as they were at the call, in small pieces, whatever goes on meanwhile."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fake_processes import process
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from r1ranker.device import side_stream
from r1ranker.errors import UserError
from r1ranker.model.fsdp import shard
from r1ranker.trainer.checkpoint import shards
from r1ranker.trainer.checkpoint.shards import Learner, PartWriter, read_part
from r1ranker.trainer.config.models import OptimConfig
from r1ranker.trainer.learners.optimisation import MOMENTS, Optimisation

CPU = torch.device("cpu")
SAVED: Callable[..., None] = save_file


class Net(nn.Module):
    """Two blocks and a head; no tensor's rows can be dealt evenly to two or three processes."""

    def __init__(self, width: int = 7, rows: int = 11) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, rows), nn.Linear(rows, width)])
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs).tanh()
        result: Tensor = self.head(inputs)
        return result


def learner(seed: int, rows: int = 11, updates: int = 0) -> Learner:
    torch.manual_seed(seed)
    net = Net(rows=rows)
    made = net, Optimisation(net, OptimConfig(lr=0.01), 100, grad_clip=1.0)
    for number in range(updates):
        update(made, number)
    return made


def update(one: Learner, number: int) -> None:
    module, optimisation = one
    inputs = torch.randn(5, 7, generator=torch.Generator().manual_seed(number))
    module(inputs).square().sum().backward()
    optimisation.step()
    optimisation.schedule.step()


def tensors(one: Learner) -> dict[str, Tensor]:
    """Copies of what a state holds, by name."""
    module, optimisation = one
    found = {}
    for name, parameter in module.named_parameters():
        state = optimisation.state_of(parameter)
        for kind, tensor in {"weight": parameter, **state}.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            found[f"{kind} {name}"] = local.detach().clone()
    return found | {"lr": torch.tensor(optimisation.lr)}


def tensors_held(one: Learner) -> list[Tensor]:
    """What a state is of, itself."""
    module, optimisation = one
    return [
        value
        for parameter in module.parameters()
        for value in (parameter, *optimisation.optimizer.state[parameter].values())
    ]


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PIECE_BYTES", 200)


def slow_down(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], object]) -> list[str]:
    """Have `before` called with the name of each file that is about to be written; returns the names."""
    written: list[str] = []

    def slow(tensors: dict[str, Tensor], file: Path) -> None:
        before(Path(file).name)
        SAVED(tensors, file)
        written.append(Path(file).name)

    monkeypatch.setattr(shards, "save_file", slow)
    return written


def test_a_state_is_as_it_was_at_the_call_though_updates_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone, saved = learner(0), learner(0)
    written = slow_down(monkeypatch, lambda name: time.sleep(0.02))
    for number in range(4):
        update(alone, number)
        if number == 2:
            at_the_call = tensors(saved)
            writer = PartWriter(str(tmp_path), 0, {"actor": saved})
            saved[0](torch.randn(5, 7)).sum().backward()  # passes do not wait
            saved[1].optimizer.zero_grad()
            assert not saved[1].written.is_set()
        update(saved, number)
    assert saved[1].waited > 0
    assert alone[1].waited == 0
    assert_equal(tensors(saved), tensors(alone))
    files = writer.result(wait=True)
    assert isinstance(files, dict)
    assert len(written) > 8
    assert set(files) == {path.name for path in tmp_path.iterdir()} == {*written, "rank_00000.json"}
    for name in written:
        assert sum(tensor.nbytes for tensor in load_file(tmp_path / name).values()) <= 200
    found = learner(1)
    read_part(str(tmp_path), 0, {"actor": found})
    assert_equal(tensors(found), at_the_call)
    update(found, 2)  # and goes on from there as the others did
    update(found, 3)
    assert_equal(tensors(found), tensors(alone))


def test_a_bad_step_waits_for_nothing_and_loading_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, gate = learner(0, updates=1), threading.Event()
    PartWriter(str(tmp_path), 0, {"actor": one}).result(wait=True)
    slow_down(monkeypatch, lambda name: gate.wait(5) or gate.set())
    (tmp_path / "later").mkdir()
    update(one, 1)
    at_the_call = tensors(one)
    writer = PartWriter(str(tmp_path / "later"), 0, {"actor": one})
    one[0](torch.ones(5, 7)).sum().backward()
    assert one[1].step(is_finite=False) != 0  # nothing is touched by it
    assert one[1].waited == 0
    threading.Timer(0.1, gate.set).start()
    read_part(str(tmp_path), 0, {"actor": one})
    assert one[1].waited > 0
    assert isinstance(writer.result(wait=True), dict)
    found = learner(1)
    read_part(str(tmp_path / "later"), 0, {"actor": found})
    assert_equal(tensors(found), at_the_call)


def test_the_learner_that_is_updated_first_waits_for_its_own_pieces_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    critic, actor, gate = learner(0, updates=1), learner(1, updates=1), threading.Event()
    slow_down(monkeypatch, lambda name: "critic" in name or gate.wait(5) or gate.set())
    writer = PartWriter(str(tmp_path), 0, {"critic": critic, "actor": actor})
    update(critic, 5)  # while no piece of the actor is written yet
    assert critic[1].written.is_set()
    assert not actor[1].written.is_set()
    assert writer.result(wait=False) is None
    gate.set()
    update(actor, 5)
    assert isinstance(writer.result(wait=True), dict)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "state: No space left on device"),
        (RuntimeError("no memory for a piece"), "state: the writing thread broke off"),
    ],
)
def test_nobody_waits_for_a_thread_that_failed(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def fail(name: str) -> None:
        if name.endswith("_00002.safetensors"):
            time.sleep(0.1)
            raise error

    critic, actor = learner(0, updates=1), learner(1, updates=1)
    slow_down(monkeypatch, fail)
    (tmp_path / "state" / "step").mkdir(parents=True)
    writer = PartWriter(str(tmp_path / "state" / "step"), 0, {"critic": critic, "actor": actor})
    waiting = [threading.Thread(target=update, args=(one, 5), daemon=True) for one in (critic, actor)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
    said = writer.result(wait=True)
    assert isinstance(said, str)
    assert said.endswith(sentence)


def test_what_is_in_host_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = learner(0, updates=1)
    held = tensors_held(one)
    ranges = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in held]

    def check(tensors: dict[str, Tensor], file: Path) -> None:
        for tensor in tensors.values():
            assert any(low <= tensor.data_ptr() < high for low, high in ranges)
        SAVED(tensors, file)

    monkeypatch.setattr(shards, "save_file", check)
    writer = PartWriter(str(tmp_path), 0, {"actor": one})
    assert isinstance(writer.result(wait=True), dict)


def test_of_what_is_on_a_gpu_a_piece_is_copied_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = learner(0, rows=400, updates=1)
    at_the_call = tensors(one)
    live = {tensor.untyped_storage().data_ptr() for tensor in tensors_held(one)}
    storages: dict[int, int] = {}

    def check(tensors: dict[str, Tensor], file: Path) -> None:
        storages.update({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors.values()})
        SAVED(tensors, file)

    monkeypatch.setattr(shards, "save_file", check)
    monkeypatch.setattr(shards, "_in_host_memory", lambda tensor: False)
    monkeypatch.setattr(shards, "PIECE_BYTES", 2000)
    files = PartWriter(str(tmp_path), 0, {"actor": one}).result(wait=True)
    assert isinstance(files, dict)
    assert len(files) > 20
    assert not live & set(storages)
    assert sum(storages.values()) <= 2 * 2000
    found = learner(1, rows=400)
    read_part(str(tmp_path), 0, {"actor": found})
    assert_equal(tensors(found), at_the_call)


def test_copies_from_a_gpu_wait_for_what_was_queued_and_for_nothing_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            done.append(f"a stream on {device}")

        def wait_stream(self, other: str) -> None:
            done.append(f"waits for {other}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"what {device} has queued")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(type(stream).__name__))
    with side_stream([CPU, CPU]) as used:
        assert used is None
    with side_stream([CPU, torch.device("cuda", 0)]) as used:
        assert used == "Stream"
    assert done == ["a stream on cuda:0", "waits for what cuda:0 has queued"]


def sharded(seed: int, world: int) -> Learner:
    """A learner's rows on this process, with moments as if after three updates."""
    torch.manual_seed(seed)
    net = Net()
    shard(net, net.layers, CPU, world, offload=False, dtype=torch.float32)
    made = net, Optimisation(net, OptimConfig(lr=0.01), 100, grad_clip=1.0)
    for name, parameter in net.named_parameters():
        assert isinstance(parameter, DTensor)
        state = made[1].optimizer.state[parameter]
        state["step"] = torch.tensor(3.0)
        for moment in MOMENTS:
            whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name + moment) + seed))
            rows, rank = whole.chunk(world), dist.get_rank()
            state[moment] = torch.zeros_like(parameter)
            if rank < len(rows):
                state[moment].to_local().copy_(rows[rank])
    made[1].restore(3)
    return made


def test_any_number_of_processes_reads_the_pieces_of_any_other(tmp_path: Path) -> None:
    before = None
    for number, world in enumerate((2, 1, 3, 2)):
        directory = tmp_path / str(number)
        directory.mkdir()
        for rank in range(world):
            with process(rank, world):
                wanted = tensors(sharded(0, world))
                found = sharded(0 if before is None else 1, world)
                if before is not None:
                    read_part(str(before), rank, {"actor": found})
                assert_equal(tensors(found), wanted)
                files = PartWriter(str(directory), rank, {"actor": found}).result(wait=True)
                assert isinstance(files, dict)
        for file in directory.glob("*.safetensors"):
            assert sum(tensor.nbytes for tensor in load_file(file).values()) <= 200
        before = directory


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    assert isinstance(PartWriter(str(tmp_path), 0, {"actor": learner(0)}).result(wait=True), dict)
    with pytest.raises(UserError, match=r"holds no actor/layers.0.weight of shape \[12, 7\]: the state of another"):
        read_part(str(tmp_path), 0, {"actor": learner(0, rows=12)})
    with pytest.raises(UserError, match=r"holds no critic/layers.0.weight"):
        read_part(str(tmp_path), 0, {"critic": learner(0)})


def test_weights_that_are_gathered_at_the_moment_are_not_taken_for_the_sharded_ones(tmp_path: Path) -> None:
    with process(0, 1):
        one = sharded(0, 1)
        with torch.no_grad():
            one[0](torch.ones(2, 7))  # FSDP2 leaves those outside the blocks gathered
        with pytest.raises(AssertionError, match=r"actor/head.weight is not sharded"):
            PartWriter(str(tmp_path), 0, {"actor": one})
        assert one[1].written.is_set()
        one[0].reshard()
        assert isinstance(PartWriter(str(tmp_path), 0, {"actor": one}).result(wait=True), dict)
