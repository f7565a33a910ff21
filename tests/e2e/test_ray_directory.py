"""Ray where the temporary directory cannot hold its sockets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import ray
from runs import config_of

from r1ranker.trainer.workers.ray_session import start_ray


@pytest.mark.usefixtures("forking")
def test_ray_runs_where_the_temporary_directory_has_a_long_path_and_no_ascii_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "Jürgen" / ("x" * 90)))
    with start_ray(config_of("x", "trainer.executor=ray")):
        found = Path(ray.get_runtime_context().get_temp_dir())
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
        assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    assert not ray.is_initialized()
    assert not found.parent.exists()
    assert not list(tmp_path.iterdir())
