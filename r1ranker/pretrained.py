"""A Hugging Face directory or hub id: whether everything is there, and its tokenizer. Loads no weights."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from r1ranker.errors import UserError, first_line

_TOKENIZER_FILES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""any of these sets holds a vocabulary"""
SETTINGS_FILE = "r1ranker.json"
"""beside the weights of a trained ranker: how it is to be asked"""
SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
"""files of weights: all in one, or the list of several"""


def full_path(name: str) -> str:
    """A model or a data set by its whole path; a hub id, and what is not there, as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def read_setting(path: str, key: str) -> Any:
    """What a trained ranker's SETTINGS_FILE holds under `key`; None of a hub id, and where the file does not say it."""
    try:
        return json.loads((Path(path) / SETTINGS_FILE).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no such file, or one by an earlier version or by somebody else


def check_model_directory(path: str) -> None:
    """Raise UserError unless `path` is a hub id or a directory with a config, safetensors weights and a tokenizer."""
    directory = Path(path)
    if not directory.is_dir():
        if directory.exists():
            raise UserError(f"{path}: found a file; a model directory is wanted")
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise UserError(f"{path}: no such model directory; a Hugging Face directory or hub id is wanted")
        return
    if not (directory / "config.json").is_file():
        raise UserError(f"{path}: no config.json in this directory; a Hugging Face model directory is wanted")
    if not any((directory / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise UserError(f"{path}: no model.safetensors in this directory; weights in safetensors are wanted")
    if not any(all((directory / name).is_file() for name in names) for names in _TOKENIZER_FILES):
        raise UserError(f"{path}: model directory without tokenizer (tokenizer.json); one is wanted beside the weights")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id.

    Raises UserError where it knows no end-of-sequence token, or makes ids that the model has no embedding of.
    """
    check_model_directory(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: the tokenizer cannot be loaded ({first_line(error, 300)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer has no eos_token; one is wanted to end a response")
    _check_ids(path, tokenizer)
    return tokenizer


def _check_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for ids beyond the embedding; rows of it that no id stands for are fine."""
    rows = getattr(load_model_config(path).get_text_config(), "vocab_size", None)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows is not None and highest >= rows:
        raise UserError(
            f"{path}: the tokenizer's {token!r} has id {highest:,}, and the model's embedding has {rows:,} rows (vocab_size); "
            "the tokenizer that the model was trained with is wanted"
        )


def load_model_config(path: str) -> PretrainedConfig:
    """The config of a model directory or hub id; raises UserError where it cannot be read."""
    check_model_directory(path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: config.json cannot be read ({first_line(error, 300)})") from error
    return config


def silence_transformers() -> None:
    """No loading bars and no advice on stderr: our own progress is shown instead."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def list_state(path: str) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a model's files: a model trained anew under the same path is another one."""
    files = sorted(Path(path).glob("*")) if Path(path).is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
