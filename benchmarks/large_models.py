"""What a step keeps on each GPU and sends between them, from the sizes alone: the tables of docs/scaling.md.

python benchmarks/large_models.py
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Bytes of sharded float32 weights, gradients and two Adam moments of the actor and the critic, and of the reference."""
    learners = 2 if critic else 1
    return model.parameters * (16 * learners + 4) / gpus


def engine_per_gpu(model: Model) -> float:
    """Bytes of the engine's bfloat16 weights while it is awake."""
    return 2 * model.parameters / model.tensor_parallel


def update_per_gpu(model: Model, gpus: int) -> float:
    """Bytes that a GPU receives in one update of one model: bfloat16 weights gathered twice and float32 gradients
    reduced once, a micro-batch."""
    return MICRO_BATCHES * model.parameters * (2 * 2 + 4) * (gpus - 1) / gpus


def sync_per_gpu(model: Model, gpus: int) -> float:
    """Bytes that a GPU receives when the float32 shards are gathered, parameter by parameter, for the engines."""
    return 4 * model.parameters * (gpus - 1) / gpus


def main() -> None:
    """Print both tables."""
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


if __name__ == "__main__":
    main()
