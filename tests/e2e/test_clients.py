"""Real clients of rerankers, installed beside the project, against the served ranker (tests/clients)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[1] / "clients" / "run.sh"


@pytest.mark.long
def test_real_clients_rank_unchanged(tiny_model: str) -> None:
    done = subprocess.run(["bash", str(CLIENTS), tiny_model], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = [line.partition(": ") for line in done.stdout.splitlines()]
    assert {said for _, _, said in found} == {"ok"}, done.stdout
    assert {"cohere_v1", "cohere_v2", "litellm_cohere", "litellm_tei", "llama_index_tei"} <= {
        name for name, _, _ in found
    }
