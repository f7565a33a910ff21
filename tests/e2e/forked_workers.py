"""Ray's worker processes, forked from one process that has imported what they need: to import it takes each six seconds of a core.

A worker is still a process of its own, with the environment, the directory and the arguments that Ray gives it.
Tests of what an import does, or of what it reads from the environment, need a Ray of their own.

`python forked_workers.py serve SOCKET MODULE...` is the process that forks; without `serve`, the script stands in for Ray's
`setup_worker.py` and asks for a fork at the socket that $R1RANKER_TEST_FORKS names.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

SOCKET = "R1RANKER_TEST_FORKS"
PARTS = ("--serialized-runtime-env-context", "--language")
"""arguments of setup_worker.py itself; the others are the worker's"""


class ForkServer:
    """The process that forks, with `modules` imported."""

    def __init__(self, *modules: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="forks-")
        path = f"{self._directory.name}/socket"
        # one thread, as Ray's workers have: OpenMP reads the number when it is loaded
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", path, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        os.environ[SOCKET] = path

    @contextmanager
    def in_place_of_setup(self) -> Iterator[None]:
        """Have a Ray that is started meanwhile fork all its workers."""
        from ray._private.parameter import RayParams

        update = RayParams.update_if_absent

        def with_forks(self: RayParams, **given: object) -> None:
            update(self, **{name: __file__ if name == "setup_worker_path" else value for name, value in given.items()})

        with patch.object(RayParams, "update_if_absent", with_forks):
            yield

    def close(self) -> None:
        """End it; its forks go on."""
        del os.environ[SOCKET]
        self._process.communicate()
        self._directory.cleanup()


def serve(path: str, *modules: str) -> None:
    """Fork a worker for each request, until standard input ends."""
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(64)
    print("ready", flush=True)
    with selectors.DefaultSelector() as waiting:
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while all(key.fileobj is listening for key, _ in waiting.select()):
            fork_one(listening)
    os._exit(0)


def fork_one(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    message, files, _, _ = socket.recv_fds(connection, 2**20, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(2**20)
    if os.fork() == 0:
        listening.close()
        run_worker(files, **json.loads(message))
    connection.close()  # the worker's own end is left: who asked waits until it is gone
    for file in files:
        os.close(file)


def run_worker(files: list[int], arguments: list[str], environment: dict[str, str], directory: str) -> None:
    """Be the process that was asked for; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)  # Ray ends a worker with its group
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        sys.argv[:] = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ask(path: str, arguments: list[str]) -> None:
    """Have a worker forked, and wait until it has ended."""
    own = [one for one in arguments if not one.startswith(PARTS)]
    request = {"arguments": own, "environment": dict(os.environ), "directory": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        connection.recv(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        ask(os.environ[SOCKET], sys.argv[1:])
