"""Fixtures made once: the built-in data in both modes, and a tiny model whose tokenizer was trained on it."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from r1ranker.tasks.catalog import TASKS

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would starve its processes beside another file's tests
os.environ["R1RANKER_CACHE"] = tempfile.mkdtemp(prefix="r1ranker-test-cache-")
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


RAY_FIXTURES = re.compile(r"\b(one_ray|shared_ray|forking)\b")


@cache
def needs_ray(file: Path) -> bool:
    """Whether tests of a file take the Ray that tests share."""
    return file.parent.name == "e2e" and bool(RAY_FIXTURES.search(file.read_text(encoding="utf-8")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that need Ray, for they take longest; the unit tests' small files come last."""
    items.sort(key=lambda item: (not needs_ray(item.path), item.path.parent.name))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand tests out to the workers by the file, and those that need Ray all to one, where it starts once."""
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if needs_ray(config.rootpath / file) else file

    return OneRay(config, log)


@pytest.fixture(autouse=True)
def only_the_nine_tasks() -> Iterator[None]:
    """Tasks that a test makes known are forgotten after it."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


@pytest.fixture(scope="session")
def mini() -> Path:
    """The real data in Ranking-bench's layout."""
    directory = SHARED / "ranking_bench_mini"
    if not directory.is_dir():
        pytest.skip(f"no real data at {directory}")
    return directory


@pytest.fixture(scope="session")
def real_raw() -> Path:
    """The real raw sources of the nine tasks."""
    directory = SHARED / "raw"
    if not directory.is_dir():
        pytest.skip(f"no real data at {directory}")
    return directory


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in data: bench/, direct_ranking/ and iterative_ranking/, answered at once."""
    from r1ranker.data.prepare import PrepareOptions, prepare

    directory = tmp_path_factory.mktemp("toy")
    prepare(PrepareOptions("toy", str(directory), think=False, size=30, cold_start=True))
    return directory


@pytest.fixture(scope="session")
def toy_thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in data with thoughts before answers."""
    from r1ranker.data.prepare import PrepareOptions, prepare

    directory = tmp_path_factory.mktemp("toy_thinking")
    prepare(PrepareOptions("toy", str(directory), think=True, size=10, cold_start=True))
    return directory


def _model(toy: Path, directory: Path, tie: bool) -> str:
    from r1ranker.model.init import ModelSize, init_model

    files = [str(toy / f"{mode}_ranking" / "train.parquet") for mode in ("direct", "iterative")]
    size = ModelSize(hidden_size=64, layers=2, heads=2, kv_heads=1, tie_embeddings=tie)
    init_model(str(directory), files, size, vocab_size=500, title_tokens=True)
    return str(directory)


@pytest.fixture(scope="session")
def tiny_model(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Qwen2-shaped model of about 180,000 parameters, tied embeddings."""
    return _model(toy, tmp_path_factory.mktemp("models") / "tied", tie=True)


@pytest.fixture(scope="session")
def untied_model(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with an output embedding of its own."""
    return _model(toy, tmp_path_factory.mktemp("models") / "untied", tie=False)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct, fetched once into a cache that later runs find again."""
    from r1ranker.errors import UserError
    from r1ranker.model.fetch import fetch_model

    directory = Path("~/.cache/r1ranker-tests").expanduser() / "SmolLM2-135M-Instruct"
    if not directory.is_dir():
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            fetch_model(directory.name, directory)
        except (UserError, OSError) as error:
            if not directory.is_dir():  # nor has the other worker fetched it meanwhile
                pytest.skip(f"SmolLM2-135M-Instruct cannot be had here: {error}")
    return str(directory)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `r1ranker` in this process; returns its exit code and what it wrote to stdout and stderr."""
    from r1ranker.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["r1ranker", *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test runner's own stay
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run
