"""`r1ranker serve` as a process: it says where it listens, answers, and ends when it is told to."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import start_served

httpx = pytest.importorskip("httpx")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def served(tiny_model: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it told."""
    (tmp_path / "keys").write_text("secret\n")
    with start_served(tiny_model, "--api-key-file", str(tmp_path / "keys")) as running:
        curl = f"curl {running.address}/rerank -H 'Authorization: Bearer KEY'"
        while not any(line.startswith(curl) for line in running.lines):
            assert running.reading.is_alive()
        yield running.process, running.address


def test_it_answers_and_finishes_what_is_in_flight(served: tuple[subprocess.Popen[str], str]) -> None:
    process, address = served
    key = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=address, timeout=60) as client:
        wait_for(client)
        body = {"query": "how does bread rise", "documents": [f"text {n}" for n in range(12)]}
        assert client.post("/v1/rerank", json=body).status_code == 401
        found = client.post("/v1/rerank", json=body, headers=key)
        assert sorted(item["index"] for item in found.json()["results"]) == list(range(12))
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                client.post("/rerank", json=body | {"documents": body["documents"] * 4}, headers=key).status_code
            )
        )
        asking.start()
        while "r1ranker_open_requests 1.0" not in client.get("/metrics").text and asking.is_alive():
            pass
        process.send_signal(signal.SIGTERM)
        asking.join(60)
    assert answers == [200]
    assert process.wait(60) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_broken_bodies_are_refused_and_the_process_lives(served: tuple[subprocess.Popen[str], str], count: int) -> None:
    process, address = served
    rng = random.Random(count)
    whole = [
        json.dumps({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}).encode(),
        json.dumps({"query": "q", "texts": ["a", "b"], "truncate": None}).encode(),
        json.dumps({"task": "Rec-Movie", "history": ["a"], "candidates": ["b", {"name": "c", "text": "d"}]}).encode(),
    ]
    found: Counter[int] = Counter()
    with httpx.Client(base_url=address, timeout=60, headers={"Authorization": "Bearer secret"}) as client:
        wait_for(client)
        for _ in range(count):
            body = bytearray(rng.choice(whole))
            for _ in range(rng.randint(1, 6)):
                place, piece = (
                    rng.randrange(len(body) + 1),
                    rng.choice((b"[", b"{", b'"', b"null", b"\\ud800", b"9e999", b"\xff", b"-", b",")),
                )
                body[place : place + rng.randint(0, 4)] = piece
            status = client.post(rng.choice(("/rerank", "/tei/rerank", "/v1/rank")), content=bytes(body)).status_code
            assert status < 500, bytes(body)
            found[status] += 1
        assert client.get("/health").status_code == 200
    assert process.poll() is None
    assert found[400] > count / 2


def test_bodies_that_break_off_or_do_not_come_hinder_nobody(served: tuple[subprocess.Popen[str], str]) -> None:
    process, address = served
    head = b"POST /rerank HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 500\r\n\r\n"
    host, port = address.removeprefix("http://").split(":")
    with httpx.Client(base_url=address, timeout=60, headers={"Authorization": "Bearer secret"}) as client:
        wait_for(client)
        waiting = [socket.create_connection((host, int(port))) for _ in range(50)]
        for one in waiting:
            one.sendall(head + b'{"query": ')
        for one in waiting[:25]:
            one.close()
        body = {"query": "q", "documents": ["a", "b"]}
        assert [client.post("/rerank", json=body).status_code for _ in range(5)] == [200] * 5
        found = client.get("/metrics").text
        while 'status="499"' not in found:
            found = client.get("/metrics").text
        assert 'status="500"' not in found
        for one in waiting[25:]:
            one.close()
    assert process.poll() is None


DYING = """
import sys
from r1ranker.rollout.hf import HFEngine
from r1ranker.cli import main

session = HFEngine.session

def dying(self, fair=False):
    found = session(self, fair)
    step, steps = found.step, []

    def fail(once=False):
        done = step(once)
        steps.extend(done)
        if len(steps) > 3:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return done

    found.step = fail
    return found

HFEngine.session = dying
sys.argv = ["r1ranker", *sys.argv[1:]]
main()
"""


def test_a_process_whose_engine_dies_says_so_and_ends(tiny_model: str) -> None:
    with start_served(tiny_model, command=(sys.executable, "-c", DYING)) as running:
        with httpx.Client(base_url=running.address, timeout=60) as client:
            wait_for(client)
            found = client.post("/rerank", json={"query": "q", "documents": [f"text {n}" for n in range(12)]})
        assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert found.json()["message"] == "the engine has failed; the service is ending"
        assert running.process.wait(60) == 1
        running.reading.join(60)
        assert running.lines[-1] == "error: the engine failed: RuntimeError: CUDA error: device-side assert triggered\n"
        assert not any("Traceback" in line for line in running.lines)


def wait_for(client: Any) -> None:
    """Until the service answers."""
    for _ in range(600):
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            threading.Event().wait(0.1)
    raise AssertionError("it does not answer")


def test_what_cannot_be_served_is_said_before_anything_loads(call: Call, tiny_model: str, tmp_path: Path) -> None:
    for arguments, said in (
        (["--api-key-file", str(tmp_path / "gone")], "--api_key_file: "),
        (["--task", "Rec-Movies"], "Rec-Movie"),
        (["--strategy", "logits", "--think"], "--no-think"),
        (["--host", "203.0.113.1", "--engine", "hf"], "cannot be listened at"),
    ):
        extra = [] if "--think" in arguments else ["--no-think"]
        code, out, error = call("serve", tiny_model, *arguments, *extra)
        assert (code, out) == (2, ""), error
        assert said in error
        assert "Traceback" not in error
