"""Which state a run goes on from, and whether its configuration lets it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1ranker.errors import UserError
from r1ranker.trainer.checkpoint import state as states_on_disk
from r1ranker.trainer.checkpoint.state import ASIDE, STATES, Say, State
from r1ranker.trainer.config.load import BARE_TEXT, to_dict
from r1ranker.trainer.config.schema import Config

FREE_KEYS = (
    "trainer.executor", "trainer.n_gpus_per_node", "trainer.nnodes", "trainer.total_epochs", "trainer.total_training_steps",
    "trainer.val_before_train", "trainer.test_freq", "trainer.save_freq", "trainer.project_name", "trainer.experiment_name",
    "trainer.default_local_dir", "trainer.logger", "trainer.profile_steps", "trainer.rollout_data_dir", "trainer.rollout_data_prompts",
    "trainer.log_val_generations", "trainer.resume_mode", "trainer.max_actor_ckpt_to_keep",
    "trainer.best_metric", "trainer.max_restarts", "trainer.timeout", "data.train_files", "data.val_files",
    "data.val_max_samples", "data.val_batch_size", "data.cache_dir", "reward.num_workers", "reward.timeout",
    "reward.max_failure_rate", "trainer.on_bad_step",
    "actor_rollout_ref.rollout.val_kwargs.", "actor_rollout_ref.rollout.placement", "actor_rollout_ref.rollout.n_workers",
    "actor_rollout_ref.rollout.max_num_seqs", "actor_rollout_ref.rollout.enforce_eager",
    "actor_rollout_ref.rollout.tensor_model_parallel_size", "actor_rollout_ref.rollout.free_cache_engine",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
)  # fmt: skip
"""what a run may go on with otherwise (those with a dot at the end: whole sections); training files are compared by content"""
LEARNING_KEYS = (".optim.name", ".model.lora_rank", ".model.target_modules")
"""ends of keys that say what a state has weights and moments of"""
FREE_KEY_PARTS = (
    "micro_batch_size",
    "max_token_len",
    "use_dynamic_bsz",
    "offload",
    "checkpointing",
    "compile",
    "share_prompts",
)
"""of names: how a step is computed, not what"""


def choose_state(config: Config, data: Mapping[str, str], again: bool, say: Say) -> State | None:
    """The state to go on from; None: begin anew.

    `data`: checksum of each training file. `again`: this run has begun before and goes on after a breakdown. Raises
    UserError where no state can be used, or where the run in this directory is another one.
    """
    mode, own = config.trainer.resume_mode, Path(config.output_dir) / STATES
    if again and states_on_disk.list_states(own):
        return states_on_disk.find_newest(own, say)
    if mode == "disable":
        return None
    if mode == "auto":
        state = states_on_disk.find_newest(own, say)
        if state is not None:
            _refuse_other_run(config, data, state)
        return state
    return _read_named_state(Path(mode), config, data, say)


def _refuse_other_run(config: Config, data: Mapping[str, str], state: State) -> None:
    before, now = _shaping_of(state), _select_shaping(to_dict(config))
    different = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    where = f"{state.directory}: the run in this directory"
    cure = "the same, another trainer.default_local_dir, or trainer.resume_mode=disable is wanted"
    if different:
        key = different[0]
        more = f" (and {len(different) - 1} more: {', '.join(different[1:4])})" if different[1:] else ""
        raise UserError(f"{key}: found {now.get(key)!r}, but {where} has {before.get(key)!r}{more}; {cure}")
    if list(data.values()) != list(state.driver["data"].values()):
        raise UserError(f"data.train_files: other rows than {where} has; {cure}")


def _read_named_state(directory: Path, config: Config, data: Mapping[str, str], say: Say) -> State:
    """The state in `directory`; what is different now is said."""
    state = states_on_disk.read_state(directory)
    if isinstance(state, str):
        raise UserError(
            f"trainer.resume_mode: {state}; a directory such as {Path(config.output_dir) / STATES}/step_100 is wanted"
        )
    aside = Path(config.output_dir) / ASIDE
    if directory.resolve().parent == aside.resolve() and states_on_disk.list_states(aside.parent / STATES):
        raise UserError(
            f"trainer.resume_mode: {directory} is deleted with this run's first state; move it elsewhere first"
        )
    before, now = _shaping_of(state), _select_shaping(to_dict(config))
    for key in [key for key in {**now, **before} if key.endswith(LEARNING_KEYS) and now.get(key) != before.get(key)]:
        raise UserError(
            f"{key}: found {now.get(key)!r}, but {directory} has {before.get(key)!r}; weights and moments of the one are of no use to "
            "the other, so the same is wanted"
        )
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in {**now, **before} if now.get(key) != before.get(key)
    ]
    if list(data.values()) != list(state.driver["data"].values()):
        changed.append("other rows in data.train_files")
    if changed:
        say(f"changed since {directory}: {'; '.join(changed)}")
    return state


def _shaping_of(state: State) -> dict[str, Any]:
    """What shaped the training of a state; a key that there was not yet had the effect that its default has."""
    found = _select_shaping(state.driver["config"])
    found |= {key: str(found[key]) for key in BARE_TEXT if found.get(key) is not None}  # once numbers, now texts
    # an empty mapping is no key of its own: what it held stands by itself
    defaults = Config()
    defaults.algorithm.adv_estimator = state.driver["config"]["algorithm"][
        "adv_estimator"
    ]  # a critic's keys count with gae
    usual = {key: value for key, value in _select_shaping(to_dict(defaults)).items() if not isinstance(value, Mapping)}
    return usual | found


def _select_shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes a training, by dotted name."""
    return {
        key: os.path.abspath(value) if key.endswith(".path") and value and os.path.exists(value) else value
        for key, value in _leaves(config)
        if not any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE_KEYS)
        and not any(part in key.rpartition(".")[2] for part in FREE_KEY_PARTS)
        and not (key.startswith("critic.") and config["algorithm"]["adv_estimator"] != "gae")
    }


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
