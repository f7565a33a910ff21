"""The process that serves: listens, says where, and ends when it is told to or when the engine fails."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from r1ranker.errors import RunError, UserError
from r1ranker.serving.app import create_app
from r1ranker.serving.service import Service

KEEP_ALIVE_S = 75
"""how long an idle connection stays open: longer than proxies and clients keep theirs, so that none is closed as it is used again"""
LOGS = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "r1ranker.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}


def read_keys(path: str | None) -> frozenset[str]:
    """The keys of a file, one a line; none where there is no file. Raises UserError for one that holds none."""
    if path is None:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--api_key_file: {path} cannot be read ({type(error).__name__})") from error
    keys = frozenset(line.strip() for line in lines if line.strip())
    if not keys:
        raise UserError(f"--api_key_file: found no key in {path}; one a line is wanted")
    return keys


def run_service(service: Service, host: str, port: int, origins: Sequence[str] = ()) -> None:
    """Serve until SIGTERM or Ctrl-C; what is in flight is finished first.

    Raises UserError where nothing can listen at `host` and `port`, RunError where the engine fails.
    """
    app = create_app(service, origins)
    listening = listen_at(host, port)
    address = url_of(host, listening.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=LOGS,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, int(service.limits.timeout_s)),
        )
    )

    def end() -> None:
        server.should_exit = True

    service.scheduler.on_death = end
    print(f"{service.name} is served at {address}  (API: {address}/docs)", file=sys.stderr)
    print(example_curl(address, bool(service.keys)), file=sys.stderr, flush=True)
    with listening:
        server.run(sockets=[listening])
    if service.scheduler.death is not None:
        raise RunError(f"the engine failed: {service.scheduler.death}")


def listen_at(host: str, port: int) -> socket.socket:
    """A socket that listens there; at any free port for 0. Raises UserError where it cannot."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be listened at ({error.strerror})") from error
    return listening


def url_of(host: str, port: int) -> str:
    """The address that clients take as their base."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def example_curl(address: str, has_key: bool) -> str:
    """A command that asks the service at `address`, to be copied."""
    key = " -H 'Authorization: Bearer KEY'" if has_key else ""
    body = '{"query": "how does bread rise?", "documents": ["Cats hunt at night.", "Yeast makes bread rise."]}'
    return f"curl {address}/rerank{key} -H 'Content-Type: application/json' -d '{body}'"
