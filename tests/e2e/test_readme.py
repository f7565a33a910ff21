"""What README.md shows is run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from r1ranker.tasks.catalog import TASKS
from r1ranker.trainer.config_load import load_config
from r1ranker.trainer.loop import fit

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)


def test_own_data_and_own_reward_train(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, data, reward = blocks("python")
    try:
        exec(data, {})
    finally:
        TASKS.pop("Recipes", None)
    (tmp_path / "my_reward.py").write_text(reward)
    for name, count in (("recipes", 2), ("recipes_direct", 1)):
        overrides = [
            f"data.train_files=data/{name}/train.parquet", f"actor_rollout_ref.model.path={tiny_model}", f"data.train_batch_size={count}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={count}", "trainer.val_before_train=false", "trainer.total_training_steps=1",
            "custom_reward_function.path=my_reward.py", "custom_reward_function.name=brief", f"trainer.default_local_dir={name}",
        ]  # fmt: skip
        fit(load_config("quickstart", overrides))
        last = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["reward/brevity/mean"] < 0


def test_every_file_that_the_documents_name_is_there() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
    shown = "".join(blocks("bash"))
    for script in set(re.findall(r"(?:bash|python) ((?:scripts|examples|eval)/\S+)", shown)):
        assert (ROOT / script).is_file(), script
