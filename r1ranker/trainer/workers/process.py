"""What every process of a run has: a meeting place, a process group, and a rollout engine where it holds one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist

from r1ranker.device import (
    bound_pinned_memory,
    collective_backend,
    count_cores,
    has_gpu,
    keep_freed_memory,
    pick_device,
    why_no_gpu,
)
from r1ranker.errors import RunError, UserError, first_line
from r1ranker.model.buckets import as_tensor
from r1ranker.rollout.engine import Completion, Engine, EngineSettings, Request, SamplingParams
from r1ranker.rollout.episodes import EpisodeRequest, Turn, sample_episodes
from r1ranker.rollout.start import start_engine
from r1ranker.trainer.checkpoint.random_state import seed_everything
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.memory.out_of_memory import refuse_shortage

_WITHOUT_GPUS = "CUDA_VISIBLE_DEVICES= (to a Ray that runs already: ray start --num-gpus=0)"


def _explain_failure(
    method: Callable[[Any, Sequence[Any], SamplingParams], Iterator[Any]],
) -> Callable[[Any, Sequence[Any], SamplingParams], Iterator[Any]]:
    """A method that generates, and raises RunError naming the cause where the engine fails."""

    @wraps(method)
    def guarded(self: Any, requests: Sequence[Any], params: SamplingParams) -> Iterator[Any]:
        try:
            yield from method(self, requests, params)
        except (UserError, RunError):
            raise
        except Exception as error:
            refuse_shortage(error, self.config, self.device)
            raise RunError(
                f"the rollout failed in process {self.rank}: {type(error).__name__}: {first_line(error)}"
            ) from error

    return guarded


class Process:
    """A process of a run. Methods marked collective have to be called on all processes of its kind at once."""

    def __init__(self, config: Config, rank: int) -> None:
        self.config = config
        self.rank = rank
        self.engine: Engine | None = None
        self._awake = False

    def find_address(self) -> str:
        """An address on this process's machine where all can meet."""
        import ray

        host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://{host}:{port}"

    def node(self) -> str:
        """The Ray node that the process is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def join(self, address: str | None, size: int, beside: int = 1) -> None:
        """Join the `size` processes that meet at `address` (None: there are none); `beside` processes work on this machine at once."""
        bound_pinned_memory()
        self.device = self._pick_device()
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.config.trainer.executor == "ray":  # which allows one thread by itself
            torch.set_num_threads(max(1, count_cores() // beside))  # offloaded Adam runs on the CPU, too
        if self.device.type != "cpu":  # vLLM leaves one thread where nobody asked for a number
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        seed_everything(self.config.trainer.seed)
        join_process_group(address, self.rank, size, self.device, self.config.trainer.timeout)

    def _pick_device(self) -> torch.device:
        """The GPU that Ray gave this process, or the CPU where it gave none; raises UserError where torch does not agree."""
        if self.config.trainer.executor == "local":
            return pick_device()
        import ray

        given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        if given and not has_gpu():
            raise UserError(
                f"Ray gave process {self.rank} the GPU {given[0]}, which torch cannot use ({why_no_gpu()}); a torch built for its "
                f"driver is wanted, or {_WITHOUT_GPUS} to run on the CPU"
            )
        device = pick_device()
        if device.type != "cpu" and not given:
            raise UserError(
                f"Ray knows of no GPU, and process {self.rank} sees one: all would take the same; ray start --num-gpus is "
                f"wanted, or {_WITHOUT_GPUS} to run on the CPU"
            )
        return device

    def start_engine(self) -> None:
        """Start the rollout engine on the actor's model. Collective."""
        config = self.config
        rollout = config.actor_rollout_ref.rollout
        settings = EngineSettings(
            max_model_len=config.data.max_prompt_length + config.data.max_response_length,
            max_num_seqs=rollout.max_num_seqs,
            tensor_parallel_size=rollout.tensor_model_parallel_size,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            dtype=config.actor_rollout_ref.model.dtype,
            constrained=rollout.constrain != "none",
            synced_weights=True,
        )
        self.engine = start_engine(
            rollout.name,
            str(config.actor_rollout_ref.model.path),
            self.device,
            settings,
        )
        self._awake = True

    @_explain_failure
    def generate(
        self, requests: Sequence[Request], params: SamplingParams
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Sample `params.n` completions a request; yields (place of a request, its completions) as soon as they are complete.

        Of the processes that an engine spans all have to be called at once, and the first alone yields. Raises RunError
        naming the cause where the engine fails.
        """
        if not requests:
            return
        session = self.wake().session()
        for place, request in enumerate(requests):
            session.add(place, request, params)
        left = len(requests)
        while left:
            done = session.step()
            left -= len(done)
            if self._leads:
                yield done

    @_explain_failure
    def converse(
        self, requests: Sequence[EpisodeRequest], params: SamplingParams
    ) -> Iterator[list[tuple[int, list[Turn]]]]:
        """Sample an episode a request; yields (place of a request, its turns) as soon as it ends. For the rest as `generate`."""
        if not requests:
            return
        engine = self.wake()
        for done in sample_episodes(engine.session(), engine.tokenizer, requests, params):
            if self._leads:
                yield [done]

    @property
    def _leads(self) -> bool:
        """Whether this is the first of the processes that an engine spans."""
        return self.rank % self.config.actor_rollout_ref.rollout.tensor_model_parallel_size == 0

    def close(self) -> None:
        """Give back what outlives a process, such as shared memory."""
        if self.engine is not None:
            self.engine.close()

    def wake(self) -> Engine:
        """The engine, which wakes by itself where it is asleep."""
        assert self.engine is not None
        self._awake = True
        return self.engine

    def rest(self) -> None:
        """Have a colocated engine give its memory back before the trainer works; weights come anew with the next sync."""
        rollout = self.config.actor_rollout_ref.rollout
        if self._awake and rollout.placement == "colocated" and rollout.free_cache_engine:
            self.wake().sleep()
            self._awake = False


class RolloutProcess(Process):
    """A process that holds a rollout engine and nothing else."""

    def setup(self, address: str | None, size: int) -> None:
        """Join the others at `address` and start the engine. Collective."""
        trainer = self.config.trainer
        self.join(address, size, beside=size + (trainer.n_gpus_per_node if trainer.async_steps else 0))
        self.start_engine()

    def load_weights(self, queue: Any) -> None:
        """Take over weights from a queue of references to buckets, which None ends. Collective."""
        self.wake().load_weights(self._received(queue))

    def _received(self, queue: Any) -> Iterator[tuple[str, torch.Tensor]]:
        import ray

        while True:
            (reference,) = queue.get(timeout=self.config.trainer.timeout)
            if reference is None:
                return
            for name, weight in ray.get(reference).items():
                yield name, as_tensor(weight.copy())  # Ray's own memory is read-only


def join_process_group(address: str | None, rank: int, size: int, device: torch.device, timeout: float) -> None:
    """Initialise the process group of `size` processes, whose collectives take `timeout` seconds at most; alone, an earlier one of this process is used again."""
    # vLLM reads its place among the processes from here; each process sees its own GPU as the first
    port = (address or "tcp://alone:0").rpartition(":")[2]
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(size), MASTER_PORT=port)
    backend = collective_backend(device)
    if size > 1:
        limit = timedelta(seconds=timeout)
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=limit)
    elif not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
