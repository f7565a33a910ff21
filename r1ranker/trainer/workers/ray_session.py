"""Ray for a run: one that is started and stopped with it, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event, Thread, current_thread

from r1ranker.errors import UserError, first_line, note
from r1ranker.trainer.config.overrides import is_name
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.workers.hosts import begin_hosts

LONGEST_SOCKET = 107
"""bytes of a Unix socket's path (sun_path of unix(7), less the NUL at its end)"""
SHORT_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")
ANSWERS_WITHIN = 10.0
"""seconds that a cluster's address has to take a connection"""


_starting: tuple[Thread, Future[None]] | None = None
"""the thread that starts Ray, and what waits for it"""


@contextmanager
def begin_ray(config: Config) -> Iterator[None]:
    """Ray and a run's processes, started beside what the block does first: importing torch, reading data. `start_ray` in it waits for them.

    What goes wrong is raised there. A cluster that RAY_ADDRESS names is left to it as well.
    """
    global _starting
    if config.trainer.executor == "local" or named_cluster() is not None:
        yield
        return
    ready: Future[None] = Future()
    done = Event()

    def hold() -> None:  # Ray's processes end with the thread that started them
        try:
            with start_ray(config), begin_hosts(config, done):
                ready.set_result(None)
                done.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = Thread(target=hold, name="ray")
    _starting = thread, ready
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _starting = None


@contextmanager
def start_ray(config: Config) -> Iterator[None]:
    """Ray, where `config` asks for it; one that was not running is started and stopped.

    Raises UserError where the temporary directory cannot be used, or no Ray answers at RAY_ADDRESS.
    """
    if config.trainer.executor == "local":
        yield
        return
    rollout = config.actor_rollout_ref.rollout
    apart = rollout.n_workers if rollout.placement == "separate" else 0
    with ray_for(config.world_size + apart):
        yield


@contextmanager
def ray_for(processes: int) -> Iterator[None]:
    """Ray with room for so many processes on the CPU; raises UserError as start_ray does."""
    if _starting is not None and current_thread() is not _starting[0]:
        _starting[1].result()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls that are given up: one cause is said
    import ray

    if ray.is_initialized():
        yield
        return
    address = named_cluster()
    with _started(processes) if address is None else _attached(address):
        yield


def named_cluster() -> str | None:
    """What RAY_ADDRESS says of a cluster; None where the run starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_ray(config: Config) -> None:
    """Raise UserError where no Ray answers at RAY_ADDRESS, or Ray cannot name this directory: now, and not when data are read."""
    address = named_cluster()
    if config.trainer.executor != "ray":
        return
    if not is_name(os.getcwd()):
        raise UserError(f"{os.getcwd()!a}: a working directory with a name in UTF-8 is wanted")
    if address is not None:
        check_address(address)


@contextmanager
def _started(processes: int) -> Iterator[None]:
    import ray

    with temporary_directory() as directory:
        try:
            # processes on the CPU share its cores: Ray is told of as many as there are processes
            ray.init(
                address="local",  # and not one that someone else has started here, which would refuse what follows
                num_cpus=max(processes, os.cpu_count() or 1),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=True,
                _temp_dir=directory,
            )
        except OSError as error:
            raise UserError(
                f"{error.filename or directory}: {error.strerror}; RAY_TMPDIR=DIR, a directory that Ray can write, is wanted"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def temporary_directory() -> Iterator[str | None]:
    """Where Ray can keep its sockets and logs: None, its own place, or for the time of the block a short directory.

    The short one is within another that is for this user alone; both are deleted at the end.
    """
    from ray._common.utils import get_default_ray_temp_dir

    place = get_default_ray_temp_dir()  # in $RAY_TMPDIR, $TMPDIR or /tmp
    reason = why_unusable(place)
    if reason is None:
        yield None
        return
    for root in SHORT_DIRECTORIES:
        try:
            holder = tempfile.mkdtemp(prefix="r1ranker-ray-", dir=root)
        except OSError:
            continue
        note(f"{place}: {reason}; Ray's temporary files go to {holder}, and are deleted at the end")
        try:
            yield f"{holder}/ray"  # Ray opens its directory to all users
        finally:
            shutil.rmtree(holder, ignore_errors=True)
        return
    raise UserError(f"{place}: {reason}; RAY_TMPDIR=DIR, a short path that can be written, is wanted")


def why_unusable(directory: str) -> str | None:
    """Why Ray cannot keep its sockets in `directory`; None where it can."""
    longest = f"{directory}/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if not os.path.isabs(directory):
        return "not an absolute path"
    if not directory.isascii():
        return "Ray takes ASCII letters only in the path of its temporary directory"
    if len(longest) > LONGEST_SOCKET:
        return f"Ray's sockets have paths of {len(longest)} bytes in it, and a system takes {LONGEST_SOCKET}"
    return None


@contextmanager
def _attached(address: str) -> Iterator[None]:
    import ray

    check_address(address)
    try:
        ray.init(logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"RAY_ADDRESS: found {address!r}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise UserError where no Ray answers at an address as RAY_ADDRESS has it; Ray itself would try for a quarter of an hour.

    A connection is refused at once, or times out; what takes it and is no cluster's head is known after 40 seconds.
    """
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RpcError

    wanted = "the host:port of a cluster's head is wanted, or RAY_ADDRESS unset: then the run starts a Ray of its own"
    if "://" in address:
        raise UserError(f"RAY_ADDRESS: found {address!r}; {wanted}")
    try:
        found = canonicalize_bootstrap_address(address) or ""
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN).close()
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"RAY_ADDRESS: found {address!r}, where no Ray answers ({why}); {wanted}") from error
    try:
        GcsClient(address=found)
    except AuthenticationError as error:
        if address != "auto":  # else Ray takes the token of this machine by itself
            raise UserError(
                f"RAY_ADDRESS: the cluster at {address} wants a token; RAY_AUTH_MODE=token is wanted, and the token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from error
    except RpcError as error:
        raise UserError(f"RAY_ADDRESS: what answers at {address} is no Ray ({first_line(error)}); {wanted}") from error
