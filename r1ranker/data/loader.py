"""Training rows to tokenised prompts, dealt in seeded order; the position can be saved and taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt, PromptStore
from r1ranker.data.token_cache import load_tokenised
from r1ranker.errors import UserError, suggest


def load_prompts(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    filter_overlong: bool = True,
    answer_style: str | None = None,
    think: bool | None = None,
    cache_dir: str | None = None,
) -> tuple[PromptStore, int]:
    """The prompts of training parquet, and how many were left out for being over `max_length` tokens.

    `answer_style` and `think` word the rows anew; None leaves them as they were prepared. The token ids lie in Arrow
    files in `cache_dir`, made once for each content and tokenizer, and are read where they are asked for. Raises
    UserError for files that cannot be used, for a prompt over the limit where `filter_overlong` is off, and where none is left.
    """
    found = [load_tokenised(path, tokenizer, answer_style, think, cache_dir) for path in files]
    lengths = [file.lengths for file in found]
    if not filter_overlong:
        for path, each in zip(files, lengths, strict=True):
            over = np.flatnonzero(each > max_length)
            if len(over):
                raise UserError(
                    f"{path}: row {over[0]}: a prompt of {each[over[0]]} tokens; at most "
                    f"data.max_prompt_length = {max_length} is wanted, or data.filter_overlong_prompts=true"
                )
    every = np.concatenate(lengths)
    kept = np.flatnonzero(every <= max_length)
    if not len(kept):
        raise UserError(
            f"{', '.join(files)}: all {len(every)} prompts are over data.max_prompt_length = {max_length} "
            f"(the longest has {every.max()} tokens)"
        )
    return PromptStore(found, kept), len(every) - len(kept)


def subsample_by_task(prompts: Sequence[Prompt], most: int) -> Sequence[Prompt]:
    """At most `most` prompts (-1: all), taken in turn from each task, evenly over its rows."""
    if most < 0 or len(prompts) <= most:
        return prompts
    names, codes, _ = task_codes(prompts)
    chosen: list[Prompt] = []
    for code in range(len(names)):
        rows = np.flatnonzero(codes == code)
        share = most // len(names) + (code < most % len(names))
        places = np.linspace(0, len(rows) - 1, min(share, len(rows))).round().astype(int)
        chosen += [prompts[int(rows[place])] for place in dict.fromkeys(places.tolist())]
    return chosen


def task_codes(prompts: Sequence[Prompt]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(task names, of each prompt the index of its task, of each prompt its pool's size)."""
    if isinstance(prompts, PromptStore):
        return prompts.task_names, prompts.task_codes, prompts.pool_sizes
    names = list(dict.fromkeys(prompt.task for prompt in prompts))
    codes = np.array([names.index(prompt.task) for prompt in prompts])
    return names, codes, np.array([len(prompt.candidates) for prompt in prompts])


MOST_WEIGHT = 1000
"""of a task: an epoch's order is held in memory"""


class PromptLoader:
    """Batches of prompts, each epoch in an order of its own that (seed, epoch) fixes; a short last batch is left out.

    `task_weights`: task -> how often an epoch deals each of its rows, 1 where none is given. Of 2.5 the epochs deal
    every row twice and half of them once more, the other half next time. `curriculum` 'pool_size': the first epoch
    goes from small pools to large ones. Raises UserError for unknown tasks, and where there is not one whole batch.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        batch_size: int,
        seed: int,
        shuffle: bool,
        task_weights: Mapping[str, float] | None = None,
        curriculum: str | None = None,
    ) -> None:
        self.prompts = prompts
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._curriculum = curriculum
        self._task_weights = dict(task_weights or {})
        self._shares = self._weigh(task_weights or {})
        self.epoch = 0
        self.position = 0
        self._dealt: tuple[int, np.ndarray] = (-1, np.array([]))
        if self._rows < batch_size:
            raise UserError(
                f"data.train_batch_size: {batch_size} prompts a step, but the training files hold {self._rows}"
            )

    def _weigh(self, weights: Mapping[str, float]) -> list[tuple[np.ndarray, int]]:
        """(rows of a task in an order of their own, how many of them an epoch deals) of each task; empty without weights."""
        self._rows = len(self.prompts)
        if not weights:
            return []
        names, codes, _ = task_codes(self.prompts)
        for name, weight in weights.items():
            if name not in names:
                raise UserError(
                    f"data.task_weights: no rows of {name!r}{suggest(name, names)}; there are {', '.join(names)}"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MOST_WEIGHT:
                raise UserError(
                    f"data.task_weights: {name}: found {weight!r}; a number from 0 to {MOST_WEIGHT} is wanted"
                )
        shares = []
        for code, name in enumerate(names):
            rows = np.flatnonzero(codes == code)
            order = np.random.default_rng([self._seed, code]).permutation(rows) if self._shuffle else rows
            shares.append((order, round(len(rows) * weights.get(name, 1.0))))
        self._rows = sum(count for _, count in shares)
        return shares

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self._rows // self._batch_size

    def next(self) -> list[Prompt]:
        """The next batch; after the last one of an epoch the next epoch begins."""
        if self.position == self.steps_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        start = self.position * self._batch_size
        self.position += 1
        return [self.prompts[int(index)] for index in self._order()[start : start + self._batch_size]]

    def _order(self) -> np.ndarray:
        if self._dealt[0] != self.epoch:
            self._dealt = (self.epoch, self._deal())
        return self._dealt[1]

    def _deal(self) -> np.ndarray:
        """Rows of this epoch, in order."""
        rows = np.arange(len(self.prompts))
        if self._shares:
            parts = []
            for order, count in self._shares:
                # where the last epoch left off, so that no row is dealt more than once oftener than another
                first = self.epoch * count
                parts.append(order[np.arange(first, first + count) % max(1, len(order))])
            rows = np.concatenate(parts)
        if self._shuffle:
            rows = rows[np.random.default_rng([self._seed, self.epoch]).permutation(len(rows))]
        elif self._shares:
            rows = np.sort(rows)
        if self._curriculum and self.epoch == 0:
            rows = rows[np.argsort(task_codes(self.prompts)[2][rows], kind="stable")]
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, and what its order hangs on; as JSON takes it."""
        return {"epoch": self.epoch, "position": self.position, "dealing": self._dealing()}

    def _dealing(self) -> dict[str, Any]:
        return {
            "rows an epoch": self._rows,
            "data.train_batch_size": self._batch_size,
            "data.seed": self._seed,
            "data.shuffle": self._shuffle,
            "data.task_weights": self._task_weights,
            "data.curriculum": self._curriculum,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; raises UserError where rows would be dealt in another order now."""
        before = state["dealing"]
        for key, value in self._dealing().items():
            if before[key] != value:
                raise UserError(f"{key}: found {value}, but {before[key]} where the run was left; the same is wanted")
        self.epoch, self.position = state["epoch"], state["position"]
