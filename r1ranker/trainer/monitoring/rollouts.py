"""Rollouts to read: a step's prompts, responses, rewards and advantages as JSON lines, a file a step."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from r1ranker.atomic import atomic_path
from r1ranker.data.files.parquet import row_to_example
from r1ranker.data.prompt_store import Prompt
from r1ranker.data.tokenise import decode_response
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.scoring.outcome import describe_row

DIRECTORY = "rollouts"
"""in the run's directory, where trainer.rollout_data_dir names no other"""
VALIDATION = "validation"
"""in that one: the same rows each time"""
MOST_BYTES = 2**28
"""of all files; the oldest steps go first"""
MOST_CHARACTERS = 20_000
"""of a text"""
_FILE = re.compile(r"(\d+)\.jsonl")


class RolloutLog:
    """Writes the rollouts of the first prompts of each step's batch, and of a few rows of each validation."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        trainer = config.trainer
        directory = Path(trainer.rollout_data_dir or f"{config.output_dir}/{DIRECTORY}")
        self._training, self._validation = _Files(directory), _Files(directory / VALIDATION)
        self._is_own = trainer.rollout_data_dir is None
        self._prompts, self._rows = trainer.rollout_data_prompts, trainer.log_val_generations
        self._tokenizer = tokenizer
        self.written: dict[str, list[dict[str, Any]]] = {}
        """`rollouts` and `validation` -> the lines written last"""

    def begin(self, done: int | None) -> None:
        """Drop what an earlier run left in this one's directory of later steps than `done`; None: of all."""
        if self._is_own:
            for files in (self._training, self._validation):
                files.drop_after(-1 if done is None else done)

    def write(
        self,
        step: int,
        prompts: Sequence[Prompt],
        trajectories: Sequence[Trajectory],
        parts: Sequence[Mapping[str, float]],
    ) -> None:
        """Write `step` as a file of lines, one a response; `parts` are those of each trajectory's reward.

        The keys `input`, `output`, `gts`, `score` and `step` are veRL's. Raises UserError where the directory cannot be written.
        """
        if self._prompts:
            chosen = range(len(prompts) if self._prompts < 0 else self._prompts)
            rows = self.describe(step, prompts, trajectories, parts, chosen)
            self._training.write(step, rows)
            self.written = {DIRECTORY: rows}

    def choose_validated(self, count: int) -> list[int]:
        """Places among `count` validation rows, evenly spread and the same each time, whose responses are written."""
        return (
            [place * count // self._rows for place in range(self._rows)] if count > self._rows else list(range(count))
        )

    def write_validation(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write lines about the rows of a validation, as `describe` makes them."""
        if rows:
            self._validation.write(step, rows)
            self.written[VALIDATION] = rows

    def describe(
        self,
        step: int,
        prompts: Sequence[Prompt],
        trajectories: Sequence[Trajectory],
        parts: Sequence[Mapping[str, float]],
        groups: Container[int],
    ) -> list[dict[str, Any]]:
        """A line for each response to a prompt whose place is among `groups`."""
        asked: dict[int, RankingExample] = {}
        """of each group, whose responses are many"""
        for one in trajectories:
            if one.group_id not in asked and one.group_id in groups:
                asked[one.group_id] = row_to_example(prompts[one.group_id].as_row())
        return [
            self._row(step, prompts[one.group_id], asked[one.group_id], one, own)
            for one, own in zip(trajectories, parts, strict=True)
            if one.group_id in asked
        ]

    def _row(
        self, step: int, prompt: Prompt, asked: RankingExample, one: Trajectory, parts: Mapping[str, float]
    ) -> dict[str, Any]:
        ended = one.episode < 0 or one.response_ids[-1:] == [self._tokenizer.eos_token_id]
        response = decode_response(self._tokenizer, one.response_ids, one.finish_reason == "stop" and ended)
        advantages = None if one.advantages is None else [float(value) for value in one.advantages]
        return {
            "step": step,
            "row": describe_row(prompt),
            "task": prompt.task,
            "request": request_of(asked),
            "best": asked.best_text,
            "mode": prompt.mode,
            "answer_style": prompt.answer_format.answer_style,
            "think": prompt.answer_format.think,
            "input": _cut(str(self._tokenizer.decode(list(one.prompt_ids), skip_special_tokens=False))),
            "output": _cut(response),
            "turn": one.turn,
            "gts": prompt.ground_truth,
            "score": one.score,
            "parts": {name: value for name, value in parts.items() if name != "score"},
            "advantage": advantages[0] if advantages and len(set(advantages)) == 1 else advantages,
            "tokens": len(one.response_ids),
            "finish_reason": one.finish_reason,
            "logprob": float(one.rollout_logprobs.sum()),
            "weight": one.sample_weight,
        }


class _Files:
    """Files of a directory, one a step, of at most MOST_BYTES together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sizes: dict[int, int] | None = None
        """step -> bytes of its file, the oldest first"""

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the lines of `step`; the oldest steps go where there are too many. Raises UserError where that cannot be."""
        file = self._directory / f"{step}.jsonl"
        with atomic_path(file) as temporary:
            # half surrogate pairs, which JSON would escape and no encoding takes, become question marks
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8", errors="replace")
        self._drop_oldest(step, file.stat().st_size)

    def drop_after(self, step: int) -> None:
        """Drop the files of later steps."""
        for later, file in self._found():
            if later > step:
                file.unlink(missing_ok=True)

    def _found(self) -> list[tuple[int, Path]]:
        if not self._directory.is_dir():
            return []
        named = ((_FILE.fullmatch(file.name), file) for file in self._directory.iterdir())
        return sorted((int(match[1]), file) for match, file in named if match)

    def _drop_oldest(self, step: int, size: int) -> None:
        if self._sizes is None:
            self._sizes = {found: file.stat().st_size for found, file in self._found()}
        self._sizes.pop(step, None)
        self._sizes[step] = size
        while sum(self._sizes.values()) > MOST_BYTES and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            (self._directory / f"{oldest}.jsonl").unlink(missing_ok=True)
            del self._sizes[oldest]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ... ({len(text):,} characters)"
