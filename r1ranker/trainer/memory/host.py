"""Bytes of host memory that a run on GPUs needs on each of its machines, by moment and part: all its processes together.

On the CPU the host's memory is the device's, and r1ranker.trainer.memory.estimate counts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from r1ranker.model.buckets import BUCKET_BYTES
from r1ranker.model.export import FILE_BYTES
from r1ranker.model.weights import READ_BYTES
from r1ranker.trainer.checkpoint.shards import PIECE_BYTES
from r1ranker.trainer.memory.adapters import Adapters
from r1ranker.trainer.memory.estimate import CPU_BASE, MemoryModel, Parts
from r1ranker.trainer.memory.shape import value_parameters

PROCESS_BASE = CPU_BASE
"""of a process before any model, as on the CPU; what CUDA, its kernels and vLLM add was not measured, so that this is the least"""


@dataclass(frozen=True)
class HostMemory:
    """Host memory of a machine of the run; parts are those of all its processes together."""

    model: MemoryModel

    @property
    def processes(self) -> int:
        """Of the trainer and, where all is on one machine, of a separate rollout."""
        config = self.model.config
        apart = config.actor_rollout_ref.rollout.placement == "separate" and config.trainer.nnodes == 1
        return config.trainer.n_gpus_per_node + apart * config.actor_rollout_ref.rollout.n_workers

    def moments(self) -> dict[str, Parts]:
        """Everything that is there at each moment of a step."""
        config = self.model.config
        found = {"loading": self.loading(), "generation": self.resident()}
        if config.needs_critic:
            found["update of the critic"] = self.updating("critic")
        found["update of the actor"] = self.updating("actor")
        found["saving the actor"] = self.resident() | {"file being written": self._file()}
        return found

    def resident(self) -> Parts:
        """What stays between the moments of a step."""
        model, config = self.model, self.model.config
        parts = {"python and torch": self.processes * PROCESS_BASE, "driver": CPU_BASE}
        for name, (weights, learning) in self._learners().items():
            parts |= {f"{name}: weights": weights, f"{name}: Adam": 2 * learning}
        if model.has_reference and model.away(config.actor_rollout_ref.ref.fsdp_config):
            parts["reference: weights"] = config.trainer.n_gpus_per_node * model.frozen_shards(model.actor.parameters)
        if config.actor_rollout_ref.rollout.placement == "separate":
            parts["weights on their way"] = 4 * BUCKET_BYTES
        return parts

    def loading(self) -> Parts:
        """Each process reads its own rows, a piece of them at once, and pins one tensor's; no optimizer has begun."""
        parts = {name: size for name, size in self.resident().items() if "Adam" not in name}
        pinned = self._held(self.model.actor.largest_parameter) if self._learners() else 0
        return parts | {"rows being read": self.processes * READ_BYTES, "rows being pinned": pinned}

    def updating(self, name: str) -> Parts:
        """The update of a model, whose gradients are there only then, while a state may still be written.

        What rests in host memory is written from there; of what rests on a GPU a piece passes through.
        """
        gradients = {
            f"{name}: gradients": learner[1] for learner in [self._learners().get(name)] if learner is not None
        }
        all_here = len(self._learners()) == 1 + self.model.config.needs_critic
        writing = 0 if all_here else self.model.config.trainer.n_gpus_per_node * PIECE_BYTES
        return self.resident() | gradients | {"state being written": writing}

    def _file(self) -> int:
        """A file of the exported actor: a larger tensor has one of its own."""
        return max(FILE_BYTES, self.model.width * self.model.actor.largest_parameter)

    def _learners(self) -> dict[str, tuple[int, int]]:
        """Of each model that learns and rests in host memory: bytes of its weights, and of a float32 number for each that learns."""
        model, config = self.model, self.model.config
        found: dict[str, tuple[int, int]] = {}
        if model.away(config.actor_rollout_ref.actor.fsdp_config):
            found["actor"] = self._learner(model.actor.parameters, model.actor_adapters, model.learning_actor)
        if model.critic is not None and model.away(config.critic.model.fsdp_config):
            of_critic = value_parameters(model.critic), model.critic_adapters, model.learning_critic
            found["critic"] = self._learner(*of_critic)
        return found

    def _learner(self, parameters: int, adapters: Adapters | None, learning: int) -> tuple[int, int]:
        return self.model.config.trainer.n_gpus_per_node * self.model.weights(parameters, adapters), self._held(
            learning
        )

    def _held(self, parameters: int) -> int:
        """Bytes of the float32 shards of this machine."""
        return self.model.config.trainer.n_gpus_per_node * self.model.shards(parameters)
