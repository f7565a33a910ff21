"""Steps whose numbers are not finite: what is found is told, written down whole, and the step skipped or the run ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.atomic import atomic_path
from r1ranker.errors import RunError
from r1ranker.trainer.batch.trajectory import COLUMNS, Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.learners.policy import PolicyLoss

MAX_IN_A_ROW = 10
"""bad steps after which the run ends: it learns nothing any more"""
DIRECTORY = "bad_steps"
_KEYS = {"sample_weight": "stands_for"}
"""attributes that have another name in the file"""


class NonFiniteError(Exception):
    """Numbers of a step are not finite; nothing of them has reached the weights."""

    def __init__(self, what: str, trajectories: Sequence[Trajectory], offending: Sequence[Trajectory]) -> None:
        """`what` of `trajectories`, of which those `offending` have it by themselves (none: it cannot be told)."""
        super().__init__(what)
        self.what, self.trajectories, self.offending = what, list(trajectories), list(offending)


def refuse_non_finite(trajectories: Sequence[Trajectory], columns: Sequence[str]) -> None:
    """Raise NonFiniteError where a token that is trained on has something in `columns` that is no finite number."""
    for column in columns:
        offending = [one for one in trajectories if count_non_finite(one, column)]
        if offending:
            raise NonFiniteError(f"{column} are not finite", trajectories, offending)


def count_non_finite(trajectory: Trajectory, column: str) -> int:
    """Tokens trained on for which `column` holds no finite number."""
    array = getattr(trajectory, column)
    return 0 if array is None else int((~np.isfinite(array) & trajectory.valid).sum())


class NonFiniteSteps:
    """What is done about bad steps, as `trainer.on_bad_step` says."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config, self._tokenizer = config, tokenizer
        self.in_a_row = 0
        """bad steps up to now"""

    @contextmanager
    def guard(self, step: int, say: Callable[[str], None]) -> Iterator[None]:
        """What is inside ends where a number of `step` is not finite; `say` takes the line. Raises RunError where the run is to end."""
        try:
            yield
        except NonFiniteError as found:
            say(f"step {step}: {self.record(found, step)}")
        else:
            self.reset()

    def reset(self) -> None:
        """A step was as it should be."""
        self.in_a_row = 0

    def record(self, found: NonFiniteError, step: int) -> str:
        """Write the samples down; returns what is to be said. Raises RunError where the run is to end."""
        self.in_a_row += 1
        samples = found.offending or found.trajectories
        file = Path(self._config.output_dir) / DIRECTORY / f"step_{step}.jsonl"
        self._write(file, found, samples, step)
        groups = sorted({one.group_id for one in samples})
        named = ", ".join(map(str, groups[:8])) + (", ..." if len(groups) > 8 else "")
        whose = (
            f"{len(samples)} of {len(found.trajectories)} samples, of group {named}"
            if found.offending
            else f"none of {len(samples)} samples by itself"
        )
        line = f"{found.what} ({whose}); no update was made of it, the samples are in {file}"
        if self._config.trainer.on_bad_step == "stop":
            raise RunError(f"{line}; trainer.on_bad_step is stop")
        if self.in_a_row == MAX_IN_A_ROW:
            raise RunError(f"{line}; {MAX_IN_A_ROW} steps in a row were such")
        return line

    def _write(self, file: Path, found: NonFiniteError, samples: Sequence[Trajectory], step: int) -> None:
        config = self._config.actor_rollout_ref
        about = {
            "step": step,
            "what": found.what,
            "temperature": config.rollout.temperature,
            "policy_loss": asdict(PolicyLoss.from_config(config.actor)),
        }
        with atomic_path(file) as temporary:
            lines = (json.dumps(about | self._record(one)) + "\n" for one in samples)
            temporary.write_text("".join(lines), encoding="utf-8")

    def _record(self, trajectory: Trajectory) -> dict[str, Any]:
        texts = {
            name: self._tokenizer.decode(ids, skip_special_tokens=False)
            for name, ids in (("prompt", trajectory.prompt_ids), ("response", trajectory.response_ids))
        }
        fields = {_KEYS.get(name, name): _writable(value) for name, value in vars(trajectory).items()}
        return texts | fields


def _writable(value: Any) -> Any:
    """`value` as JSON; numbers that are not finite as text, since JSON has none."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_writable(one) for one in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def read_samples(lines: Sequence[dict[str, Any]]) -> list[Trajectory]:
    """The trajectories of a file of a bad step."""
    return [_read(line) for line in lines]


def _read(line: dict[str, Any]) -> Trajectory:
    keys = {name: _KEYS.get(name, name) for name in Trajectory.__dataclass_fields__}
    fields = {name: line[key] for name, key in keys.items() if key in line}  # an older file lacks some
    for name in COLUMNS:
        if fields.get(name) is not None:
            fields[name] = np.array(fields[name], dtype=np.float64)
    if fields.get("rejected") is not None:
        fields["rejected"] = np.array(fields["rejected"], dtype=bool)
    for name in ("score", "loss"):
        if fields.get(name) is not None:
            fields[name] = float(fields[name])
    return Trajectory(**fields)
