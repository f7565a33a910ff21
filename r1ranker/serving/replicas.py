"""Several replicas of a served ranker, on one machine or on a Ray cluster, behind one address: Ray Serve."""

from __future__ import annotations

import logging.config
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve

from r1ranker.device import count_cores
from r1ranker.errors import RunError, UserError, first_line
from r1ranker.serving.app import create_app
from r1ranker.serving.server import LOGS, example_curl, listen_at, url_of
from r1ranker.serving.service import Service
from r1ranker.trainer.workers.ray_session import ray_for

APPLICATION = "r1ranker"
QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""of Ray Serve's own logs; the access log is ours"""
HEALTH_CHECK_S = 5
"""how long a replica whose engine has failed is asked at most, before another takes its place"""


def deploy_replicas(
    load: Callable[[], Service], replicas: int, on_gpu: bool, origins: Sequence[str] = ()
) -> serve.Application:
    """An application of `replicas` processes, each with the service that `load` makes, and a GPU of its own if wanted."""
    share = max(1, count_cores() // replicas)

    def build() -> FastAPI:
        logging.config.dictConfig(LOGS)
        if not on_gpu:
            torch.set_num_threads(share)  # Ray allows one by itself
        service = load()
        app = create_app(service, origins)
        app.state.service = service
        return app

    @serve.deployment(
        name="replica",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(on_gpu)},
        max_ongoing_requests=10_000,  # the service has a limit of its own, and says so with 429
        health_check_period_s=HEALTH_CHECK_S,
        logging_config=QUIET,
    )
    @serve.ingress(build)
    class Replica:
        def check_health(self) -> None:
            """Raise where the engine has failed: Ray Serve ends this process, and begins another."""
            app: Any = self.app  # type: ignore[attr-defined]
            death = app.state.service.scheduler.death
            if death is not None:
                raise RuntimeError(f"the engine failed: {death}")

    return Replica.bind()  # type: ignore[attr-defined]


def run_replicas(
    load: Callable[[], Service],
    name: str,
    host: str,
    port: int,
    replicas: int,
    has_key: bool,
    origins: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM or Ctrl-C, in the cluster that RAY_ADDRESS names or in one of this machine's.

    Raises UserError where no Ray answers or nothing can listen at `port`, RunError where no replica starts.
    """
    with listen_at(host, port) as listening:  # Ray Serve would say nothing of a port that is taken
        port = listening.getsockname()[1]
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # each request has its line
    with ray_for(replicas + 1):
        gpus = ray.cluster_resources().get("GPU", 0)
        if 0 < gpus < replicas:
            raise UserError(f"--replicas: found {replicas}, and there are {gpus:g} GPUs; one a replica is wanted")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.start("HeadOnly", {"host": host, "port": port}, logging_config=QUIET)
            try:
                serve.run(deploy_replicas(load, replicas, gpus > 0, origins), name=APPLICATION, route_prefix="/")
            except RuntimeError as error:
                raise RunError(f"no replica started: {first_line(error, 300)}") from error
            url = url_of(host, port)
            print(f"{name} is served at {url} by {replicas} replicas  (API: {url}/docs)", file=sys.stderr)
            print(example_curl(url, has_key), file=sys.stderr, flush=True)
            _wait_for_a_signal()
        finally:
            serve.shutdown()


def _wait_for_a_signal() -> None:
    """Until SIGTERM or Ctrl-C; Ray has handlers of its own by now, which would end the process at once."""
    ended = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: ended.set())
    ended.wait()
