"""Ray's temporary directory and a cluster's address: what cannot be used is found before Ray is asked."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest

from r1ranker import errors
from r1ranker.errors import UserError, exit_on_user_error
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.workers import ray_session
from r1ranker.trainer.workers.ray_session import check_address, temporary_directory, why_unusable


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody listens at: it is bound, and so taken by no other."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_NOTED", set())


def test_a_directory_is_used_as_long_as_the_system_takes_its_sockets(tmp_path: Path) -> None:
    inner = f"session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    for length in (106, 107, 108, 130):
        directory = "/" + "x" * (length - len(inner) - 2)
        path = f"{directory}/{inner}"
        assert len(path) == length
        with (
            socket.socket(socket.AF_UNIX) as probe,
            pytest.raises(OSError, match=r"AF_UNIX path too long|No such file") as raised,
        ):
            probe.bind(path)
        # that there is no such place is said of those alone that are short enough
        assert (why_unusable(directory) is None) == isinstance(raised.value, FileNotFoundError), length


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("name", ["x" * 90, "home/Jürgen", "数据"])
def test_what_cannot_hold_sockets_is_replaced_by_a_short_directory_of_our_own(
    name: str,
    variable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_notes: None,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / name))
    for _ in range(2):
        with temporary_directory() as directory:
            assert directory is not None
            assert why_unusable(directory) is None
            holder = Path(directory).parent
            assert stat.S_IMODE(holder.stat().st_mode) == 0o700
            Path(directory, "session").mkdir(parents=True)
        assert not holder.exists()
        assert f"Ray's temporary files go to {holder}," in capsys.readouterr().err


def test_a_directory_that_can_be_used_stays_rays_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/a b (v=1) [c]")
    with temporary_directory() as directory:
        assert directory is None
    assert capsys.readouterr().err == ""


def test_a_relative_directory_is_replaced_and_where_none_is_left_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "tmp")
    monkeypatch.setattr(ray_session, "SHORT_DIRECTORIES", (str(tmp_path / "gone"),))
    with pytest.raises(UserError, match=r"^tmp/ray: not an absolute path; RAY_TMPDIR=DIR"), temporary_directory():
        pass


def refused(address: str) -> str:
    """The one line that an address ends in."""
    with pytest.raises(UserError) as caught:
        check_address(address)
    message = str(caught.value)
    assert message.startswith("RAY_ADDRESS: ")
    assert message.endswith(
        "the host:port of a cluster's head is wanted, or RAY_ADDRESS unset: then the run starts a Ray of its own"
    )
    assert "\n" not in message
    return message


def test_an_address_where_nobody_listens_is_refused(closed_port: int) -> None:
    assert "where no Ray answers (Connection refused)" in refused(f"127.0.0.1:{closed_port}")
    assert "where no Ray answers (Connection refused)" in refused(f"localhost:{closed_port}")


@pytest.mark.parametrize("address", ["head", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:", "127.0.0.1:99999", ":6379:"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    assert f"found {address!r}" in refused(address)


def test_a_ray_client_is_not_what_a_run_can_use() -> None:
    assert "found 'ray://head:10001'" in refused("ray://head:10001")


def test_a_cluster_that_is_gone_is_not_waited_for(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)  # others' on this machine
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "found 'auto', where no Ray answers (Could not find any running Ray" in refused("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port}")
    assert "found 'auto', where no Ray answers (Connection refused)" in refused("auto")


@pytest.mark.parametrize("address", ["named", "auto"])
def test_what_listens_and_is_no_cluster_or_wants_a_token_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._raylet
    from ray.exceptions import AuthenticationError, RpcError

    def failing(error: Exception) -> Any:
        def client(address: str) -> None:
            raise error

        return client

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        here = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", lambda _: here)
        given = here if address == "named" else address
        monkeypatch.setattr(ray._raylet, "GcsClient", failing(RpcError("Method not found!", 12)))
        assert f"what answers at {given} is no Ray" in refused(given)
        monkeypatch.setattr(ray._raylet, "GcsClient", failing(AuthenticationError("no token")))
        if address == "auto":  # Ray takes this machine's token
            check_address(given)
        else:
            with pytest.raises(UserError, match="RAY_AUTH_MODE=token is wanted"):
                check_address(given)


@pytest.mark.parametrize("command", ["fit", "dry_run"])
def test_a_run_ends_in_a_line_before_it_reads_anything(
    command: str,
    closed_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from r1ranker.trainer.config.load import load_config
    from r1ranker.trainer.dry_run import dry_run
    from r1ranker.trainer.fit import fit

    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    values = {"data.train_files": "gone", "data.val_files": "gone", "actor_rollout_ref.model.path": "./gone"}
    values |= {"trainer.executor": "ray", "trainer.default_local_dir": str(tmp_path / "run")}
    config = load_config("quickstart", values=values)
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(lambda: {"fit": fit, "dry_run": dry_run}[command](config) and None)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"error: RAY_ADDRESS: found '127.0.0.1:{closed_port}', where no Ray answers")
    assert not list(tmp_path.iterdir())
    config.trainer.executor = "local"  # to which the variable means nothing
    with pytest.raises(UserError, match="gone"):
        dry_run(config)


@pytest.mark.parametrize("path", ["x" * 260, f"{'ü' * 200}/model"])
def test_a_name_that_no_file_can_have_is_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(lambda: Path(path).is_file() and None)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path[:80]}")
    assert "the name is too long; a shorter path is wanted" in line


class SlowRay:
    """In place of a Ray that takes its time to start."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None

    @contextmanager
    def start(self, config: Config) -> Iterator[None]:
        self.threads.add(current_thread().name)
        time.sleep(0.2)
        self.events.append("started")
        if self.error is not None:
            raise self.error
        yield
        self.threads.add(current_thread().name)
        self.events.append("stopped")


