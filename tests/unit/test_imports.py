"""What a command does not need is not imported: modules are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, sys
sys.argv = ["r1ranker", *json.loads(sys.argv[1])]
from r1ranker.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
found = {name.split(".")[0] for name in sys.modules}
print("MODULES", json.dumps([len(sys.modules), sorted(found)]))
"""
LARGE = {
    "torch",
    "transformers",
    "ray",
    "vllm",
    "datasets",
    "pandas",
    "sklearn",
    "scipy",
    "plotly",
    "wandb",
    "peft",
    "fastapi",
}


@pytest.mark.parametrize(
    ("given", "needed", "most"),
    [
        (["--help"], set(), 450),
        (["train", "--help"], set(), 600),
        (["prepare", "--source", "toy", "--size", "20", "--output", "OUT"], {"pandas", "scipy"}, 1900),
    ],
    ids=["help", "train help", "prepare"],
)
def test_a_command_imports_what_it_needs(given: list[str], needed: set[str], most: int, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "out") if one == "OUT" else one for one in given]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(arguments)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    count, found = json.loads(done.stdout.rpartition("MODULES ")[2])
    assert LARGE & set(found) == needed
    assert count < most


def test_transformers_comes_without_what_it_does_not_need_here() -> None:
    code = (
        "import sys\nfrom r1ranker.lean_imports import import_transformers\nimport_transformers()\n"
        "import r1ranker.trainer.fit, r1ranker.trainer.workers.worker, r1ranker.ranking.ranker\n"
        "print(len(sys.modules), *(name for name in sys.modules if '.' not in name))\nimport scipy, sklearn"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *found = done.stdout.split()
    assert {"torch", "transformers"} == LARGE & set(found)
    assert int(count) < 3600


def test_ray_can_be_started_before_anything_large_is_there() -> None:
    """A run's config is read, and Ray begun, while torch is still to be imported."""
    code = (
        "import sys\nimport r1ranker.trainer.config.load\nimport r1ranker.trainer.workers.ray_session\n"
        "print(len(sys.modules), *(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *found = done.stdout.split()
    assert not LARGE & set(found)
    assert int(count) < 400
