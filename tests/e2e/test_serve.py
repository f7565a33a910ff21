"""`r1ranker serve` as a process: it says where it listens, answers, and ends when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def served(tiny_model: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it told."""
    (tmp_path / "keys").write_text("secret\n")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "r1ranker.cli", "serve", tiny_model, "--port", "0", "--engine", "hf", "--strategy", "iterative",
            "--no-think", "--constrain", "candidates", "--max-tokens", "8", "--api-key-file", str(tmp_path / "keys"),
        ],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    found = next(match for match in (re.search(r"is served at (\S+)", line) for line in lines) if match)
    assert next(lines).startswith(f"curl {found[1]}/rerank -H 'Authorization: Bearer KEY'")
    yield process, found[1]
    process.kill()
    process.wait()


def test_it_answers_and_finishes_what_is_in_flight(served: tuple[subprocess.Popen[str], str]) -> None:
    process, address = served
    key = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=address, timeout=60) as client:
        for _ in range(600):
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx.TransportError:
                threading.Event().wait(0.1)
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
