"""Training rows to tokenised prompts, dealt in seeded order; the position can be saved and taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.parquet import read_training_rows, reworded, row_format, row_mode
from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError
from r1ranker.tasks.prompts import AnswerFormat, Mode


@dataclass(frozen=True)
class Prompt:
    """A training row, ready for the rollout engine."""

    token_ids: list[int]
    data_source: str
    ground_truth: dict[str, Any]
    extra_info: dict[str, Any]
    mode: Mode
    answer_format: AnswerFormat

    @property
    def candidates(self) -> list[str]:
        return [str(name) for name in self.ground_truth["candidate_text"]]

    @property
    def task(self) -> str:
        return str(self.extra_info["task_name"])


def load_prompts(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    filter_overlong: bool = True,
    answer_style: str | None = None,
    think: bool | None = None,
) -> tuple[list[Prompt], int]:
    """The prompts of training parquet, and how many were left out for being over `max_length` tokens.

    `answer_style` and `think` word the rows anew; None leaves them as they were prepared. Raises UserError for files
    that cannot be used, for a prompt over the limit where `filter_overlong` is off, and where none is left.
    """
    prompts: list[Prompt] = []
    longest, left_out = 0, 0
    rows = read_training_rows(files)
    for number, row in enumerate(rows):
        wanted = row_format(row)
        wanted = AnswerFormat(answer_style or wanted.answer_style, wanted.think if think is None else think)  # type: ignore[arg-type]
        if wanted != row_format(row):
            row = reworded(row, wanted)
        token_ids = encode_chat(tokenizer, row["prompt"])
        if len(token_ids) > max_length:
            if not filter_overlong:
                raise UserError(
                    f"{', '.join(files)}: row {number}: a prompt of {len(token_ids)} tokens; at most "
                    f"data.max_prompt_length = {max_length} is wanted, or data.filter_overlong_prompts=true"
                )
            longest, left_out = max(longest, len(token_ids)), left_out + 1
            continue
        prompts.append(
            Prompt(
                token_ids,
                row["data_source"],
                row["reward_model"]["ground_truth"],
                row["extra_info"],
                row_mode(row),
                wanted,
            )
        )
    if not prompts:
        raise UserError(
            f"{', '.join(files)}: all {len(rows)} prompts are over data.max_prompt_length = {max_length} "
            f"(the longest has {longest} tokens)"
        )
    return prompts, left_out


def spread_over_tasks(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most `most` prompts (-1: all), taken in turn from each task, evenly over its rows."""
    if most < 0 or len(prompts) <= most:
        return list(prompts)
    by_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt)
    chosen: list[Prompt] = []
    for place, rows in enumerate(by_task.values()):
        share = most // len(by_task) + (place < most % len(by_task))
        indices = np.linspace(0, len(rows) - 1, min(share, len(rows))).round().astype(int)
        chosen += [rows[index] for index in dict.fromkeys(indices.tolist())]
    return chosen


class PromptLoader:
    """Batches of prompts, each epoch in an order of its own that (seed, epoch) fixes; a short last batch is left out."""

    def __init__(self, prompts: Sequence[Prompt], batch_size: int, seed: int, shuffle: bool) -> None:
        if len(prompts) < batch_size:
            raise UserError(
                f"data.train_batch_size: {batch_size} prompts a step, but the training files hold {len(prompts)}"
            )
        self.prompts = prompts
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self.epoch = 0
        self.position = 0

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.prompts) // self._batch_size

    def next(self) -> list[Prompt]:
        """The next batch; after the last one of an epoch the next epoch begins."""
        if self.position == self.steps_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        start = self.position * self._batch_size
        self.position += 1
        return [self.prompts[index] for index in self._order()[start : start + self._batch_size]]

    def _order(self) -> np.ndarray:
        if not self._shuffle:
            return np.arange(len(self.prompts))
        return np.random.default_rng([self._seed, self.epoch]).permutation(len(self.prompts))

    def state(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from where `state` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
