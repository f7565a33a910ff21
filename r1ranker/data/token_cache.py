"""Training parquet tokenised once: Arrow files for each content, tokenizer and wording."""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

import r1ranker.tasks
from r1ranker.atomic import fsync_path
from r1ranker.data.chat_template import chat_template_of
from r1ranker.data.files.manifest import checksum, verify_checksum
from r1ranker.data.files.parquet import read_training_rows, reword_row, row_format
from r1ranker.data.files.parquet_reader import open_parquet
from r1ranker.data.names import check_told_apart
from r1ranker.data.prompt_store import (
    INDEX_FILE,
    INDEX_SCHEMA,
    ROW_SCHEMA,
    ROWS_FILE,
    ROWS_PER_BATCH,
    TokenisedFile,
    tokenised_row,
)
from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.tasks.custom import TASKS_FILE, register_tasks_of
from r1ranker.tasks.prompts import AnswerFormat

BATCH = 1024
"""rows tokenised at once; a multiple of ROWS_PER_BATCH"""
_ROLES = ("system", "user", "assistant")


def load_tokenised(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    answer_style: str | None,
    think: bool | None,
    cache_dir: str | None = None,
) -> TokenisedFile:
    """The tokenised rows of a training file, from the cache or made now.

    Raises UserError naming file and row for whatever cannot be used; then nothing is kept.
    """
    open_parquet(path).close()
    verify_checksum(Path(path))
    register_tasks_of(Path(path).parent)
    named = cache_dir or os.environ.get("R1RANKER_CACHE")
    directory = Path(named) if named else _directory_of_user()
    name = _key(path, tokenizer, answer_style, think)
    found = _open(directory / name)
    if found is not None:
        return found
    try:
        return _write(directory / name, path, tokenizer, answer_style, think)
    except UserError as error:
        if not isinstance(error.__cause__, OSError) or cache_dir is not None:
            raise
        # a home that cannot be written is no reason not to train
        target = _private_directory() / name
        return _open(target) or _write(target, path, tokenizer, answer_style, think)


def _directory_of_user() -> Path:
    try:
        return Path.home() / ".cache" / "r1ranker"
    except RuntimeError:  # no HOME, and no entry of this user in the password file
        return _private_directory()


@lru_cache(maxsize=1)
def _private_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="r1ranker-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _open(directory: Path) -> TokenisedFile | None:
    try:
        return TokenisedFile(directory)
    except (pa.ArrowException, OSError, KeyError):  # not there, or damaged: made anew
        return None


def _write(
    target: Path, path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None
) -> TokenisedFile:
    """Write the directory `target`, whole or not at all; one that another process has put there meanwhile stays."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as holder:
            temporary = Path(holder) / target.name
            _fill(temporary, path, tokenizer, answer_style, think)
            fsync_path(temporary)
            while (found := _open(target)) is None:
                try:
                    temporary.rename(target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    with suppress(FileNotFoundError):  # a damaged one, which another process may be moving as well
                        target.rename(Path(tempfile.mkdtemp(dir=holder)) / "damaged")
            return found
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error


def _fill(
    directory: Path, path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None
) -> None:
    directory.mkdir()
    with (
        pa.OSFile(str(directory / ROWS_FILE), "wb") as rows_file,
        pa.OSFile(str(directory / INDEX_FILE), "wb") as index_file,
        pa.ipc.new_file(rows_file, ROW_SCHEMA) as rows_out,
        pa.ipc.new_file(index_file, INDEX_SCHEMA) as index_out,
    ):
        for rows in _rows(path, tokenizer, answer_style, think):
            for start in range(0, len(rows), ROWS_PER_BATCH):
                rows_out.write_batch(
                    pa.RecordBatch.from_pylist(rows[start : start + ROWS_PER_BATCH], schema=ROW_SCHEMA)
                )
            index_out.write_batch(pa.RecordBatch.from_pylist(rows, schema=INDEX_SCHEMA))


def _rows(
    path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None
) -> Iterator[list[dict[str, Any]]]:
    rows = read_training_rows([path])
    template = chat_template_of(tokenizer)
    done = 0
    while batch := list(islice(rows, BATCH)):
        formats = []
        for place, row in enumerate(batch):
            own = row_format(row)
            wanted = AnswerFormat(answer_style or own.answer_style, own.think if think is None else think)  # type: ignore[arg-type]
            formats.append(wanted)
            if wanted != own:
                batch[place] = reword_row(row, wanted)
            if wanted.answer_style == "name":
                check_told_apart(
                    template, row["reward_model"]["ground_truth"]["candidate_text"], f"{path}: row {done + place}"
                )
        done += len(batch)
        ids = encode_chats(tokenizer, [row["prompt"] for row in batch])
        yield [tokenised_row(*parts) for parts in zip(batch, ids, formats, strict=True)]


def _key(path: str, tokenizer: PreTrainedTokenizerBase, answer_style: str | None, think: bool | None) -> str:
    """A name for the content of the file, the tokenizer, the wording asked for and the code that words."""
    digest = hashlib.sha256()
    digest.update(f"{checksum(Path(path))} {answer_style} {think}".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    # a template's words can hang on special tokens, and on today's date
    probes = [[{"role": role, "content": "x"} for role in roles] for roles in (("user",), _ROLES)]
    rendered = encode_chats(tokenizer, probes)
    control = chat_template_of(tokenizer).control_words
    known = f"{vocabulary} {tokenizer.chat_template} {rendered} {control.words} {control.marks}"
    digest.update(known.encode("utf-8", "surrogatepass"))
    own = Path(path).parent / TASKS_FILE
    code = [*Path(str(r1ranker.tasks.__file__)).parent.glob("*.py"), *Path(__file__).parent.rglob("*.py")]
    for file in [*sorted(code), *([own] if own.is_file() else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]
