"""The workers, in this process or as Ray actors: the same methods called on all of them."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch.distributed as dist

from r1ranker.errors import RunError, UserError, WorkerLostError, first_line
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.workers.hosts import HostSet, plan_rollout_hosts, plan_trainer_hosts, take_hosts
from r1ranker.trainer.workers.ray_session import start_ray
from r1ranker.trainer.workers.worker import Worker

AFTER_FAILURE = 5.0
"""seconds that the processes have for an answer once a call has failed in one of them"""


class Workers(Protocol):
    """`size` processes of a kind; calls return one result a process, in the order of their ranks."""

    size: int

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Call `method` on every process at once, each with its own arguments."""
        ...

    def stream(self, method: str, arguments: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """Call the generator `method` on every process at once; (rank, what it yields) in the order in which it comes.

        Ray's processes begin with the call, the one in this process as it is asked for.
        """
        ...


class Cluster(Workers, Protocol):
    """The trainer's processes, and those that generate: the same ones, or others."""

    rollout: Workers
    on_gpu: bool

    def sync_weights(self) -> None:
        """Bring the policy's weights into every rollout engine."""
        ...


def call_all(workers: Workers, method: str, *arguments: Any) -> list[Any]:
    """Call `method` on every process with the same arguments."""
    return workers.each(method, [arguments] * workers.size)


class LocalCluster:
    """One worker in this process."""

    size = 1

    def __init__(self, config: Config, total_steps: int) -> None:
        self.rollout: Workers = self
        self._worker = Worker(config, rank=0)
        self._worker.setup(None, total_steps)
        self.on_gpu = self._worker.device.type != "cpu"

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        return [getattr(self._worker, method)(*arguments[0])]

    def stream(self, method: str, arguments: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        return ((0, item) for item in getattr(self._worker, method)(*arguments[0]))

    def sync_weights(self) -> None:
        self._worker.sync_weights()


class RayWorkers:
    """Processes as Ray actors."""

    def __init__(self, config: Config, wanted: HostSet) -> None:
        import ray

        self._ray = ray
        self._timeout = self._patience = config.trainer.timeout
        self._hosts = take_hosts(wanted)
        self._actors, self.on_gpu = self._hosts.actors, self._hosts.on_gpu
        self.size = len(self._actors)
        self._created = [actor.create.remote(config, rank) for rank, actor in enumerate(self._actors)]

    def wait_until_created(self) -> None:
        """Return once every process holds what it is for; raises what kept it from that."""
        self._get(self._created, "create")

    def find_address(self) -> str | None:
        """An address where the processes can meet; None for one alone."""
        return self._get([self._actors[0].call.remote("find_address")], "find_address")[0] if self.size > 1 else None

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        return self._get(self.begin(method, arguments), method)

    def begin(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Call `method` on every process without waiting for it."""
        return [actor.call.remote(method, *own) for actor, own in zip(self._actors, arguments, strict=True)]

    def stream(self, method: str, arguments: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        generators = [
            actor.stream.options(num_returns="streaming").remote(method, *own)
            for actor, own in zip(self._actors, arguments, strict=True)
        ]
        return self._items({generator: rank for rank, generator in enumerate(generators)}, method)

    def _items(self, ranks: dict[Any, int], method: str) -> Iterator[tuple[int, Any]]:
        """What the generators yield, each item as soon as it is there."""
        while ranks:
            found, _ = self._ray.wait(list(ranks), num_returns=1, timeout=self._timeout)
            if not found:
                raise self._unanswered(method, list(ranks.values()))
            ready: Any = found[0]
            try:
                reference = next(ready)
            except StopIteration:
                del ranks[ready]
                continue
            with self._said(method):
                item = self._ray.get(reference)
            yield ranks[ready], item

    def _get(self, references: list[Any], method: str) -> list[Any]:
        until = time.monotonic() + self._patience
        with self._said(method):
            waiting = list(references)
            while waiting:  # whoever fails first says why; the others may wait for it
                done, waiting = self._ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
                if not done:
                    raise self._unanswered(method, [references.index(one) for one in waiting])
                try:
                    self._ray.get(done)
                except self._ray.exceptions.RayTaskError as error:
                    if is_lost(error.cause):  # because of one that was ended, which Ray may say a little later
                        self._raise_shortage(waiting)
                    raise
            return list(self._ray.get(references))

    def _raise_shortage(self, references: list[Any]) -> None:
        """Raise Ray's OutOfMemoryError where a process was ended for the sake of its machine's memory."""
        ended, _ = self._ray.wait(references, num_returns=len(references), timeout=2) if references else ([], [])
        for reference in ended:
            try:
                self._ray.get(reference)
            except self._ray.exceptions.OutOfMemoryError:
                raise
            except self._ray.exceptions.RayError:
                continue

    def _unanswered(self, method: str, ranks: Sequence[int]) -> WorkerLostError:
        numbers = ", ".join(map(str, sorted(ranks)))
        limit = "" if self._patience < self._timeout else "trainer.timeout = "
        return WorkerLostError(f"{method}: no answer from process {numbers} within {limit}{self._patience:g} seconds")

    @contextmanager
    def _said(self, method: str) -> Iterator[None]:
        """A process's own UserError or RunError is raised as such; its death, or a collective that broke off, as WorkerLostError."""
        try:
            yield
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError | RunError):
                self._patience = min(self._timeout, AFTER_FAILURE)  # others may wait for it in a collective
                raise type(error.cause)(str(error.cause)) from None
            if isinstance(error.cause, self._ray.exceptions.RayError) or is_lost(error.cause):
                raise WorkerLostError(
                    f"{method}: a collective of the processes broke off ({first_line(error.cause)})"
                ) from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise WorkerLostError(f"a process of the run died in {method} ({first_line(error)})") from None
        except self._ray.exceptions.OutOfMemoryError as error:
            raise RunError(f"{method}: {_out_of_memory(error)}") from None  # begun again, it would need as much
        except self._ray.exceptions.RayError as error:  # its node, or what it owned
            raise WorkerLostError(f"{method}: {first_line(error)}") from None

    def close(self) -> None:
        """End the processes and give their places back."""
        closing = [actor.call.remote("close") for actor in self._actors]
        self._ray.wait(closing, num_returns=len(closing), timeout=10)  # one that has died says nothing any more
        self._hosts.end()


_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "Application timeout caused",
)  # fmt: skip
"""in gloo's words"""


def is_lost(error: BaseException) -> bool:
    """Whether a process says that it lost the others in a collective, or waited too long for them or their weights."""
    text = str(error)
    lost = any(words in text for words in _LOST)
    return isinstance(error, dist.DistError | queue.Empty | queue.Full) or (isinstance(error, RuntimeError) and lost)


def _out_of_memory(error: BaseException) -> str:
    """What Ray's memory monitor says, in short, and what to do."""
    said = re.search(r"([\d.]+GB used / [\d.]+GB)", str(error))
    had = f" ({said[1]})" if said else ""
    return (
        f"host memory ran out{had}, and Ray ended a process; r1ranker train --dry-run says what the run needs by part: more memory, "
        "more machines (trainer.nnodes), or less offload is wanted"
    )


class RayCluster(RayWorkers):
    """The trainer's processes, and those of the rollout where they are placed apart."""

    def __init__(self, config: Config, total_steps: int) -> None:
        super().__init__(config, plan_trainer_hosts(config))
        self.rollout: Workers = self
        self._apart: RayWorkers | None = None
        try:
            apart = plan_rollout_hosts(config)
            if apart is not None:
                self.rollout = self._apart = RayWorkers(config, apart)
            self.wait_until_created()
            self.each("setup", [(self.find_address(), total_steps)] * self.size)
            if self._apart is not None:
                self._apart.wait_until_created()
                self._apart.each("setup", [(self._apart.find_address(), self._apart.size)] * self._apart.size)
                self._queues = self._make_queues(self._apart.size)
                self.sync_weights()  # engines start without weights
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _make_queues(count: int) -> list[Any]:
        """For the weights' buckets: one waits while another is loaded."""
        from ray.util.queue import Queue

        return [Queue(maxsize=1, actor_options={"num_cpus": 0}) for _ in range(count)]

    def sync_weights(self) -> None:
        if self._apart is None:
            call_all(self, "sync_weights")
        else:
            loading = self._apart.begin("load_weights", [(queue,) for queue in self._queues])
            self._get(loading + self.begin("export_weights", [(self._queues,)] * self.size), "sync_weights")

    def close(self) -> None:
        super().close()
        apart = getattr(self, "_apart", None)
        if apart is not None:
            apart.close()
        for channel in getattr(self, "_queues", []):
            channel.shutdown(force=True)


@contextmanager
def start_cluster(config: Config, total_steps: int) -> Iterator[Cluster]:
    """The cluster that `config` asks for, closed at the end. A Ray that was not running is started and stopped."""
    if config.trainer.executor == "local":
        yield LocalCluster(config, total_steps)
        return
    with start_ray(config):
        cluster = RayCluster(config, total_steps)
        try:
            yield cluster
        finally:
            cluster.close()
