"""Where metrics go: a progress bar and lines on the console, JSON lines beside the checkpoints, wandb, tensorboard."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from textwrap import indent
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from r1ranker.atomic import atomic_path
from r1ranker.errors import RunError, UserError
from r1ranker.tasks.text import one_line
from r1ranker.trainer.config.load import to_dict
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.monitoring.rollouts import VALIDATION


class Logger(Protocol):
    """Takes the metrics of a step."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TextLogger(Logger, Protocol):
    """Takes rollouts as well."""

    def log_texts(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None: ...


class JsonLines:
    """metrics.jsonl in the run's directory, a line a step; a run that goes on after `resumed` steps keeps the lines up to there."""

    def __init__(self, config: Config, resumed: int | None = None) -> None:
        directory = Path(config.output_dir)
        file = directory / "metrics.jsonl"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if resumed is not None and file.exists():
                with atomic_path(file) as temporary:
                    temporary.write_text("".join(_lines_up_to(resumed, file)), encoding="utf-8")
            self._file = file.open("w" if resumed is None else "a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"trainer.default_local_dir: {directory}: {error.strerror}; a writable directory is wanted"
            ) from error

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        try:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # a state may only be whole once its step's line is there
        except OSError as error:
            raise RunError(f"{self._file.name}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        with suppress(OSError):  # of a line that could not be written, and was told
            self._file.close()


def _lines_up_to(step: int, file: Path) -> Iterator[str]:
    """Whole lines of steps up to `step`: a kill can tear the last one."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    yield line
            except (ValueError, KeyError, TypeError):
                continue


class Wandb:
    """Weights & Biases; WANDB_MODE=offline needs no account. A run that goes on keeps its identifier."""

    def __init__(self, config: Config, resumed: int | None = None) -> None:
        import wandb

        file = Path(config.output_dir) / "wandb" / "run_id"
        known = file.read_text(encoding="utf-8").strip() if resumed is not None and file.is_file() else ""
        identifier = known or secrets.token_hex(4)
        with atomic_path(file) as temporary:
            temporary.write_text(identifier, encoding="utf-8")
        self._run = wandb.init(
            id=identifier,
            resume="allow",
            project=config.trainer.project_name,
            name=config.trainer.experiment_name,
            dir=config.output_dir,
            config=to_dict(config),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_texts(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        from wandb import Table

        self._run.log({name: Table(columns=list(SHOWN), data=[_cells(row) for row in rows])}, step=step)

    def close(self) -> None:
        self._run.finish()


class Tensorboard:
    """Event files under tensorboard/ in the run's directory; steps that are taken again replace those of before."""

    def __init__(self, config: Config, resumed: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = None if resumed is None else resumed + 1
        self._writer = SummaryWriter(str(Path(config.output_dir) / "tensorboard"), purge_step=purged)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_texts(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        # indented: a markdown block in which nothing is markup
        texts = [
            "\n\n".join(f"{head}\n\n{indent(str(cell), '    ')}" for head, cell in zip(SHOWN, _cells(row), strict=True))
            for row in rows
        ]
        self._writer.add_text(name, "\n\n---\n\n".join(texts), step)

    def close(self) -> None:
        self._writer.close()


SHOWN = ("step", "task", "row", "input", "output", "score", "advantage", "tokens", "best")
"""of a rollout, in tables"""


def _cells(row: Mapping[str, Any]) -> list[Any]:
    """One kind a column, as wandb wants it: an advantage of each token becomes their mean."""
    values = [row.get(name) for name in SHOWN]
    return [mean(value) if isinstance(value, list) and value else value for value in values]


class ConsoleLog:
    """A line every so many steps, with what one looks at first."""

    _SHOWN = (
        ("reward", "critic/score/mean"),
        ("kl", "actor/kl_loss"),
        ("entropy", "actor/entropy"),
        ("grad", "actor/grad_norm"),
        ("length", "response_length/mean"),
        ("s/step", "timing_s/step"),
    )

    def __init__(self, console: Console, every: int) -> None:
        self._console = console
        self._every = every

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        validation = {name: value for name, value in metrics.items() if name.startswith("val-core/")}
        if validation:
            shown = "  ".join(f"{name.split('/')[1]} {value:.3f}" for name, value in validation.items())
            self._console.print(f"step {step}: validation reward  {shown}", highlight=False)
        if step and step % self._every == 0:
            shown = "  ".join(f"{label} {metrics[name]:.3f}" for label, name in self._SHOWN if name in metrics)
            self._console.print(f"step {step}: {shown}", highlight=False)

    def close(self) -> None:
        pass


class Tracking:
    """All loggers of a run and its progress bar, as one context."""

    def __init__(self, config: Config, total_steps: int, resumed: int | None = None) -> None:
        """`resumed`: the steps after which the run goes on; None where it begins."""
        self._console = Console(markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("reward {task.fields[reward]:.3f}"),
            console=self._console,
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._every = max(1, total_steps // 10)
        self._loggers: list[Logger] = [JsonLines(config, resumed), ConsoleLog(self._console, self._every)]
        self._text_loggers: list[TextLogger] = []
        if "wandb" in config.trainer.logger:
            self._text_loggers.append(Wandb(config, resumed))
        if "tensorboard" in config.trainer.logger:
            self._text_loggers.append(Tensorboard(config, resumed))
        self._loggers += self._text_loggers
        self._bar = self._progress.add_task(
            config.trainer.experiment_name, total=total_steps, completed=resumed or 0, reward=0.0
        )
        self._running_reward: float | None = None

    def say(self, text: str) -> None:
        """A line of text for the reader, who may have written parts of it."""
        self._console.print(one_line(text), highlight=False, soft_wrap=True)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Hand a step's metrics to every logger and move the bar."""
        numbers = {name: float(value) for name, value in metrics.items()}
        for logger in self._loggers:
            logger.log(numbers, step)
        if "critic/score/mean" in numbers:
            last = self._running_reward
            score = numbers["critic/score/mean"]
            self._running_reward = score if last is None else 0.9 * last + 0.1 * score
        self._progress.update(self._bar, completed=step, reward=self._running_reward or 0.0)

    def log_rollouts(self, rollouts: Mapping[str, Sequence[Mapping[str, Any]]], step: int) -> None:
        """Hand what was written of `step` to the loggers that show texts: a validation's always, a batch's every tenth of the run."""
        for name, rows in rollouts.items():
            if rows and rows[0]["step"] == step and (name == VALIDATION or step % self._every == 0):
                for logger in self._text_loggers:
                    logger.log_texts(name, rows, step)

    def __enter__(self) -> Tracking:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        for logger in self._loggers:
            logger.close()
