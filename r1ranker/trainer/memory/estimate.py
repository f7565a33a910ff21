"""Bytes that a process of the trainer needs, by moment and part: arithmetic from the model's sizes and the config.

Gathering and reducing are FSDP2's, as r1ranker.model.fsdp shards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from r1ranker.model.weights import READ_BYTES
from r1ranker.trainer.config.models import FSDPConfig, OptimConfig, offloads
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.learners.eight_bit import eight_bit_numbers
from r1ranker.trainer.memory.adapters import Adapters, load_adapters
from r1ranker.trainer.memory.shape import MASTER, ModelShape, load_shape, saved_bytes, value_parameters

Parts = dict[str, int]
"""name -> bytes"""

CPU_BASE = 640 * 2**20
"""python, torch, transformers and their buffers in a process that has run once, before any model (measured)"""
GPU_BASE = 2**30
"""CUDA's context, kernels, communication buffers and vLLM's CUDA graphs; an assumption, not a measurement"""
BLOCK_COPIES = 4
"""float32 arrays at once of a block of logits: the scores, log-probabilities, probabilities, and what is made of them"""
LEARNING_ENTROPY_COPIES = 6
"""float32 arrays at once of all logits where the entropy carries a gradient"""
SAMPLING_BYTES = 16
"""a logit of one step of generation: the logit, its probability and what is computed on the way"""
GATHERED_COPIES = (2.5, 3.0)
"""arrays of what is outside the blocks, in float32 and in the type computed with, that gathering and reducing among processes
on the CPU hold beside FSDP2's own for each model that learns: gloo's, and freed ones that the next does not fit (measured)"""
SUMMING_SHARE = 0.8
"""of a GPU that an update may fill for its gradients to be summed there rather than in host memory"""
HEAP_HOLES = 0.35
"""of what comes and goes in a pass on the CPU, held beyond it by the C library's heap, whose free blocks do not fit (measured)"""


