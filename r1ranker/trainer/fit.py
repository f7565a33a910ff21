"""fit(): a run from its beginning or its last state to its end, with its processes started, watched and started again."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

from r1ranker.atomic import clear_leftovers, lock_directory
from r1ranker.errors import RunError, UserError, WorkerLostError, note
from r1ranker.trainer.checkpoint.random_state import seed_everything
from r1ranker.trainer.checkpoint.record import ABOUT, CONFIG, write_record
from r1ranker.trainer.checkpoint.resume import choose_state
from r1ranker.trainer.checkpoint.state import STATES, State, clear_unfinished, set_aside
from r1ranker.trainer.checkpoint.stopping import Stopping
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.loop import Run
from r1ranker.trainer.monitoring.tracking import Tracking
from r1ranker.trainer.workers.cluster import Cluster, start_cluster
from r1ranker.trainer.workers.ray_session import check_ray, start_ray
from r1ranker.trainer.workers.saving import StateSaver

WRITTEN = ("actor", "best", "metrics.jsonl", CONFIG, ABOUT)
"""into the run's directory, beside its states"""


def fit(config: Config) -> str:
    """Train as `config` says, from the beginning or from a state (trainer.resume_mode); returns the trained actor's directory.

    Raises UserError for input that cannot be used, before any worker is started where that can be known, and RunError
    for a run that broke down, naming the step and the last actor saved. Where processes were lost, they are started
    again from the last state, at most trainer.max_restarts times.
    """
    check_ray(config)
    if config.trainer.executor == "ray":
        _make_paths_absolute(config)
    with lock_directory(Path(config.output_dir)), ExitStack() as ray:
        for restarts in count():
            try:
                return _attempt(config, restarts > 0, ray)
            except WorkerLostError as error:
                if restarts == config.trainer.max_restarts:
                    raise
                note(f"{error}; starting the processes again ({restarts + 1} of {config.trainer.max_restarts})")
    raise AssertionError


def _attempt(config: Config, again: bool, ray: ExitStack) -> str:
    """The run from its beginning or last state to its end; `again`: after its processes were lost. `ray` outlives it."""
    run = Run(config)
    states = Path(config.output_dir) / STATES
    with closing(run):
        resumed = choose_state(config, run.data_checksums, again, run.notes.append)
        if resumed is not None:
            run.restore(resumed.driver)
            if resumed.step >= run.total_steps and run.saved == resumed.step:
                return run.actor_dir
        clear_unfinished(states)
        clear_leftovers(Path(config.output_dir), WRITTEN)
        set_aside(states, resumed)
        if not again:
            ray.enter_context(start_ray(config))
        seed_everything(config.trainer.seed)  # for rewards, which are computed here
        done = resumed.step if resumed is not None and resumed.is_among(states) else None  # of this run, not another's
        with (
            start_cluster(config, run.total_steps) as cluster,
            Tracking(config, run.total_steps, done) as tracking,
            Stopping() as stopping,
        ):
            run.rollouts.begin(done)
            write_record(config, None if resumed is None else str(resumed.directory))  # models could be loaded
            run.say = tracking.say
            for text in run.notes:
                tracking.say(text)
            keep = config.trainer.max_actor_ckpt_to_keep
            saver = StateSaver(states, keep, tracking.say, done or 0)
            try:
                _train(run, cluster, tracking, saver, stopping, resumed)
            except WorkerLostError as error:
                if stopping.is_asked:  # whoever ended the run may have ended its processes as well
                    note(str(error))
                    stopping.end_process()
                raise
            stopping.end_process()
    return run.actor_dir


def _train(
    run: Run, cluster: Cluster, tracking: Tracking, saver: StateSaver, stopping: Stopping, resumed: State | None
) -> None:
    trainer, last = run.config.trainer, run.total_steps
    step = done = 0 if resumed is None else resumed.step
    try:
        if resumed is not None:
            tracking.say(f"going on after step {step}, from {resumed.directory}")
            run.load(cluster, resumed)
            if step >= last:  # all is done but for the actor, which someone has taken away
                run.save(cluster, step)
        elif trainer.val_before_train:
            tracking.log(run.validate(cluster, 0), 0)
            tracking.log_rollouts(run.rollouts.written, 0)
        for step in range(done + 1, last + 1):
            metrics = run.step(cluster, step)
            if _due(step, trainer.test_freq, last):
                metrics |= run.validate(cluster, step)
            asked = stopping.is_asked  # a signal from here on ends the next step
            due = _due(step, trainer.save_freq, last) or step == last or asked
            if due:
                metrics |= run.save(cluster, step)
            tracking.log(metrics, step)
            tracking.log_rollouts(run.rollouts.written, step)
            saver.poll(cluster)
            if due:
                saver.begin(cluster, step, run.state(step))
            if asked:
                break
        saver.require_saved(cluster)
    except (RunError, UserError) as error:
        if not isinstance(error, WorkerLostError):
            saver.finish_after_failure(cluster, trainer.timeout)
        if isinstance(error, UserError):
            raise
        kept = f"{run.actor_dir} holds the actor of step {run.saved}" if run.saved else "no actor was saved yet"
        raise type(error)(f"step {step}: {error}; {kept}") from error


def _make_paths_absolute(config: Config) -> None:
    """Processes of an attached Ray cluster have another working directory."""
    config.trainer.default_local_dir = os.path.abspath(config.output_dir)
    if config.trainer.resume_mode not in ("auto", "disable"):
        config.trainer.resume_mode = os.path.abspath(config.trainer.resume_mode)
    for model in (config.actor_rollout_ref.model, config.critic.model):
        if model.path and os.path.isdir(model.path):
            model.path = os.path.abspath(model.path)


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)
