"""How the arms of an experiment are trained: their configs, which are checked before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1ranker.errors import UserError
from r1ranker.experiments.spec import Arm, Experiment, model_of
from r1ranker.pretrained import check_model_directory

if TYPE_CHECKING:
    from r1ranker.trainer.config.schema import Config


def check_trainings(experiment: Experiment) -> None:
    """Raise UserError for overrides, models and a router's table that cannot be used: now, and not when data are made."""
    if experiment.router_data is not None:
        table = Path(str(experiment.data.source)) / experiment.router_data
        if not table.is_file():
            raise UserError(f"router_data: {table}: no such file; RouterBench's table below data.source is wanted")
    for label, arm in experiment.arms.items():
        if arm.trained_as is None:
            training_config(experiment, label, experiment.seeds[0], "base", Path("rows"), Path(label))
            path = model_of(experiment, arm).path
            if path is not None:
                check_model_directory(path)


def training_config(experiment: Experiment, label: str, seed: int, base: str, rows: Path, output: Path) -> Config:
    """How an arm is trained, from the model `base` on the rows under `rows`; raises UserError for overrides that cannot be used."""
    from r1ranker.trainer.config.load import load_config

    arm = experiment.arms[label]
    directory = rows / f"{arm.mode}_ranking"
    steps = experiment.steps if arm.steps is None else arm.steps
    values: dict[str, Any] = {
        "data.train_files": str(directory / "train.parquet"),
        "data.val_files": str(directory / "test.parquet"),
        "data.think": thinks(experiment, arm),
        "data.answer_style": arm.answer_style or experiment.answer_style,
        "data.seed": seed,
        "trainer.seed": seed,
        "actor_rollout_ref.model.path": base,
        "critic.model.path": base,
        "actor_rollout_ref.rollout.constrain": experiment.constrain,
        "trainer.experiment_name": label,
        "trainer.default_local_dir": str(output),
    }
    if steps is not None:
        values["trainer.total_training_steps"] = steps
    if experiment.curve is not None:
        values["trainer.max_actor_ckpt_to_keep"] = None
    return load_config(arm.config or experiment.config, [*experiment.overrides, *arm.overrides], values=values)


def thinks(experiment: Experiment, arm: Arm) -> bool:
    """Whether an arm reasons before it answers."""
    return experiment.think if arm.think is None else arm.think
