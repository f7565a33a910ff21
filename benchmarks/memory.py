"""The memory that `r1ranker train --dry-run` foretells against what processes take: fresh ones a row, on the CPU.

python benchmarks/memory.py [--only NAME]
Each runs the parts of a step at the token budget (generation, reference and values, updates of two micro-batches while a state is
written, sync), after an update on one response, which lets Adam's moments be there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GiB = 2**30
PROMPT, RESPONSE, SAMPLES = 448, 32, 4
"""tokens of a prompt and of a response, responses a prompt"""
ROW = PROMPT + SAMPLES * (RESPONSE - 1)
"""tokens that a group takes in a row: its prompt once, and no last token"""


@dataclass(frozen=True)
class Setting:
    """A model's sizes and what is done with it."""

    hidden: int
    layers: int
    vocabulary: int
    groups: int
    """in a micro-batch"""
    overrides: tuple[str, ...] = ()
    processes: int = 1

    @property
    def tokens(self) -> int:
        """The budget of a micro-batch, which its groups fill."""
        return self.groups * ROW


CHECKPOINTING = (
    "actor_rollout_ref.model.enable_gradient_checkpointing=true",
    "critic.model.enable_gradient_checkpointing=true",
)
REFERENCE = ("actor_rollout_ref.actor.use_kl_loss=true",)
LORA = ("actor_rollout_ref.model.lora_rank=16", "critic.model.lora_rank=16")
CRITIC = ("algorithm.adv_estimator=gae",)
AS_ON_GPUS = (
    "actor_rollout_ref.model.dtype=bfloat16", "actor_rollout_ref.actor.fsdp_config.param_offload=true",
    "actor_rollout_ref.ref.fsdp_config.param_offload=true", "critic.model.fsdp_config.param_offload=true",
)  # fmt: skip
"""bfloat16 and offload; both rest in the same memory here"""
SETTINGS = {
    "GRPO": Setting(256, 8, 8000, 4),
    "GRPO, checkpointing": Setting(384, 6, 8000, 4, CHECKPOINTING),
    "GRPO, reference, vocabulary of 150,000": Setting(128, 2, 150000, 4, REFERENCE),
    "GRPO, reference, long rows": Setting(128, 6, 2000, 10, REFERENCE),
    "GRPO, reference, many weights": Setting(768, 6, 8000, 1, (*REFERENCE, *CHECKPOINTING)),
    "GRPO, wider": Setting(512, 8, 8000, 3),
    "GRPO, entropy in the loss": Setting(192, 4, 32000, 4, ("actor_rollout_ref.actor.entropy_coeff=0.01",)),
    "GRPO, many weights, moments of eight bits": Setting(
        768, 6, 8000, 1, (*CHECKPOINTING, "actor_rollout_ref.actor.optim.name=adamw_8bit")
    ),
    "GRPO, LoRA, reference": Setting(512, 8, 8000, 3, (*LORA, *REFERENCE)),
    "PPO, LoRA, checkpointing": Setting(512, 8, 8000, 3, (*LORA, *CRITIC, *CHECKPOINTING)),
    "GRPO, LoRA, bfloat16, 2 processes": Setting(768, 8, 8000, 2, (*LORA, AS_ON_GPUS[0]), 2),
    "PPO": Setting(256, 6, 8000, 4, CRITIC),
    "PPO, checkpointing": Setting(384, 4, 8000, 4, (*CRITIC, *CHECKPOINTING)),
    "GRPO, reference, 2 processes": Setting(512, 8, 8000, 3, REFERENCE, 2),
    "PPO, reference, bfloat16, offload, 2 processes": Setting(
        768, 8, 32000, 2, (*CRITIC, *REFERENCE, *CHECKPOINTING, *AS_ON_GPUS), 2
    ),
    "PPO, reference, bfloat16, offload, 4 processes": Setting(
        768, 8, 32000, 1, (*CRITIC, *REFERENCE, *CHECKPOINTING, *AS_ON_GPUS), 4
    ),
}


def config_of(setting: Setting, directory: str) -> list[str]:
    """Overrides of the quick start's config."""
    return [
        "data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={directory}", f"critic.model.path={directory}",
        f"data.max_prompt_length={PROMPT}", f"data.max_response_length={RESPONSE}", f"actor_rollout_ref.rollout.n={SAMPLES}",
        "actor_rollout_ref.rollout.constrain=none", f"data.train_batch_size={2 * setting.groups}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={2 * setting.groups}",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={setting.tokens}", *setting.overrides,
        f"trainer.n_gpus_per_node={setting.processes}", f"trainer.executor={'ray' if setting.processes > 1 else 'local'}",
    ]  # fmt: skip