@pytest.fixture
def slow_ray(monkeypatch: pytest.MonkeyPatch) -> SlowRay:
    made = SlowRay()
    monkeypatch.setattr(ray_session, "start_ray", made.start)
    monkeypatch.setattr(ray_session, "begin_hosts", lambda config, ended: nullcontext(made.events.append("begun")))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


ON_RAY = ("data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=x", "trainer.executor=ray")


def test_ray_starts_beside_what_is_done_first(slow_ray: SlowRay) -> None:
    with ray_session.begin_ray(load_config("quickstart", ON_RAY)):
        slow_ray.events.append("read")
        with ray_session.ray_for(1):
            slow_ray.events.append("used")
    assert slow_ray.events == ["read", "started", "begun", "used", "stopped"]
    assert slow_ray.threads == {"ray"}  # Ray's processes end with the thread that started them


def test_ray_is_stopped_where_what_is_done_first_fails(slow_ray: SlowRay) -> None:
    with pytest.raises(UserError, match="no such file"), ray_session.begin_ray(load_config("quickstart", ON_RAY)):
        raise UserError("no such file")
    assert slow_ray.events == ["started", "begun", "stopped"]
    with ray_session.ray_for(1):  # and nobody waits for it any more
        pass


def test_why_ray_does_not_start_is_said_where_it_is_wanted(slow_ray: SlowRay) -> None:
    slow_ray.error = UserError("RAY_TMPDIR=DIR is wanted")
    with ray_session.begin_ray(load_config("quickstart", ON_RAY)):
        slow_ray.events.append("read")
        with pytest.raises(UserError, match="RAY_TMPDIR=DIR is wanted"), ray_session.ray_for(1):
            pass
    assert slow_ray.events == ["read", "started"]


@pytest.mark.parametrize(("executor", "address"), [("local", None), ("ray", "10.0.0.1:6379")])
def test_nothing_is_begun_where_no_ray_is_to_be_started(
    slow_ray: SlowRay, monkeypatch: pytest.MonkeyPatch, executor: str, address: str | None
) -> None:
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    config = load_config("quickstart", [*ON_RAY, f"trainer.executor={executor}"])
    with ray_session.begin_ray(config):
        pass
    assert slow_ray.events == []
