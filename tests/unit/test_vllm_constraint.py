"""Constraints in vLLM's two model runners, by vLLM's own loaders and its own state of requests."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from r1ranker.rollout.constraint import ConstraintState, PoolConstraint

if not find_spec("vllm"):
    pytest.skip("vLLM is not installed; '.[cpu]' brings it", allow_module_level=True)

CPU = torch.device("cpu")
SLOTS, LENGTH, VOCABULARY = 4, 64, 16
OPEN, BREAK, CLOSE, EOS = 9, 1, 2, 0
TEXT = {OPEN: "<answer>"}
NAMES = [(5, 6), (5, 7), (8,), (10, 11, 12)]


def direct(begun: bool = True) -> PoolConstraint:
    return PoolConstraint(
        tuple((*name, BREAK) for name in NAMES), tuple((*name, CLOSE, EOS) for name in NAMES), answer_open=begun
    )


def iterative() -> PoolConstraint:
    return PoolConstraint((), tuple((*name, CLOSE, EOS) for name in NAMES), answer_open=True)


def state_of(constraint: PoolConstraint) -> ConstraintState:
    return ConstraintState(constraint, lambda token: TEXT.get(token, f" {token}"))


def sampling_params(constraint: PoolConstraint | None) -> Any:
    from vllm import SamplingParams

    from r1ranker.rollout.vllm_constraint import STATE

    return SamplingParams(extra_args={STATE: lambda: state_of(constraint)} if constraint else None)


@dataclass
class Sequence:
    """A request, as the scheduler knows it."""

    name: str
    constraint: PoolConstraint | None
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    computed: int = 0
    """tokens of it that are in the cache"""

    def expected(self, logits: torch.Tensor) -> torch.Tensor:
        """The row [vocabulary] with what may not come next left out."""
        if self.constraint is None:
            return logits
        state = state_of(self.constraint)
        for token in self.output:
            state.accept_token(token)
        allowed = state.allowed_token_ids() or list(range(VOCABULARY))
        return torch.full_like(logits, -torch.inf).index_copy(0, torch.tensor(allowed), logits[allowed])


class SecondRunner:
    """What runner V2 does around a logits processor: its own requests' state; of the kernels that write it, the effect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
        from vllm.v1.worker.gpu import buffer_utils
        from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors
        from vllm.v1.worker.gpu.states import RequestState

        from r1ranker.rollout.vllm_constraint import SlotConstraints

        monkeypatch.setattr(buffer_utils, "UvaBuffer", UvaBuffer)  # as the CPU's worker does
        self.requests = RequestState(SLOTS, LENGTH, LENGTH, 0, VOCABULARY, CPU)
        (self.processor,) = build_custom_logits_processors(None, self.requests, False, [SlotConstraints])
        self.constrained: dict[int, bool] = {}

    def add(self, one: Sequence) -> None:
        self.requests.add_request(one.name, len(one.prompt), one.prompt + one.output, one.computed, 32)
        slot = self.requests.req_id_to_index[one.name]
        self.constrained[slot] = self.processor.add_request(slot, sampling_params(one.constraint))
        self._write(self.requests.total_len)
        self._write(self.requests.all_token_ids)
        self.processor.apply_staged_writes()

    def remove(self, one: Sequence) -> None:
        self.requests.remove_request(one.name)

    def logits(self, batch: list[Sequence], scheduled: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [requests, vocabulary] as they are sampled from."""
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

        slots = np.array([self.requests.req_id_to_index[one.name] for one in batch])
        lengths = np.array([one.computed + tokens for one, tokens in zip(batch, scheduled, strict=True)], np.int32)
        if not any(self.constrained[slot] for slot in slots):  # the sampler leaves them all out
            return logits
        context = LogitsContext(
            expanded_idx_mapping=torch.from_numpy(slots),
            idx_mapping=torch.from_numpy(slots),
            idx_mapping_np=slots,
            expanded_local_pos=torch.zeros(len(batch), dtype=torch.int32),
            input_ids=torch.tensor([(one.prompt + one.output)[n - 1] for one, n in zip(batch, lengths, strict=True)]),
            pos=torch.from_numpy(lengths - 1),
            # the runner pads it where CUDA graphs want more rows
            seq_lens_upper_bound_np=np.concatenate([lengths, np.zeros(1, np.int32)]),
        )
        return self.processor.apply(logits, context)

    def take(self, one: Sequence, token: int) -> None:
        slot = self.requests.req_id_to_index[one.name]
        total = int(self.requests.total_len.gpu[slot])
        self.requests.all_token_ids.gpu[slot, total] = token
        self.requests.total_len.gpu[slot] = total + 1

    @staticmethod
    def _write(staged: Any) -> None:
        begun = 0
        starts = zip(
            staged._staged_write_indices, staged._staged_write_starts, staged._staged_write_cu_lens, strict=True
        )
        for index, start, end in starts:
            content = torch.tensor(staged._staged_write_contents[begun:end], dtype=staged.dtype)
            row = staged.gpu[index : index + 1] if staged.gpu.dim() == 1 else staged.gpu[index]
            row[start : start + len(content)] = content
            begun = end
        staged.clear_staged_writes()


class FirstRunner:
    """What runner V1 does around one: rows that it is told of, each with the list that its output grows in."""

    def __init__(self) -> None:
        from vllm.v1.sample.logits_processor import build_logitsprocs

        from r1ranker.rollout.vllm_constraint import RowConstraints

        config = type(
            "Config", (), {"speculative_config": None, "scheduler_config": type("S", (), {"max_num_seqs": SLOTS})}
        )
        found = build_logitsprocs(config, CPU, False, False, [RowConstraints])
        self.processor = next(one for one in found.all if isinstance(one, RowConstraints))

    def logits(self, batch: list[Sequence], logits: torch.Tensor) -> torch.Tensor:
        """The batch is new each time, as after a preemption."""
        from vllm.v1.sample.logits_processor import BatchUpdate

        removed = list(self.processor.req_info)
        added = [(row, sampling_params(one.constraint), one.prompt, one.output) for row, one in enumerate(batch)]
        self.processor.update_state(BatchUpdate(len(batch), removed, added, []))
        return self.processor.apply(logits)


@pytest.mark.parametrize("seed", range(20))
def test_both_runners_mask_alike_whatever_becomes_of_requests(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    second = SecondRunner(monkeypatch)
    waiting = [
        Sequence(
            f"{seed} {place}", draw.choice([direct(), direct(begun=False), iterative(), None]), [3] * draw.randint(1, 9)
        )
        for place in range(12)
    ]
    running: list[Sequence] = []
    masked = resumed = done = 0
    while waiting or running:
        if running and draw.random() < 0.15:  # preempted: it waits with what it has generated, and takes any free slot
            given_up = running.pop(draw.randrange(len(running)))
            second.remove(given_up)
            given_up.computed = 0
            waiting.insert(0, given_up)
        while waiting and len(running) < SLOTS:
            running.append(waiting.pop(0))
            resumed += bool(running[-1].output)
            second.add(running[-1])
        draw.shuffle(running)
        missing = [len(one.prompt) + len(one.output) - one.computed for one in running]
        scheduled = [draw.randint(1, tokens) for tokens in missing]  # prompts come in parts
        logits = torch.randn(len(running), VOCABULARY, generator=generator)
        found = second.logits(running, scheduled, logits.clone())
        first = FirstRunner().logits(running, logits.clone())
        for row, one in enumerate(list(running)):
            one.computed += scheduled[row]
            if scheduled[row] < missing[row]:
                continue  # nothing is sampled of a sequence that is not whole
            torch.testing.assert_close(found[row], one.expected(logits[row]), rtol=0, atol=0)
            torch.testing.assert_close(found[row], first[row], rtol=0, atol=0)
            masked += bool(found[row].isinf().any())
            token = int(torch.multinomial(found[row].softmax(-1), 1, generator=generator))
            one.output.append(token)
            second.take(one, token)
            if token == EOS or len(one.output) == 20:
                running.remove(one)
                second.remove(one)
                done += 1
    assert done == 12
    assert masked > 20
    assert resumed


def test_a_slot_forgets_its_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = SecondRunner(monkeypatch)
    runner.requests.free_indices = [0]
    logits = torch.randn(1, VOCABULARY)
    for place, constraint in enumerate((iterative(), None, direct())):
        one = Sequence(str(place), constraint, [3, 3])
        runner.add(one)
        assert runner.constrained == {0: constraint is not None}
        torch.testing.assert_close(runner.logits([one], [2], logits.clone()), one.expected(logits[0])[None])
        runner.remove(one)


def test_each_runner_takes_its_class_and_refuses_the_other() -> None:
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    from r1ranker.rollout.vllm_constraint import RowConstraints, SlotConstraints

    params = sampling_params(direct())
    validate_logits_processors_parameters([RowConstraints], params)
    build_custom_logits_processors_params_validator([SlotConstraints])(params)
    with pytest.raises(ValueError, match=r"RowConstraints is not a subclass of .*gpu"):
        build_custom_logits_processors_params_validator([RowConstraints])
    with pytest.raises(ValueError, match="SlotConstraints is not a subclass"):
        validate_logits_processors_parameters([SlotConstraints], params)


@pytest.mark.parametrize("has_triton", [True, False])
def test_an_engine_is_given_the_class_of_the_runner_that_vllm_chooses(
    has_triton: bool, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import EngineArgs, config
    from vllm.v1.engine.input_processor import InputProcessor

    from r1ranker.rollout.engine import EngineSettings
    from r1ranker.rollout.vllm_start import engine_arguments

    monkeypatch.setattr(config.vllm, "HAS_TRITON", has_triton)
    arguments = engine_arguments(tiny_model, CPU, EngineSettings(max_model_len=256))
    chosen = EngineArgs(**arguments).create_engine_config()
    assert chosen.use_v2_model_runner == has_triton
    # what the engine does with its arguments when it starts: each runner's own check of the class
    starting = type("Starting", (), {"vllm_config": chosen, "model_config": chosen.model_config})
    check = InputProcessor._build_logits_processors_params_validator(starting)
    check(sampling_params(direct()))
    free = engine_arguments(tiny_model, CPU, EngineSettings(max_model_len=256, constrained=False))
    assert "logits_processors" not in free
