"""The settings with which a run fits, as the dry run reckons: 1, 4 and 8 GPUs of 24, 40 and 80 GB at Qwen2.5's sizes.

python benchmarks/gpu_settings.py           the tables of docs/gpu.md: PPO with a critic, and GRPO with 8 samples a prompt
Of the settings that leave 5% of a GPU free the first is taken: all on the GPUs, then offloaded; then fewer tokens a micro-batch.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common import QWEN_SHAPES
from transformers import Qwen2Config

from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.memory.estimate import MemoryModel, total_bytes
from r1ranker.trainer.memory.host import HostMemory

GiB = 2**30
USABLE = {24: 23.5, 40: 39.4, 80: 79.1}
"""GB of a card -> GiB that its driver reports"""
GPUS = (1, 4, 8)
PUBLISHED, FIRST_TOKENS = 0.4, 16384
"""gpu_memory_utilization and tokens a micro-batch; what differs is named"""
FREE = 0.05
"""of a GPU, left for what was not counted"""
ALGORITHMS = {
    "PPO": (),
    "GRPO": ("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=8"),
}


@dataclass(frozen=True)
class Setting:
    """What is tried, in this order of preference."""

    offload: bool
    tokens: int
    spans: int
    """GPUs of an engine"""

    def overrides(self, gpus: int, utilization: float) -> list[str]:
        """As the command line takes them."""
        roles = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic.model"
        parts = "param", "grad", "optimizer"
        return [
            *(f"{role}.fsdp_config.{part}_offload={self.offload}" for role, part in product(roles, parts)),
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={self.tokens}",
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={self.spans}",
            f"actor_rollout_ref.rollout.gpu_memory_utilization={utilization}",
            f"trainer.n_gpus_per_node={gpus}",
        ]


def settings(gpus: int) -> Iterator[Setting]:
    """All that are tried."""
    for offload, tokens, spans in product((False, True), (FIRST_TOKENS, 8192, 4096), (1, 2, 4)):
        if spans <= gpus:
            yield Setting(offload, tokens, spans)


def first_that_fits(path: str, gpus: int, size: int, algorithm: tuple[str, ...]) -> str:
    """A table's cell: the setting and what it needs, or a dash."""
    models = [f"{role}.model.path={path}" for role in ("actor_rollout_ref", "critic")]
    common = [
        "data.train_files=x",
        "data.val_files=x",
        "actor_rollout_ref.actor.ppo_micro_batch_size=null",
        *models,
        *algorithm,
    ]
    for setting in settings(gpus):
        config = load_config("published", [*common, *setting.overrides(gpus, PUBLISHED)])
        model = MemoryModel.of(config, True, size)
        wanted = math.ceil(100 * model.engine_needs() / size + 5) / 100
        config.actor_rollout_ref.rollout.gpu_memory_utilization = utilization = max(PUBLISHED, wanted)
        needed = max(total_bytes(parts) for parts in model.moments().values())
        if utilization < 0.95 and needed <= (1 - FREE) * size:
            host = max(total_bytes(parts) for parts in HostMemory(model).moments().values())
            words = ["offload" if setting.offload else "GPUs"]
            if setting.tokens < FIRST_TOKENS:
                words.append(f"{setting.tokens} tokens")
            if utilization > PUBLISHED:
                words.append(f"engine {utilization:.2f}")
            if setting.spans > 1:
                words.append(f"over {setting.spans}")
            return f"{', '.join(words)}; {host / GiB:.0f}"
    return "-"


def main() -> None:
    """Print a table an algorithm."""
    with tempfile.TemporaryDirectory() as directory:
        for name, sizes in QWEN_SHAPES.items():
            Qwen2Config(**sizes).save_pretrained(Path(directory) / name)
        for algorithm, overrides in ALGORITHMS.items():
            print(f"\n{algorithm}\n\n| GPUs | {' | '.join(QWEN_SHAPES)} |\n| --- |{' --- |' * len(QWEN_SHAPES)}")
            for gpus, gigabytes in product(GPUS, USABLE):
                size = int(USABLE[gigabytes] * GiB)
                cells = [first_that_fits(f"{directory}/{name}", gpus, size, overrides) for name in QWEN_SHAPES]
                print(f"| {gpus} x {gigabytes} GB | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
