"""Training parquet tokenised once: an Arrow file for each content, tokenizer and wording, memory-mapped."""

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
from r1ranker.data.prompts import TOKENISED, tokenised_row
from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.tasks.own import TASKS_FILE
from r1ranker.tasks.prompts import AnswerFormat

BATCH = 1024
"""rows tokenised at once"""


def tokenised(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    answer_style: str | None,
    think: bool | None,
    cache_dir: str | None = None,
) -> pa.Table:
    """The tokenised rows of a training file, from the cache or made now; see prompts.TOKENISED.

    Raises UserError naming file and row for whatever cannot be used; then nothing is kept.
    """
    if not Path(path).is_file():
        for _ in read_training_rows([path]):  # says what is wrong
            break
    directory = Path(cache_dir or os.environ.get("R1RANKER_CACHE") or Path.home() / ".cache" / "r1ranker")
    name = f"{_key(path, tokenizer, answer_style, think)}.arrow"
    if not _usable(directory / name):
        try:
            _write(directory / name, path, tokenizer, answer_style, think)
        except UserError as error:
            if not isinstance(error.__cause__, OSError) or cache_dir is not None:
                raise
            # a home that cannot be written is no reason not to train
            directory = Path(tempfile.mkdtemp(prefix="r1ranker-"))
            _write(directory / name, path, tokenizer, answer_style, think)
    return pa.ipc.open_file(pa.memory_map(str(directory / name))).read_all()


def _usable(file: Path) -> bool:
    try:
        return file.is_file() and pa.ipc.open_file(pa.memory_map(str(file))).schema.equals(TOKENISED)
    except (pa.ArrowException, OSError):  # cut short: made anew
        return False


def _write(
    target: Path, path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None
) -> None:
    with (
        atomic_path(target) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, TOKENISED) as out,
    ):
        for rows in _rows(path, tokenizer, answer_style, think):
            out.write_batch(pa.RecordBatch.from_pylist(rows, schema=TOKENISED))


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
