"""One process's share: rollout engine, policy, reference and critic. The same class runs here or as a Ray actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import distributed

from r1ranker.atomic import atomic_path
from r1ranker.device import compute_dtype, device_memory, peak_memory_gib
from r1ranker.model.buckets import fill_buckets
from r1ranker.model.execution import ExecutionOptions
from r1ranker.model.export import write_model
from r1ranker.model.fsdp import full_tensor, gather_parameters
from r1ranker.model.lora import adapters_off, gather_adapters, gather_weights, write_adapters
from r1ranker.pretrained import load_tokenizer
from r1ranker.trainer.checkpoint.export import ADAPTER_DIRECTORY, write_ranker_settings
from r1ranker.trainer.checkpoint.shards import Learner, PartWriter, read_part, restore_random_state
from r1ranker.trainer.config.models import lora_options, offloads
from r1ranker.trainer.learners.critic import Critic
from r1ranker.trainer.learners.optimisation import Optimisation
from r1ranker.trainer.learners.policy import Bins, Policy, PolicyLoss
from r1ranker.trainer.memory.estimate import MemoryModel
from r1ranker.trainer.memory.out_of_memory import explain_out_of_memory
from r1ranker.trainer.workers.process import Process
from r1ranker.trainer.workers.profiling import StepProfiler


class Worker(Process):
    """Everything that one process of the trainer holds. Methods marked collective have to be called on all at once."""

    def setup(self, address: str | None, total_steps: int) -> None:
        """Join the other processes at `address` (None: there are none) and load the models. Collective."""
        config, world = self.config, self.config.world_size
        model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
        generating = rollout.n_workers if config.trainer.async_steps else 0
        self.join(address, world, beside=config.trainer.n_gpus_per_node + generating)
        path = str(model.path)
        self.tokenizer = load_tokenizer(path)
        self.profiler = StepProfiler()
        actor = config.actor_rollout_ref.actor
        self.dtype = compute_dtype(self.device, model.dtype)
        summed = self._summed_on_gpu()
        execution = ExecutionOptions(
            world,
            offloads(actor.fsdp_config),
            model.enable_gradient_checkpointing,
            model.share_prompts,
            model.use_torch_compile,
            model.dtype,
            "actor" in summed,
            lora=lora_options(model, config.trainer.seed),
        )
        self.policy = Policy(path, self.device, rollout.temperature, execution)
        self.policy_optimisation = Optimisation(self.policy.module, actor.optim, total_steps, actor.grad_clip)
        self.policy_loss = PolicyLoss.from_config(actor)
        self.reference: Policy | None = None
        if config.needs_reference and not model.lora_rank:  # else it is the actor without its adapters
            offload = offloads(config.actor_rollout_ref.ref.fsdp_config)
            resting = replace(execution, offload=offload, checkpointing=False, frozen=True)
            self.reference = Policy(path, self.device, rollout.temperature, resting)
        self.critic: Critic | None = None
        if config.needs_critic:
            critic = config.critic
            own = replace(
                execution,
                offload=offloads(critic.model.fsdp_config),
                checkpointing=critic.model.enable_gradient_checkpointing,
                sums_on_device="critic" in summed,
                lora=lora_options(critic.model, config.trainer.seed),
            )
            self.critic = Critic(str(critic.model.path), self.device, critic.cliprange_value, own)
            self.critic_optimisation = Optimisation(self.critic.module, critic.optim, total_steps, critic.grad_clip)
        if rollout.placement == "colocated":
            self.start_engine()
            self.sync_weights()  # it starts without

    def _summed_on_gpu(self) -> set[str]:
        """Learners whose offloaded gradients are summed on the GPUs: where the smallest of these has room, all do it. Collective.

        Each process would else take its own decision, and those that reduce would wait for those that do not.
        """
        if self.device.type == "cpu":
            return set()
        size = torch.tensor(device_memory(self.device)[1])
        distributed.all_reduce(size, distributed.ReduceOp.MIN)
        return MemoryModel.of(self.config, True, int(size)).sums_on_gpu()

    @explain_out_of_memory
    def logprobs(self, bins: Bins, of: Literal["policy", "reference"], awake: bool = False) -> list[list[np.ndarray]]:
        """Log-probabilities [L] of each trajectory of each bin. Collective: every process has as many bins.

        `awake` leaves the engine as it is: more is sampled with these weights.
        """
        if not awake:
            self.rest()
        if of == "policy":
            return self.policy.logprobs(bins)
        if self.reference is not None:
            return self.reference.logprobs(bins)
        with adapters_off(self.policy.language_model):
            return self.policy.logprobs(bins)

    @explain_out_of_memory
    def values(self, bins: Bins) -> list[list[np.ndarray]]:
        """The critic's values [L] of each trajectory of each bin. Collective."""
        self.rest()
        assert self.critic is not None
        return self.critic.values(bins)

    @explain_out_of_memory
    def update_policy(self, bins: Bins) -> dict[str, float]:
        """One optimizer step of the policy. Collective."""
        self.rest()
        return self.policy.update(bins, self.policy_loss, self.policy_optimisation) | self._waited()

    @explain_out_of_memory
    def update_critic(self, bins: Bins) -> dict[str, float]:
        """One optimizer step of the critic. Collective."""
        self.rest()
        assert self.critic is not None
        return self.critic.update(bins, self.critic_optimisation) | self._waited()

    def _waited(self) -> dict[str, float]:
        """How long this training step has been held up so far by a state that was being written."""
        return {"perf/wait_for_state_s": sum(one.waited for _, one in self._learners().values())}

    @explain_out_of_memory
    def losses(self, bins: Bins, of: Literal["policy", "critic"]) -> list[list[float]]:
        """Each trajectory's own part of the loss, of each bin. Collective."""
        self.rest()
        if of == "policy":
            return self.policy.losses(bins, self.policy_loss)
        assert self.critic is not None
        return self.critic.losses(bins)

    def start_profile(self) -> None:
        """Have torch's profiler note down what this process does."""
        self.profiler.start()

    def stop_profile(self, directory: str, step: int) -> str:
        """Write the trace of `step`; returns a summary."""
        return self.profiler.stop(directory, step, self.rank)

    def end_step(self, actor_updated: bool = True) -> dict[str, float]:
        """Move the schedules on by one training step; returns the learning rates that were in force.

        While only the critic learns, the actor's schedule waits.
        """
        rates = {"actor/lr": self.policy_optimisation.lr}
        if actor_updated:
            self.policy_optimisation.schedule.step()
        if self.critic is not None:
            rates["critic/lr"] = self.critic_optimisation.lr
            self.critic_optimisation.schedule.step()
        for _, optimisation in self._learners().values():
            optimisation.waited = 0.0
        return rates | {"perf/max_memory_allocated_gb": peak_memory_gib(self.device)}

    def sync_weights(self) -> None:
        """Bring the policy's weights into this process's engine, gathered one parameter at a time. Collective."""
        self.wake().load_weights(gather_weights(self.policy.language_model, self.device, self.dtype))

    def export_weights(self, queues: Sequence[Any]) -> None:
        """Put the policy's weights into Ray's object store, bucket by bucket, and the references into every queue; None ends them.

        A full queue holds the gathering up, so that few buckets are there at once. Collective.
        """
        weights = gather_weights(self.policy.language_model, self.device, self.dtype)
        if self.rank:
            for _ in weights:  # gathered together, sent by the first alone
                pass
            return
        for bucket in fill_buckets(weights):
            self._send(bucket, queues)
            bucket.clear()
        self._send(None, queues)

    def _send(self, bucket: dict[str, np.ndarray] | None, queues: Sequence[Any]) -> None:
        import ray

        reference = None if bucket is None else ray.put(bucket)
        for queue in queues:
            queue.put([reference], timeout=self.config.trainer.timeout)

    def save_policy(self, directory: str, about: dict[str, Any]) -> None:
        """Write the policy as a Hugging Face directory, whole or not at all, in the type it is computed in. Collective.

        Adapters are merged into it, and stand beside it by themselves.
        """
        weights = gather_weights(self.policy.language_model, self.device, self.dtype)
        adapters = gather_adapters(self.policy.language_model, self.device)
        model = self.config.actor_rollout_ref.model
        lora = lora_options(model, self.config.trainer.seed)
        try:
            if self.rank == 0:
                with atomic_path(Path(directory)) as temporary:
                    write_model(temporary, self.policy.language_model, weights, self.dtype)
                    if lora is not None:
                        write_adapters(temporary / ADAPTER_DIRECTORY, adapters, lora, str(model.path))
                    self.tokenizer.save_pretrained(temporary)
                    write_ranker_settings(Path(temporary), about)
        finally:
            for _ in chain(weights, adapters):  # whatever became of the writing, the others gather with us
                pass

    def save_state(self, directory: str) -> None:
        """Begin to write this process's part of a training state, which is as it is now; updates wait for it by themselves."""
        self._part = PartWriter(directory, self.rank, self._learners())

    def state_result(self, wait: bool) -> dict[str, Any] | str | None:
        """What became of the part begun last, as PartWriter.result has it."""
        return self._part.result(wait)

    def load_state(self, directory: str) -> None:
        """Go on from a training state that any number of processes wrote."""
        read_part(directory, self.rank, self._learners())

    def restore_random(self, directory: str) -> None:
        """Put this process's random generators where they stood in a training state."""
        restore_random_state(directory, self.rank)

    def _learners(self) -> dict[str, Learner]:
        """In the order in which a step updates them."""
        learners: dict[str, Learner] = {}
        if self.critic is not None:
            learners["critic"] = self.critic.module, self.critic_optimisation
        return learners | {"actor": (self.policy.language_model, self.policy_optimisation)}

    def gradients(self, bins: Bins) -> dict[str, np.ndarray]:
        """Gradient of the policy's loss by parameter name, gathered, without a step. Collective; for checks."""
        self.rest()
        self.policy.accumulate_gradients(bins, self.policy_loss)
        gathered = {
            name: full_tensor(parameter.grad, self.device)
            for name, parameter in self.policy.language_model.named_parameters()
            if parameter.grad is not None
        }
        self.policy_optimisation.zero_grad()
        return {name: gradient.cpu().numpy() for name, gradient in gathered.items()}

    def weights(self) -> dict[str, np.ndarray]:
        """The policy's whole parameters by name. Collective; for checks."""
        return {
            name: weight.cpu().numpy() for name, weight in gather_parameters(self.policy.language_model, self.device)
        }
