"""Tokenised prompts: one, and a file of them that is read where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from r1ranker.rewards import MODES
from r1ranker.tasks.prompts import AnswerFormat, Mode

TOKENISED = pa.schema(
    [
        ("token_ids", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("task", pa.string()),
        ("candidates", pa.int32()),
        ("row", pa.string()),
    ]
)
"""row: JSON of what a Prompt holds beside its token ids"""


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


def tokenised_row(row: dict[str, Any], token_ids: list[int], answer_format: AnswerFormat) -> dict[str, Any]:
    """The row of a tokenised file for a training row."""
    about = {
        "data_source": row["data_source"],
        "ground_truth": row["reward_model"]["ground_truth"],
        "extra_info": row["extra_info"],
        "answer_style": answer_format.answer_style,
        "think": answer_format.think,
    }
    return {
        "token_ids": token_ids,
        "length": len(token_ids),
        "task": row["extra_info"]["task_name"],
        "candidates": len(row["reward_model"]["ground_truth"]["candidate_text"]),
        "row": json.dumps(about, default=str, ensure_ascii=True),
    }


class PromptStore(Sequence[Prompt]):
    """The prompts `kept` of memory-mapped tables, read one by one; held are some 20 bytes a row, whatever its length."""

    def __init__(self, tables: Sequence[pa.Table], kept: np.ndarray) -> None:
        self._tables = list(tables)
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        self._kept = kept.astype(np.int32)
        self.task_names: list[str] = []
        codes = []
        for table in tables:
            encoded = table["task"].combine_chunks().dictionary_encode()
            encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
            names = encoded.dictionary.to_pylist()
            self.task_names += [name for name in names if name not in self.task_names]
            places = np.array([self.task_names.index(name) for name in names], dtype=np.int16)
            codes.append(places[encoded.indices.to_numpy(zero_copy_only=False)])
        self.task_codes = np.concatenate(codes)[kept]
        """index into task_names of each prompt"""
        self.pool_sizes = np.concatenate([np.asarray(table["candidates"], dtype=np.int16) for table in tables])[kept]

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
        (found,) = self._tables[number].slice(row - int(self._starts[number]), 1).to_pylist()
        about = json.loads(found["row"])
        return Prompt(
            found["token_ids"],
            about["data_source"],
            about["ground_truth"],
            about["extra_info"],
            MODES[about["data_source"]],
            AnswerFormat(about["answer_style"], about["think"]),
        )
