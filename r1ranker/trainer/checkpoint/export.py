"""The actor of a training state, as the Hugging Face directory that its run would have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from r1ranker.atomic import atomic_path
from r1ranker.errors import UserError
from r1ranker.model.loading import load_causal_lm
from r1ranker.pretrained import SETTINGS_FILE, load_tokenizer
from r1ranker.trainer.checkpoint.shards import read_trained_weights
from r1ranker.trainer.checkpoint.state import read_state


def export_actor(state: str, output: str) -> int:
    """Write the actor of the state in directory `state`, by however many processes, to `output`; returns its step.

    The weights are written in float32, as they were trained. The model that the run began with has to be where it was.
    Raises UserError where the state is damaged, or of another model.
    """
    found = read_state(Path(state))
    if isinstance(found, str):
        raise UserError(f"{found}; a state such as RUN/state/step_100 is wanted")
    path = found.driver["config"]["actor_rollout_ref"]["model"]["path"]
    model = load_causal_lm(path, torch.float32, "eager")
    read_trained_weights(state, "actor", model)
    with atomic_path(Path(output)) as temporary:
        model.save_pretrained(temporary)
        load_tokenizer(path).save_pretrained(temporary)
        write_ranker_settings(Path(temporary), found.driver["actor"])
    return found.step


def write_ranker_settings(directory: Path, about: dict[str, Any]) -> None:
    """What is needed to rank with an actor, beside its weights."""
    (directory / SETTINGS_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
