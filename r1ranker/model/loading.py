"""Loading models from a directory or the hub, with one clear line where something is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from r1ranker.errors import UserError, first_line, note
from r1ranker.model.attention import register_packed
from r1ranker.pretrained import check_model_directory, silence_transformers


def load_causal_lm(path: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The causal language model of a directory or hub id, on the CPU, in evaluation mode (dropout off).

    Raises UserError where a weight is missing or of another shape, which transformers would make up.
    """
    with _named_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
        )
    model, report = loaded
    for name, found, wanted in sorted(report["mismatched_keys"], key=str):
        raise UserError(f"{path}: {name} is of shape {list(found)}; config.json's model has {list(wanted)}")
    _check_weights(path, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))
    return _checked(model, path)


def _check_weights(path: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        found = f"; {unexpected[0]} and the like are there" if unexpected else ""
        raise UserError(f"{path}: no weights for {missing[0]}{more}{found}; those of config.json's model are wanted")
    if unexpected:
        note(f"{path}: {len(unexpected)} weights that config.json's model lacks are left out ({unexpected[0]}, ...)")


def init_empty_causal_lm(path: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
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
    silence_transformers()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: the model cannot be loaded ({first_line(error, 300)})") from error
    except Exception as error:  # safetensors raises a class of its own for a truncated file
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise UserError(f"{path}: model.safetensors is damaged ({first_line(error, 300)})") from error
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


def move_to_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
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
