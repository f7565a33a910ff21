"""vLLM as it is on GPUs, on a CPU: `python vllm_doubles.py CASE '<json>'`. A line of JSON says what was seen.

A process of its own for each case, since vLLM changes torch and reads its environment once.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from runs import requests_of

from r1ranker.errors import RunError
from r1ranker.model.loading import load_causal_lm
from r1ranker.rollout.engine import Completion, EngineSettings, Request, SamplingParams
from r1ranker.rollout.start import start_engine
from r1ranker.rollout.vllm import VLLMEngine
from r1ranker.rollout.vllm_start import CPU_BLOCK

CPU = torch.device("cpu")
PARAMS = SamplingParams(n=2, temperature=0.7, max_tokens=8)
GREEDY = SamplingParams(temperature=0, max_tokens=8)


def started(model: str, **settings: Any) -> VLLMEngine:
    gc.freeze()  # vLLM collects garbage a dozen times, and what was imported is half a second's work each time
    engine = start_engine("vllm", model, CPU, EngineSettings(**{"max_model_len": 1024, "max_num_seqs": 16} | settings))
    assert isinstance(engine, VLLMEngine)
    return engine


def requests(engine: VLLMEngine, toy: str, count: int = 3) -> list[Request]:
    """Constrained ones and free ones, so long that each response needs one more block of the cache."""
    found = [one for limited in (True, False) for one in requests_of(engine.tokenizer, Path(toy), count, limited)]
    return [
        replace(one, token_ids=one.token_ids[-(len(one.token_ids) // CPU_BLOCK * CPU_BLOCK - 2) :]) for one in found
    ]


def plain(completions: list[list[Completion]]) -> list[list[Any]]:
    return [[one.token_ids, one.logprobs, one.finish_reason] for samples in completions for one in samples]


def refusal(call: Any, *arguments: Any) -> str:
    """What a RuntimeError said; empty where there was none."""
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)
    return ""


@cache
def weights_of(model: str) -> list[tuple[str, torch.Tensor]]:
    """As the trainer names them."""
    return [(name, weight.detach()) for name, weight in load_causal_lm(model, torch.float32, "sdpa").named_parameters()]


def lose_when_asleep(engine: VLLMEngine) -> None:
    """Have the CPU's worker sleep and wake by the code of the GPU's, over memory that really loses what it is not to keep."""
    from vllm.device_allocator.sleep_mode_backend import SleepModeBackend
    from vllm.v1.worker.gpu_worker import Worker

    core = engine.llm.llm_engine.engine_core.engine_core
    worker = core.model_executor.driver_worker.worker
    runner = worker.model_runner

    class Losing(SleepModeBackend):
        def suspend(self, level: int = 1) -> None:
            for blocks in runner.kv_caches:
                blocks.fill_(7.0)
            if level == 2:
                for module in runner.model.modules():
                    lose_weights(module)
                for part in parts_beside_weights(runner):
                    part.fill_(-12345)

        def resume(self, tags: list[str] | None = None) -> None:
            """Memory is there again, with whatever is in it."""

    torch.accelerator.get_memory_info = lambda *_: (
        0,
        0,
    )  # compared before and after, as if the machine were ours alone
    worker._sleep_mode_backend = Losing()
    worker.sleep = MethodType(Worker.sleep, worker)
    worker.wake_up = MethodType(Worker.wake_up, worker)


def lose_weights(module: Any) -> None:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and tensor.is_floating_point():
            tensor.data.fill_(torch.nan)
    if hasattr(module, "cpu_linear"):  # holds a packed copy of the weight, which a GPU has none of
        sizes = ("output_size_per_partition", "num_embeddings_per_partition")
        size = next(getattr(module, name) for name in sizes if hasattr(module, name))
        module.cpu_linear = lambda x, *_: x.new_full((*x.shape[:-1], size), torch.nan)


def parts_beside_weights(runner: Any) -> Iterator[torch.Tensor]:
    """What runner V2's sampler holds on the device: it is made along with the model, from the same memory."""
    from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor

    if isinstance(sampler := getattr(runner, "sampler", None), torch.nn.Module) or sampler is None:
        return  # runner V1's holds nothing
    for part in (*sampler.logits_processors, sampler.logprob_token_ids_state, sampler.thinking_budget_state):
        for value in vars(part).values():
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, StagedWriteTensor):
                yield value.gpu


def lost(engine: VLLMEngine) -> bool:
    """Whether no weight of the model is left."""
    return all(engine.llm.apply_model(lambda model: all(bool(one.isnan().all()) for one in model.parameters())))


