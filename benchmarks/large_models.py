"""Large models: what a step keeps and sends, from the sizes alone, and what loading takes, measured here.

python benchmarks/large_models.py           the tables of docs/scaling.md
python benchmarks/large_models.py --load    random models of Qwen2.5's shapes in bfloat16, loaded by 1, 2 and 4 processes:
                                            by rows, and whole before sharding; in a directory of 4 GB (--directory)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GB = 1e9


@dataclass(frozen=True)
class Model:
    """A decoder of Qwen2.5's shape."""

    name: str
    parameters: float
    layers: int
    hidden: int
    kv_heads: int
    head_width: int
    tensor_parallel: int
    """GPUs that its engine spans here"""

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_width


MODELS = (
    Model("3B", 3.09e9, 36, 2048, 2, 128, 1),
    Model("7B", 7.62e9, 28, 3584, 4, 128, 1),
    Model("32B", 32.8e9, 64, 5120, 8, 128, 4),
)
GPUS = (4, 8, 64)
MICRO_BATCHES = 4
"""micro-batches of an update on each GPU"""


def state_per_gpu(model: Model, gpus: int, critic: bool) -> float:
    """Bytes of sharded float32 weights and two Adam moments of the actor and the critic, of the gradients of one of them,
    and of the reference in bfloat16."""
    learners = 2 if critic else 1
    return model.parameters * (12 * learners + 4 + 2) / gpus


def engine_per_gpu(model: Model) -> float:
    """Bytes of the engine's bfloat16 weights while it is awake."""
    return 2 * model.parameters / model.tensor_parallel


def update_per_gpu(model: Model, gpus: int) -> float:
    """Bytes that a GPU receives in one update of one model: bfloat16 weights gathered twice and float32 gradients
    reduced once, a micro-batch."""
    return MICRO_BATCHES * model.parameters * (2 * 2 + 4) * (gpus - 1) / gpus


def sync_per_gpu(model: Model, gpus: int) -> float:
    """Bytes that a GPU receives when the shards are gathered in bfloat16, parameter by parameter, for the engines."""
    return 2 * model.parameters * (gpus - 1) / gpus


LOADED = ("0.5B", "1.5B")
"""of Qwen2.5's shapes"""
WAYS = ("by rows", "whole")


def build(directory: Path, name: str) -> int:
    """Write a random model of that shape in bfloat16; returns its parameters."""
    import torch
    from accelerate import init_empty_weights
    from common import QWEN_SHAPES
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from r1ranker.model.export import write_model
    from r1ranker.model.init import train_tokenizer

    config = Qwen2Config(**QWEN_SHAPES[name])
    with init_empty_weights(include_buffers=False):
        model = Qwen2ForCausalLM(config)
    model.tie_weights()
    random = torch.Generator().manual_seed(0)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for parameter, empty in model.named_parameters():
            yield parameter, torch.randn(empty.shape, generator=random, dtype=torch.bfloat16)

    write_model(directory, model, weights(), torch.bfloat16)
    train_tokenizer(["a b c d e f g"], 300).save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def load(directory: str, way: str, rank: int, processes: int, store: str) -> dict[str, object]:
    """Peak above the start and seconds of loading in this process; of process 0 a digest of the gathered weights."""
    import torch
    import torch.distributed as dist

    from r1ranker.model.attention import PACKED
    from r1ranker.model.execution import ExecutionOptions
    from r1ranker.model.fsdp import gather_parameters, shard
    from r1ranker.model.loading import load_causal_lm
    from r1ranker.model.policy_model import PolicyModel

    device = torch.device("cpu")
    dist.init_process_group("gloo", store=dist.FileStore(store, processes), rank=rank, world_size=processes)
    before, began = _resident("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    if way == "by rows":
        module = ExecutionOptions(processes).load(directory, device, PolicyModel)
    else:
        module = PolicyModel(load_causal_lm(directory, torch.float32, PACKED))
        shard(module, module.layers, device, processes, False, torch.float32)
    taken, seconds = _resident("VmHWM") - before, time.perf_counter() - began
    digest = hashlib.sha256()
    for name, weight in gather_parameters(module.language_model, device):
        digest.update(name.encode())
        if rank == 0:
            digest.update(weight.numpy().data)
    return {"peak": taken, "seconds": seconds, "digest": digest.hexdigest()}


def _resident(kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure_loading(directory: Path) -> None:
    """Print a row a shape, way and number of processes."""
    memory = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    print(
        "| model | processes | loaded | peak a process | of the float32 model | all processes | seconds | same weights |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in LOADED:
        path = directory / name
        whole = 4 * build(path, name)
        for processes in (1, 2, 4):
            digest = None
            for way in WAYS:
                row = f"| {name} | {processes} | {way} |"
                if way == "whole" and processes * whole * 1.1 > memory:
                    print(f"{row} {whole / GB:.1f} GB and more do not fit {processes} times | | | | |", flush=True)
                    continue
                found = [json.loads(line) for line in _run(path, way, processes)]
                peaks = [one["peak"] for one in found]
                digest = digest or found[0]["digest"]
                print(
                    f"{row} {max(peaks) / GB:.2f} GB | {max(peaks) / whole:.2f} | {sum(peaks) / GB:.2f} GB | "
                    f"{max(one['seconds'] for one in found):.1f} | {'yes' if found[0]['digest'] == digest else 'NO'} |",
                    flush=True,
                )


def _run(path: Path, way: str, processes: int) -> list[str]:
    """The last line of each process, in the order of ranks."""
    with tempfile.TemporaryDirectory() as meeting:
        command = [sys.executable, __file__, "--process", str(path), way, str(processes), f"{meeting}/store"]
        running = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(processes)
        ]
        lines = [one.communicate()[0].strip().split("\n")[-1] for one in running]
    if any(one.returncode for one in running):
        sys.exit("a process failed")
    return lines


def print_tables() -> None:
    """Both tables of the sizes alone."""
    print("| model | GPUs | sharded state a GPU, GRPO | with a critic | engine's weights a GPU | cache a token |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in MODELS:
        for gpus in GPUS:
            print(
                f"| {model.name} | {gpus} | {state_per_gpu(model, gpus, False) / GB:.1f} GB | "
                f"{state_per_gpu(model, gpus, True) / GB:.1f} GB | {engine_per_gpu(model) / GB:.1f} GB "
                f"(over {model.tensor_parallel}) | {model.cache_bytes_per_token / 1024:.0f} KiB |"
            )
    print()
    print("| model | GPUs | received a GPU in one update | in one sync |")
    print("| --- | --- | --- | --- |")
    for model in MODELS:
        for gpus in GPUS:
            print(
                f"| {model.name} | {gpus} | {update_per_gpu(model, gpus) / GB:.0f} GB | {sync_per_gpu(model, gpus) / GB:.1f} GB |"
            )


def main() -> None:
    """Print the tables, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", action="store_true", help="measure loading")
    parser.add_argument("--directory", help="where the models are written")
    parser.add_argument(
        "--process", nargs=5, metavar=("MODEL", "WAY", "PROCESSES", "STORE", "RANK"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.process:
        path, way, processes, store, rank = options.process
        print(json.dumps(load(path, way, int(rank), int(processes), store)))
    elif options.load:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            measure_loading(Path(directory))
    else:
        print_tables()


if __name__ == "__main__":
    main()
