"""Training parquet tokenised once: Arrow files for each content, tokenizer and wording."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

import r1ranker.tasks
from r1ranker.atomic import atomic_path
from r1ranker.data.manifest import sha256
from r1ranker.data.parquet import read_training_rows, reworded, row_format
from r1ranker.data.prompts import INDEX, INDEX_FILE, ROWS, ROWS_FILE, TOGETHER, TokenisedFile, tokenised_row
from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.tasks.own import TASKS_FILE
from r1ranker.tasks.prompts import AnswerFormat

BATCH = 1024
"""rows tokenised at once; a multiple of TOGETHER"""


def tokenised(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    answer_style: str | None,
    think: bool | None,
    cache_dir: str | None = None,
) -> TokenisedFile:
    """The tokenised rows of a training file, from the cache or made now.

    Raises UserError naming file and row for whatever cannot be used; then nothing is kept.
    """
    if not Path(path).is_file():
        for _ in read_training_rows([path]):  # says what is wrong
            break
    directory = Path(cache_dir or os.environ.get("R1RANKER_CACHE") or Path.home() / ".cache" / "r1ranker")
    name = _key(path, tokenizer, answer_style, think)
    found = _open(directory / name)
    if found is not None:
        return found
    try:
        _write(directory / name, path, tokenizer, answer_style, think)
    except UserError as error:
        if not isinstance(error.__cause__, OSError) or cache_dir is not None:
            raise
        # a home that cannot be written is no reason not to train
        directory = Path(tempfile.mkdtemp(prefix="r1ranker-"))
        _write(directory / name, path, tokenizer, answer_style, think)
    return TokenisedFile(directory / name)


def _open(directory: Path) -> TokenisedFile | None:
    try:
        return TokenisedFile(directory)
    except (pa.ArrowException, OSError, KeyError):  # not there, or damaged: made anew
        return None


def _write(
    target: Path, path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None
) -> None:
    with atomic_path(target) as temporary:
        temporary.mkdir()
        with (
            pa.OSFile(str(temporary / ROWS_FILE), "wb") as rows_file,
            pa.OSFile(str(temporary / INDEX_FILE), "wb") as index_file,
            pa.ipc.new_file(rows_file, ROWS) as rows_out,
            pa.ipc.new_file(index_file, INDEX) as index_out,
        ):
            for rows in _rows(path, tokenizer, answer_style, think):
                for start in range(0, len(rows), TOGETHER):
                    rows_out.write_batch(pa.RecordBatch.from_pylist(rows[start : start + TOGETHER], schema=ROWS))
                index_out.write_batch(pa.RecordBatch.from_pylist(rows, schema=INDEX))


def _rows(
    path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None
) -> Iterator[list[dict[str, Any]]]:
    rows = read_training_rows([path])
    while batch := list(islice(rows, BATCH)):
        formats = []
        for place, row in enumerate(batch):
            own = row_format(row)
            wanted = AnswerFormat(answer_style or own.answer_style, own.think if think is None else think)  # type: ignore[arg-type]
            formats.append(wanted)
            if wanted != own:
                batch[place] = reworded(row, wanted)
        ids = encode_chats(tokenizer, [row["prompt"] for row in batch])
        yield [tokenised_row(*parts) for parts in zip(batch, ids, formats, strict=True)]


def _key(path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None) -> str:
    """A name for the content of the file, the tokenizer, the wording asked for and the code that words."""
    digest = hashlib.sha256()
    digest.update(f"{sha256(Path(path))} {answer_style} {think}".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    digest.update(f"{vocabulary} {tokenizer.chat_template}".encode("utf-8", "surrogatepass"))
    own = Path(path).parent / TASKS_FILE
    code = [*Path(str(r1ranker.tasks.__file__)).parent.glob("*.py"), *Path(__file__).parent.glob("*.py")]
    for file in [*sorted(code), *([own] if own.is_file() else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]
