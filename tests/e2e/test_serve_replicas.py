"""`r1ranker serve --replicas 2`: Ray Serve on one machine, a replica that is killed, and the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed; '.[replicas]' brings it")
BODY = {"query": "how does bread rise", "documents": [f"text {n}" for n in range(8)]}


@pytest.fixture
def replicas(tiny_model: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and what it writes."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "r1ranker.cli", "serve", tiny_model, "--port", "0", "--replicas", "2", "--engine", "hf",
            "--strategy", "iterative", "--no-think", "--constrain", "candidates", "--max-tokens", "8",
        ],
        stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, env=os.environ | {"RAY_ADDRESS": ""},
    )  # fmt: skip
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    seen: list[str] = []
    for line in lines:
        seen.append(line)
        if found := re.search(r"is served at (\S+) by 2 replicas", line):
            break
    else:
        raise AssertionError("".join(seen))
    threading.Thread(target=lambda: seen.extend(lines), daemon=True).start()
    yield process, found[1], seen
    process.kill()
    process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it did not come about")


def test_two_replicas_answer_and_one_that_is_killed_is_replaced(
    replicas: tuple[subprocess.Popen[str], str, list[str]],
) -> None:
    process, address, seen = replicas

    def ask(_: int = 0) -> int:
        return int(httpx.post(f"{address}/rerank", json=BODY, timeout=60).status_code)

    def workers() -> set[int]:
        return {int(found[1]) for line in seen if (found := re.search(r"pid=(\d+)\).*path=/rerank", line))}

    def ask_many() -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, range(16)))

    def both_have_answered() -> bool:
        return set(ask_many()) == {200} and len(workers()) == 2

    wait_until(both_have_answered)
    gone = min(workers())
    os.kill(gone, signal.SIGKILL)

    def another_has_taken_its_place() -> bool:
        ask_many()  # one that was on its way to the killed replica may fail
        return len(workers() - {gone}) == 2

    wait_until(another_has_taken_its_place)
    assert set(ask_many()) == {200}
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    with pytest.raises(httpx.TransportError):
        ask()


def test_a_port_that_is_taken_is_refused(call: Callable[..., tuple[int, str, str]], tiny_model: str) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, error = call("serve", tiny_model, "--port", port, "--replicas", "2", "--no-think")
    assert (code, out) == (2, "")
    assert f"--port {port}: cannot be listened at" in error
