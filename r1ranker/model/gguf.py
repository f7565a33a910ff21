"""A GGUF file as an ordinary Hugging Face directory: read by transformers, its weights unpacked to float32."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from r1ranker.errors import UserError, first_line
from r1ranker.model.init import save_hf
from r1ranker.pretrained import silence_transformers


def convert_gguf(file: Path, output: Path) -> int:
    """Write the model of a GGUF file to `output`, whole or not at all; returns its number of parameters.

    Raises UserError for a file that is no GGUF, one that transformers cannot read, one without a chat template, and where
    the package gguf is not installed.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; a GGUF file is wanted")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file}: not a GGUF file (it does not begin with GGUF)")
    if find_spec("gguf") is None:
        raise UserError("GGUF files: the package gguf is not installed; pip install 'r1ranker[gguf]' brings it")
    silence_transformers()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # the reader raises whatever a damaged or unknown file makes of it
        said = first_line(error, 300) or type(error).__name__
        raise UserError(f"{file}: transformers cannot read this GGUF file ({said})") from error
    if not tokenizer.chat_template:
        raise UserError(f"{file}: its tokenizer has no chat template; a model that was trained for chats is wanted")
    # the weights are plain numbers now; with this entry transformers refuses to save them
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    save_hf(str(output), model, tokenizer)
    return int(model.num_parameters())