def measure(setting: Setting, directory: str) -> dict[str, float]:
    """Bytes foretold for the trainer's processes, and the highest resident memory they then had, added up."""
    import numpy as np

    from r1ranker.rollout.engine import Request, SamplingParams
    from r1ranker.trainer.batch.trajectory import Trajectory
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.memory.estimate import MemoryModel, total_bytes
    from r1ranker.trainer.workers.cluster import call_all, start_cluster

    config = load_config("quickstart", config_of(setting, directory))
    moments = MemoryModel.of(config, on_gpu=False, device_bytes=0).moments()
    began, random = time.perf_counter(), np.random.default_rng(0)

    def group(index: int) -> list[Trajectory]:
        prompt = random.integers(0, 300, PROMPT).tolist()
        return [
            Trajectory(
                prompt, random.integers(0, 300, RESPONSE).tolist(), random.normal(-1, 0.1, RESPONSE), "stop", index,
                values=np.zeros(RESPONSE), returns=np.ones(RESPONSE), ref_logprobs=random.normal(-1, 0.1, RESPONSE),
                advantages=random.normal(size=RESPONSE), weights=np.full(RESPONSE, 1e-4),
            )
            for _ in range(SAMPLES)
        ]  # fmt: skip

    updates = ["update_policy"] + (["update_critic"] if config.needs_critic else [])
    with start_cluster(config, 10) as cluster:
        for update in updates:
            call_all(cluster, update, [group(0)[:1]])
        cluster.sync_weights()  # the engine sleeps while others work
        bins = [[one for index in range(setting.groups) for one in group(index)] for _ in range(2)]
        requests = [Request(one.prompt_ids) for row in bins for one in row[::SAMPLES]]
        sampled = [(requests, SamplingParams(n=SAMPLES, max_tokens=RESPONSE))] * setting.processes
        for _ in cluster.stream("generate", sampled):
            pass
        if config.needs_reference:
            call_all(cluster, "logprobs", bins, "reference")
        if config.needs_critic:
            call_all(cluster, "values", bins)
        state = Path(directory) / "state"
        state.mkdir()
        call_all(cluster, "save_state", str(state))
        for update in updates:
            call_all(cluster, update, bins)
        call_all(cluster, "state_result", True)
        cluster.sync_weights()
        highest = max(moments, key=lambda name: total_bytes(moments[name]))
        return {
            "estimate": setting.processes * total_bytes(moments[highest]),
            "measured": sum(_peaks(cluster)),
            "seconds": time.perf_counter() - began,
            "moment": highest,  # type: ignore[dict-item]
        }


def _peaks(cluster: Any) -> list[int]:
    """Highest resident memory of each process of the trainer, in bytes."""
    if not hasattr(cluster, "_actors"):
        return [_peak(None)]
    import ray

    found: list[int] = ray.get([actor.__ray_call__.remote(_peak) for actor in cluster._actors])
    return found


def _peak(_: object) -> int:
    import torch

    from r1ranker.device import peak_memory_gib

    return int(peak_memory_gib(torch.device("cpu")) * GiB)


def main() -> None:
    """Print a row a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SETTINGS)
    parser.add_argument("--measure", metavar="DIRECTORY", help="in this process, of the model in DIRECTORY")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(SETTINGS[options.only], options.measure)))
        return
    print("| setting | hidden x layers, vocabulary | tokens | estimate GiB | its moment | measured GiB | ratio | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in [options.only] if options.only else SETTINGS:
        setting = SETTINGS[name]
        with tempfile.TemporaryDirectory() as directory:
            build(directory, setting)
            command = [sys.executable, __file__, "--only", name, "--measure", directory]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {setting.hidden} x {setting.layers}, {setting.vocabulary} | {setting.tokens} | "
            f"{found['estimate'] / GiB:.2f} | {found['moment']} | {found['measured'] / GiB:.2f} | "
            f"{found['estimate'] / found['measured']:.2f} | {found['seconds']:.0f} |",
            flush=True,
        )


def build(directory: str, setting: Setting) -> None:
    """Write a randomly initialised model of the setting's sizes."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from r1ranker.model.init import save_hf, train_tokenizer

    tokenizer = train_tokenizer(["a b c d e f g"], 300)
    config = Qwen2Config(
        vocab_size=setting.vocabulary, hidden_size=setting.hidden, intermediate_size=4 * setting.hidden,
        num_hidden_layers=setting.layers, num_attention_heads=setting.hidden // 64,
        num_key_value_heads=max(1, setting.hidden // 256), max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    save_hf(directory, model, tokenizer)


if __name__ == "__main__":
    main()
