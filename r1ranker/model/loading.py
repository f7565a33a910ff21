"""Loading models and tokenizers from a directory or the hub, with one clear line where something is missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from r1ranker.errors import UserError
from r1ranker.model.attention import register_packed

_TOKENIZER_FILES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""any of these sets holds a vocabulary"""
SETTINGS_FILE = "r1ranker.json"
"""beside the weights of a trained ranker: how it is to be asked"""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""files of weights: all in one, or the list of several"""


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
    if not any((directory / name).is_file() for name in (SINGLE, INDEX)):
        raise UserError(f"{path}: no model.safetensors in this directory; weights in safetensors are wanted")
    if not any(all((directory / name).is_file() for name in names) for names in _TOKENIZER_FILES):
        raise UserError(f"{path}: model directory without tokenizer (tokenizer.json); one is wanted beside the weights")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id; it must know an end-of-sequence token."""
    check_model_directory(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: the tokenizer cannot be loaded ({_first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer has no eos_token; one is wanted to end a response")
    return tokenizer


def load_causal_lm(path: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The causal language model of a directory or hub id, on the CPU, in evaluation mode (dropout off)."""
    with _named_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    return _checked(model, path)


def empty_causal_lm(path: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The same without its weights, which are on the meta device; buffers, which no file holds, are computed."""
    with _named_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
        model.tie_weights()  # every parameter was made anew
        with suppress(OSError):  # a directory without one: what the config says is taken
            model.generation_config = GenerationConfig.from_pretrained(path)
    return _checked(model, path)


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Check a model's directory; what is raised in loading it becomes a UserError."""
    check_model_directory(path)
    register_packed()
    quiet()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: the model cannot be loaded ({_first_line(error)})") from error
    except Exception as error:  # safetensors raises a class of its own for a truncated file
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise UserError(f"{path}: model.safetensors is damaged ({_first_line(error)})") from error
        raise


def _checked(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The model in evaluation mode, if its blocks can be found."""
    if getattr(model.base_model, "layers", None) is None:
        raise UserError(
            f"{path}: a model of type {model.config.model_type} has no list of transformer blocks named layers; one shaped like "
            "Qwen2 or Llama is wanted"
        )
    if model.generation_config is not None:
        # a temperature without do_sample loads and then refuses to be saved
        model.generation_config.do_sample = True
    return model.eval()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass. Dropout stays off, though transformers checkpoints in training mode alone."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if getattr(module, "attention_dropout", 0.0):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile what is the same for every row of a block, its norms and feed-forward layer, for any number of tokens.

    Attention is left as it is: its layout differs from micro-batch to micro-batch.
    """
    trunk: Any = model.base_model
    for block in trunk.layers:
        for name, part in block.named_children():
            if "attn" not in name:
                part.compile(dynamic=True)


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on `device`."""
    torch.nn.Module.to(model, device)
    return model


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the tokenizer's EOS and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = {int(tokenizer.eos_token_id)}
    if configured is not None:
        ids.update([configured] if isinstance(configured, int) else configured)
    return sorted(ids)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]


def quiet() -> None:
    """No loading bars and no advice on stderr: our own progress is shown instead."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