def cycle(toy: str, model: str, dtype: str = "auto") -> dict[str, Any]:
    """An engine that reads its weights, and one that gets them, through sleeps and syncs."""
    engine = started(model, dtype=dtype)
    asked = requests(engine, toy)
    seen: dict[str, Any] = {"expected": plain(engine.generate(asked, PARAMS)), "read": [], "synced": [], "refused": []}
    seen["greedy"] = plain(engine.generate(asked, GREEDY))
    seen["dtype"] = str(engine.llm.llm_engine.vllm_config.model_config.dtype)
    lose_when_asleep(engine)
    for _ in range(2):
        engine.sleep()
        seen["read"].append(plain(engine.generate(asked, PARAMS)))  # wakes by itself, with the weights it had
        engine.sleep()
        engine.load_weights(weights_of(model))
        seen["read"].append(plain(engine.generate(asked, PARAMS)))
    engine.close()

    engine = started(model, dtype=dtype, synced_weights=True)
    lose_when_asleep(engine)
    seen["refused"].append(refusal(engine.generate, asked, PARAMS))
    seen["lost"] = []
    for _ in range(2):
        engine.sleep()
        seen["lost"].append(lost(engine))
        seen["refused"] += [refusal(engine.generate, asked, PARAMS), refusal(engine.session)]
        engine.load_weights(weights_of(model))
        engine.sleep()  # the cache still is
        seen["lost"].append(lost(engine))
        seen["refused"].append(refusal(engine.generate, asked, PARAMS))
        for _ in range(2):  # asleep, then awake
            engine.load_weights(weights_of(model))
        seen["synced"].append(plain(engine.generate(asked, PARAMS)))
        engine.load_weights(weights_of(model))
        seen["synced"].append(plain(engine.generate(asked, PARAMS)))
    short = [(name, weight) for name, weight in weights_of(model) if "layers.1.mlp.down_proj" not in name]
    seen["short"] = refusal(engine.load_weights, short)
    seen["refused"].append(refusal(engine.generate, asked, PARAMS))
    engine.close()
    return seen


def cycles(toy: str, cases: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {" ".join((Path(model).name, *dtype)): cycle(toy, model, *dtype) for model, *dtype in cases}


def interpret_triton() -> None:
    """Let vLLM believe in a Triton for CPUs: then runner V2 is what it takes.

    Triton's own interpreter runs the kernels, where TRITON_INTERPRET was set before anything imported Triton.
    """
    from triton import backends

    assert os.environ["TRITON_INTERPRET"] == "1"

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    backends.backends["cpu"] = backends.Backend(compiler=None, driver=Driver)  # type: ignore[arg-type]


def second_runner(toy: str, model: str) -> dict[str, Any]:
    """What vLLM's runner V2 samples: as it is, after a sync, and with prompts in parts and a cache that is too small."""
    interpret_triton()
    engine = started(model, synced_weights=True)
    lose_when_asleep(engine)
    asked = requests(engine, toy)
    seen: dict[str, Any] = {"second": engine.llm.llm_engine.vllm_config.use_v2_model_runner}
    engine.load_weights(weights_of(model))
    seen["greedy"] = plain(engine.generate(asked, GREEDY))
    seen["sampled"] = plain(engine.generate(asked, PARAMS))
    engine.sleep()
    seen["lost"] = lost(engine)
    engine.load_weights(weights_of(model))
    seen["synced"] = plain(engine.generate(asked, PARAMS))
    engine.close()
    engine, resumed = crowded(model, asked)
    # the constrained ones last: what came last is given up first
    seen["crowded"] = plain(engine.generate(asked[::-1], PARAMS)[::-1])
    seen["resumed"] = len(resumed)
    engine.close()
    return seen


def crowded(model: str, asked: Sequence[Request]) -> tuple[VLLMEngine, list[int]]:
    """An engine with room for two sequences, and slots of constrained requests that were given up and taken on again."""
    import vllm

    from r1ranker.rollout import vllm_constraint

    longest = max(len(one.token_ids) for one in asked) + PARAMS.max_tokens
    start, add, resumed = vllm.LLM, vllm_constraint.SlotConstraints.add_request, []
    blocks = 2 * -(-longest // CPU_BLOCK) + 1
    parts = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "num_gpu_blocks_override": blocks}
    vllm.LLM = lambda **arguments: start(**arguments | parts)

    def noted(self: Any, req_idx: int, sampling_params: Any) -> bool:
        constrained = add(self, req_idx, sampling_params)
        if constrained and self._requests.prefill_len.np[req_idx] > self._requests.prompt_len.np[req_idx]:
            resumed.append(req_idx)
        return constrained

    vllm_constraint.SlotConstraints.add_request = noted  # type: ignore[method-assign]
    return started(model, max_model_len=longest), resumed


def failures(cases: Sequence[dict[str, Any]]) -> list[str]:
    """What each start that cannot succeed says: {model, environment, settings}."""
    said = []
    for case in cases:
        os.environ.update(case["environment"])
        try:
            started(case["model"], **case.get("settings", {})).close()
        except RunError as error:
            said.append(str(error))
        else:
            said.append("")
    return said


if __name__ == "__main__":
    case = {"cycles": cycles, "second_runner": second_runner, "failures": failures}[sys.argv[1]]
    print(json.dumps(case(**json.loads(sys.argv[2]))), flush=True)
    os._exit(0)  # to take all apart that vLLM has imported is four seconds' work
