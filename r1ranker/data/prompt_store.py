"""Tokenised prompts: one, and a file of them that is read where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from r1ranker.rewards import MODES
from r1ranker.tasks.prompts import AnswerFormat, Mode

ROW_SCHEMA = pa.schema([("token_ids", pa.list_(pa.int32())), ("row", pa.string())])
"""of a tokenised file; row: JSON of what a Prompt holds beside its token ids"""
INDEX_SCHEMA = pa.schema([("length", pa.int32()), ("task", pa.string()), ("candidates", pa.int16())])
"""beside it, of each row: tokens, task and size of the pool"""
ROWS_FILE, INDEX_FILE = "rows.arrow", "index.arrow"
ROWS_PER_BATCH = 16
"""rows that are read at once"""


@dataclass(frozen=True)
class Prompt:
    """A training row, ready for the rollout engine."""

    token_ids: list[int]
    data_source: str
    ground_truth: dict[str, Any]
    extra_info: dict[str, Any]
    mode: Mode
    answer_format: AnswerFormat
    messages: list[dict[str, str]] = field(default_factory=list)
    """the chat whose tokens it has"""

    @property
    def candidates(self) -> list[str]:
        return [str(name) for name in self.ground_truth["candidate_text"]]

    @property
    def task(self) -> str:
        return str(self.extra_info["task_name"])

    def as_row(self) -> dict[str, Any]:
        """The training row that it was made from, in the answer format that it has."""
        form = self.answer_format
        return {
            "data_source": self.data_source,
            "prompt": self.messages,
            "reward_model": {"ground_truth": self.ground_truth},
            "extra_info": {**self.extra_info, "answer_style": form.answer_style, "think": form.think},
        }


def tokenised_row(row: dict[str, Any], token_ids: list[int], answer_format: AnswerFormat) -> dict[str, Any]:
    """What a tokenised file and its index hold of a training row."""
    about = {
        "data_source": row["data_source"],
        "ground_truth": row["reward_model"]["ground_truth"],
        "extra_info": row["extra_info"],
        "answer_style": answer_format.answer_style,
        "think": answer_format.think,
        "messages": row["prompt"],
    }
    return {
        "token_ids": token_ids,
        "length": len(token_ids),
        "task": row["extra_info"]["task_name"],
        "candidates": len(row["reward_model"]["ground_truth"]["candidate_text"]),
        "row": json.dumps(about, default=str, ensure_ascii=True),
    }


class TokenisedFile:
    """A tokenised training file on disk: its index in memory, its rows read where they are asked for."""

    def __init__(self, directory: Path) -> None:
        """Raises pyarrow's errors for files that are damaged."""
        index = pa.ipc.open_file(pa.OSFile(str(directory / INDEX_FILE))).read_all()
        self.lengths = index["length"].to_numpy()
        self.sizes = index["candidates"].to_numpy()
        encoded = index["task"].combine_chunks().dictionary_encode()
        self.task_names: list[str] = encoded.dictionary.to_pylist()
        self.task_codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int16)
        self._reader = pa.ipc.open_file(pa.OSFile(str(directory / ROWS_FILE)))
        self._last: tuple[int, Any] = (-1, None)

    def read(self, row: int) -> Prompt:
        """The prompt of a row."""
        number, place = divmod(row, ROWS_PER_BATCH)
        if self._last[0] != number:
            self._last = (number, self._reader.get_batch(number))
        (found,) = self._last[1].slice(place, 1).to_pylist()
        about = json.loads(found["row"])
        return Prompt(
            found["token_ids"],
            about["data_source"],
            about["ground_truth"],
            about["extra_info"],
            MODES[about["data_source"]],
            AnswerFormat(about["answer_style"], about["think"]),
            about["messages"],
        )


class PromptStore(Sequence[Prompt]):
    """The rows `kept` of tokenised files, read one by one; some 20 bytes of each are held, whatever its length."""

    def __init__(self, files: Sequence[TokenisedFile], kept: np.ndarray) -> None:
        self._files = list(files)
        self._starts = np.cumsum([0, *(len(file.lengths) for file in files)])
        self._kept = kept.astype(np.int32)
        self.task_names = list(dict.fromkeys(name for file in files for name in file.task_names))
        codes = []
        for file in files:
            places = np.array([self.task_names.index(name) for name in file.task_names], dtype=np.int16)
            codes.append(places[file.task_codes])
        self.task_codes = np.concatenate(codes)[kept]
        """index into task_names of each prompt"""
        self.pool_sizes = np.concatenate([file.sizes for file in files])[kept]
        self.lengths = np.concatenate([file.lengths for file in files])[kept]
        """tokens of each prompt"""

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self._read(int(row)) for row in self._kept[index]]
        return self._read(int(self._kept[index]))

    def __iter__(self) -> Iterator[Prompt]:
        return (self._read(int(row)) for row in self._kept)

    def _read(self, row: int) -> Prompt:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._files[number].read(row - int(self._starts[number]))
