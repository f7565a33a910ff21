"""`r1ranker serve --replicas 2`: Ray Serve on one machine, a replica that is killed, and the end."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import Served, start_served

httpx = pytest.importorskip("httpx")
pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed; '.[replicas]' brings it")
BODY = {"query": "how does bread rise", "documents": [f"text {n}" for n in range(8)]}


@pytest.fixture
def replicas(tiny_model: str) -> Iterator[Served]:
    with start_served(tiny_model, "--replicas", "2", environment={"RAY_ADDRESS": ""}) as running:
        assert any(f"is served at {running.address} by 2 replicas" in line for line in running.lines)
        yield running


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it did not come about")


def test_two_replicas_answer_and_one_that_is_killed_is_replaced(
    replicas: Served,
) -> None:
    process, address, seen = replicas.process, replicas.address, replicas.lines

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