@dataclass(frozen=True)
class MemoryModel:
    """What one process of the trainer needs on its device: a GPU, or on the CPU the host's memory."""

    config: Config
    actor: ModelShape
    critic: ModelShape | None
    on_gpu: bool
    device_bytes: int
    """of the whole device"""
    validation_rows: int = 0
    """generated at once in validation"""
    actor_adapters: Adapters | None = None
    critic_adapters: Adapters | None = None
    """what learns of them; None: all of the model"""

    @classmethod
    def of(cls, config: Config, on_gpu: bool, device_bytes: int, validation_rows: int = 0) -> MemoryModel:
        """The model for the directories that `config` names; raises UserError where one has no usable config.json."""
        critic = load_shape(str(config.critic.model.path)) if config.needs_critic else None
        actor = load_shape(str(config.actor_rollout_ref.model.path))
        adapters = load_adapters("actor_rollout_ref.model", config.actor_rollout_ref.model)
        of_critic = load_adapters("critic.model", config.critic.model) if config.needs_critic else None
        return cls(config, actor, critic, on_gpu, device_bytes, validation_rows, adapters, of_critic)

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        dtype = self.config.actor_rollout_ref.model.dtype
        return 2 if dtype == "bfloat16" or (dtype == "auto" and self.on_gpu) else MASTER

    @property
    def _packs(self) -> bool:
        """Whether the transformers engine lays its weights out anew."""
        import torch

        from r1ranker.rollout.hf_packed import is_packed

        dtype = torch.bfloat16 if self.width < MASTER else torch.float32
        return not self.on_gpu and is_packed(dtype, self.actor.hidden)

    def moments(self) -> dict[str, Parts]:
        """Everything that is there at each moment of a step, with micro-batches at their token budgets."""
        config = self.config
        actor, ref = config.actor_rollout_ref.actor, config.actor_rollout_ref.ref
        found = {"loading": self.loading()}
        if config.actor_rollout_ref.rollout.placement == "colocated":
            found["generation"] = self.generation()
        if config.needs_reference:
            tokens = ref.log_prob_max_token_len_per_gpu or actor.ppo_max_token_len_per_gpu
            found["reference"] = self.passing(self.actor, tokens)
        if self.critic is not None:
            tokens = config.critic.ppo_max_token_len_per_gpu or actor.ppo_max_token_len_per_gpu
            found["update of the critic"] = self.updating_critic(tokens)
        found["update of the actor"] = self.updating_actor(actor.ppo_max_token_len_per_gpu)
        found["optimizer step"] = self.stepping()
        return found

    def resident(self) -> Parts:
        """What stays between the moments of a step."""
        config, role = self.config, self.config.actor_rollout_ref
        parts = {"python and torch": GPU_BASE if self.on_gpu else CPU_BASE}
        if not self.away(role.actor.fsdp_config):
            parts["actor: weights"] = self.weights(self.actor.parameters, self.actor_adapters)
            parts["actor: Adam"] = self.shards(self._moments(role.actor.optim, self.actor, self.learning_actor))
        if self.has_reference and not self.away(role.ref.fsdp_config):
            parts["reference: weights"] = self.frozen_shards(self.actor.parameters)
        if self.critic is not None and not self.away(config.critic.model.fsdp_config):
            parts["critic: weights"] = self.weights(value_parameters(self.critic), self.critic_adapters)
            parts["critic: Adam"] = self.shards(self._moments(config.critic.optim, self.critic, self.learning_critic))
        sleeps = role.rollout.free_cache_engine and (self.on_gpu or role.rollout.name == "hf")
        if role.rollout.placement == "colocated" and not sleeps:
            parts |= self.engine()
        return parts

    def engine(self) -> Parts:
        """What a rollout engine keeps from start to end; vLLM's cache is taken at the start."""
        rollout = self.config.actor_rollout_ref.rollout
        weights = self.width * self.actor.parameters
        if rollout.name == "hf":
            twice = self.actor.embedding if self._packs and self.actor.is_tied else 0
            return {"engine: weights": weights + self.width * twice}
        weights //= rollout.tensor_model_parallel_size
        if not self.on_gpu:
            return {"engine: weights": weights, "engine: cache": cpu_cache_bytes()}
        passing = self._engine_pass()
        taken = int(rollout.gpu_memory_utilization * self.device_bytes) - weights - passing
        return {"engine: weights": weights, "engine: a pass": passing, "engine: cache": max(0, taken)}

    def engine_needs(self) -> int:
        """Bytes of a GPU that vLLM cannot start without: weights, a pass, and the cache of one sequence."""
        data, rollout = self.config.data, self.config.actor_rollout_ref.rollout
        sequence = self.width * self.actor.key_values * (data.max_prompt_length + data.max_response_length)
        weights = self.width * self.actor.parameters
        return (weights + sequence) // rollout.tensor_model_parallel_size + self._engine_pass()

    def _engine_pass(self) -> int:
        """What vLLM keeps free for its largest batch of tokens, as its trial run at the start finds it; not measured on a GPU."""
        from r1ranker.rollout.vllm_start import BATCH_TOKENS

        data, rollout = self.config.data, self.config.actor_rollout_ref.rollout
        tokens = max(data.max_prompt_length + data.max_response_length, BATCH_TOKENS)
        return (
            self._forward(self.actor, tokens) // rollout.tensor_model_parallel_size
            + SAMPLING_BYTES * rollout.max_num_seqs * self.actor.vocabulary
        )

    def loading(self) -> Parts:
        """Each process reads its own rows, a piece of them at once; no optimizer and no engine has begun."""
        parts = {name: size for name, size in self.resident().items() if "Adam" not in name and "engine" not in name}
        return parts | {"rows being read": 0 if self.on_gpu else READ_BYTES}

    def generation(self) -> Parts:
        """The caches of the transformers engine for what is under way at once, and the choice of a token for each.

        Of a rollout process of its own where the placement is separate.
        """
        from r1ranker.rollout.hf_batch import PREFILL_TOKENS
        from r1ranker.rollout.hf_kept import KEPT_TOKENS

        config, rollout = self.config, self.config.actor_rollout_ref.rollout
        colocated = rollout.placement == "colocated"
        base = {"python and torch": GPU_BASE if self.on_gpu else CPU_BASE}
        parts = (self.resident() if colocated else base) | self.engine()
        if rollout.name != "hf":
            return parts
        engines = config.world_size if colocated else rollout.n_workers
        samples = -(-config.data.train_batch_size // engines) * rollout.n
        training = min(rollout.max_num_seqs, samples)
        validation = min(rollout.max_num_seqs, -(-self.validation_rows // engines))
        at_once = max(training, validation)
        token = self.width * self.actor.key_values
        prompts, kept = max(-(-training // rollout.n), validation), 0
        if config.data.rounds == "conversation":  # each has a beginning of its own, which is kept between its turns
            prompts, kept = at_once, min(KEPT_TOKENS, at_once * config.data.max_prompt_length)
        cache = token * (prompts * config.data.max_prompt_length + at_once * config.data.max_response_length)
        row = min(PREFILL_TOKENS, prompts * config.data.max_prompt_length)
        return parts | self._with_holes(
            {
                "engine: cache": cache + token * kept,
                "engine: sampling": SAMPLING_BYTES * at_once * self.actor.vocabulary,
                "activations": self._forward(self.actor, row, 4 if self._packs else 3),  # gate and up are one there
            }
        )

    def passing(self, shape: ModelShape, tokens: int, with_logits: bool = True) -> Parts:
        """A pass without gradients over `tokens` tokens, such as the reference's."""
        parts = {"activations": self._forward(shape, tokens), "gathered layers": self._gathered(shape)}
        if with_logits:
            parts["logits"] = self.logits(tokens, learning=False)
        return self.resident() | self._with_holes(parts)

    def updating_actor(self, tokens: int, checkpointing: bool | None = None) -> Parts:
        """The update of the actor with micro-batches of `tokens` tokens, from its second micro-batch on."""
        role = self.config.actor_rollout_ref
        if checkpointing is None:
            checkpointing = role.model.enable_gradient_checkpointing
        parts = {"logits": self.logits(tokens)}
        if self.actor_adapters is None:  # it waits whole until all of the root's are there
            parts["gradient of the output embedding"] = self.width * self.actor.embedding
        parts |= self._updating(
            "actor",
            self.actor,
            self.learning_actor,
            tokens,
            checkpointing,
            role.actor.fsdp_config,
            self.actor_adapters,
        )
        return self._with_sums("actor", self.learning_actor, role.actor.fsdp_config, parts)

    def updating_critic(self, tokens: int, checkpointing: bool | None = None) -> Parts:
        """The same of the critic, which has no logits."""
        assert self.critic is not None
        model = self.config.critic.model
        if checkpointing is None:
            checkpointing = model.enable_gradient_checkpointing
        learning, adapters = self.learning_critic, self.critic_adapters
        parts = self._updating("critic", self.critic, learning, tokens, checkpointing, model.fsdp_config, adapters)
        return self._with_sums("critic", learning, model.fsdp_config, parts)

    def _with_sums(self, name: str, parameters: int, fsdp: FSDPConfig, passing: Parts) -> Parts:
        """All of an update: where a GPU has room beside it, with whole gradients of a model that rests in host memory."""
        update, whole = self.resident() | self._with_holes(passing), MASTER * parameters
        fits = total_bytes(update) + whole <= SUMMING_SHARE * self.device_bytes
        return update | {f"{name}: gradients": whole} if self.away(fsdp) and fits else update

    def sums_on_gpu(self) -> set[str]:
        """Those of `actor` and `critic` whose offloaded gradients are summed on the GPU."""
        role, critic = self.config.actor_rollout_ref.actor, self.config.critic.model
        away = [name for name, fsdp in (("actor", role.fsdp_config), ("critic", critic.fsdp_config)) if self.away(fsdp)]
        moments = self.moments()
        return {name for name in away if f"{name}: gradients" in moments.get(f"update of the {name}", {})}

    def stepping(self) -> Parts:
        """AdamW's step: the gradients; the fused step has no intermediate results, and their norm is taken in small chunks."""
        role = self.config.actor_rollout_ref.actor
        if self.away(role.fsdp_config):
            return self.resident()
        return self.resident() | {"actor: gradients": self.shards(self.learning_actor)}

    def logits(self, tokens: int, learning: bool = True) -> int:
        """Bytes of the logits that are there at once, with what is computed from them: a smaller micro-batch may have them whole."""
        from r1ranker.model.logprobs import BLOCK_NUMBERS, CPU_BLOCK_NUMBERS
        from r1ranker.model.policy_model import LOGITS_BYTES

        data, role = self.config.data, self.config.actor_rollout_ref
        responses = (role.rollout.n if role.model.share_prompts else 1) * data.max_response_length
        sampled = tokens * responses // (responses + data.max_prompt_length)
        numbers = self.actor.vocabulary * sampled
        if learning and role.actor.entropy_coeff:
            scaled = self.on_gpu or role.rollout.temperature != 1
            in_float32 = min(LOGITS_BYTES, MASTER * numbers)
            converted = in_float32 * self.width // MASTER if self.width < MASTER else 0
            return (LEARNING_ENTROPY_COPIES + scaled) * in_float32 + converted
        whole = min(LOGITS_BYTES, self.width * numbers)
        of_block = MASTER * min(BLOCK_NUMBERS if self.on_gpu else CPU_BLOCK_NUMBERS, whole // self.width)
        gradients = 0
        if learning:  # two parts of it where some of the tokens are constrained
            gradients = 1 if role.rollout.constrain == "none" else 2
        return (1 + gradients) * whole + BLOCK_COPIES * of_block

    def _with_holes(self, parts: Parts) -> Parts:
        return parts if self.on_gpu else parts | {"holes in the heap": int(HEAP_HOLES * total_bytes(parts))}

    def _forward(self, shape: ModelShape, tokens: int, results: int = 3) -> int:
        """At most there at once without gradients: a feed-forward layer's `results`, the residual stream and two norms."""
        return self.width * (3 * shape.hidden + results * shape.intermediate) * tokens

    def _updating(
        self,
        name: str,
        shape: ModelShape,
        parameters: int,
        tokens: int,
        checkpointing: bool,
        fsdp: FSDPConfig,
        adapters: Adapters | None,
    ) -> Parts:
        gradients = {} if self.away(fsdp) else {f"{name}: gradients": self.shards(parameters)}
        saved = saved_bytes(shape, self.width, checkpointing, self._copies_output)
        if adapters is not None:
            saved += self.width * adapters.kept * (1 if checkpointing else shape.layers)
        reduced = shape.layer_parameters if adapters is None else adapters.layer_parameters
        return gradients | {
            "activations": tokens * saved,
            "backward pass": tokens * self.width * (2 * shape.intermediate + shape.hidden),
            "gathered layers": self._gathered(shape, reduced),
            "copies in collectives": self._copied(shape),
        }

    def _gathered(self, shape: ModelShape, reduced: int = 0) -> int:
        """Whole parameters in the type computed with: those outside the blocks, one block, and with several processes the next.

        In the backward pass the gradients of a block, of `reduced` numbers, wait whole until they are reduced, in float32.
        """
        together = 2 if self.config.world_size > 1 or reduced else 1
        waiting = MASTER * reduced if self.on_gpu or self.config.world_size > 1 else 0
        if self.on_gpu:  # and what they are reduced to
            waiting += waiting // self.config.world_size
        return self.width * (shape.outer_parameters + together * shape.layer_parameters) + waiting

    def _copied(self, shape: ModelShape) -> int:
        if self.on_gpu or self.config.world_size == 1:
            return 0
        (exact, computed), learners = GATHERED_COPIES, 1 + self.config.needs_critic
        return int(learners * shape.outer_parameters * (exact * MASTER + computed * self.width))

    @property
    def _copies_output(self) -> bool:
        role = self.config.actor_rollout_ref
        return not self.on_gpu and (role.rollout.n == 1 or not role.model.share_prompts)

    def shards(self, parameters: int) -> int:
        """Bytes of a process's float32 shards of so many parameters."""
        return -(-MASTER * parameters // self.config.world_size)

    def weights(self, parameters: int, adapters: Adapters | None) -> int:
        """Bytes of a process's shards of a model that learns, by adapters where it has them."""
        if adapters is None:
            return self.shards(parameters)
        return self.frozen_shards(parameters) + self.shards(adapters.parameters)

    def _moments(self, optim: OptimConfig, shape: ModelShape, learning: int) -> int:
        """What the optimizer keeps, in numbers of float32: two for each that learns, of Muon's matrices one."""
        if optim.name == "adamw_8bit":
            return eight_bit_numbers(shape.hidden, 2 * learning)
        return 2 * learning - (shape.layers * shape.layer_parameters if optim.name == "muon" else 0)

    @property
    def learning_actor(self) -> int:
        """Parameters of the actor that have gradients and moments."""
        return self.actor.parameters if self.actor_adapters is None else self.actor_adapters.parameters

    @property
    def learning_critic(self) -> int:
        """The same of the critic; beside adapters its head learns."""
        assert self.critic is not None
        if self.critic_adapters is None:
            return value_parameters(self.critic)
        return self.critic_adapters.parameters + self.critic.hidden + 1

    @property
    def has_reference(self) -> bool:
        """Whether there is a model for it: with adapters it is the actor without them."""
        return self.config.needs_reference and self.actor_adapters is None

    def frozen_shards(self, parameters: int) -> int:
        """The same of a model that never learns, and rests in the type it is computed with."""
        return -(-self.width * parameters // self.config.world_size)

    def away(self, fsdp: FSDPConfig) -> bool:
        """Whether the shards are in host memory between uses, not on the device."""
        return self.on_gpu and offloads(fsdp)


def total_bytes(parts: Parts) -> int:
    """Bytes of all parts together."""
    return sum(parts.values())


def cpu_cache_bytes() -> int:
    """What vLLM takes for its cache on the CPU, from its own variable; GiB there."""
    return int(float(os.environ.get("VLLM_CPU_KVCACHE_SPACE") or 1) * 2**30)
