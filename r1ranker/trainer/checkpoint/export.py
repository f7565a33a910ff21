"""The actor of a training state, as the Hugging Face directory that its run would have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from r1ranker.atomic import atomic_path
from r1ranker.errors import UserError
from r1ranker.model.export import write_model
from r1ranker.model.loading import load_causal_lm
from r1ranker.model.lora import add_adapters, gather_adapters, gather_weights, write_adapters
from r1ranker.model.weights import materialise
from r1ranker.pretrained import SETTINGS_FILE, load_tokenizer
from r1ranker.trainer.checkpoint.shards import read_trained_weights
from r1ranker.trainer.checkpoint.state import read_state
from r1ranker.trainer.config.models import ModelConfig, lora_options

ADAPTER_DIRECTORY = "lora_adapter"
"""in a trained model's: its adapters by themselves, as peft reads them"""


def export_actor(state: str, output: str) -> int:
    """Write the actor of the state in directory `state`, by however many processes, to `output`; returns its step.

    The weights are written in float32, as they were trained; adapters are merged into those of the model's files, and stand beside. The model that the run began with has to be where it was.
    Raises UserError where the state is damaged, or of another model.
    """
    found = read_state(Path(state))
    if isinstance(found, str):
        raise UserError(f"{found}; a state such as RUN/state/step_100 is wanted")
    config = found.driver["config"]
    about = ModelConfig(
        **config["actor_rollout_ref"]["model"]
    )  # what an older state lacks is as it was then: no adapters
    path, lora = str(about.path), lora_options(about, config["trainer"]["seed"])
    model = load_causal_lm(path, torch.float32, "eager")
    if lora is not None:
        add_adapters(model, lora)
        materialise(model, torch.device("cpu"))
    read_trained_weights(state, "actor", model)
    with atomic_path(Path(output)) as temporary:
        if lora is None:
            model.save_pretrained(temporary)
        else:
            cpu = torch.device("cpu")
            write_model(temporary, model, gather_weights(model, cpu, torch.float32), torch.float32)
            write_adapters(temporary / ADAPTER_DIRECTORY, gather_adapters(model, cpu), lora, path)
        load_tokenizer(path).save_pretrained(temporary)
        write_ranker_settings(Path(temporary), found.driver["actor"])
    return found.step


def write_ranker_settings(directory: Path, about: dict[str, Any]) -> None:
    """What is needed to rank with an actor, beside its weights."""
    (directory / SETTINGS_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
