"""The authors' later scripts run: their settings, a tiny model, two steps, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from author_scripts import BATCHES, MODES, overrides_of
from runs import run_command

from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.dry_run import dry_run

QUICK = (
    "trainer.executor=local", "actor_rollout_ref.rollout.name=hf", "data.max_response_length=24", "data.val_max_samples=2",
    "trainer.total_training_steps=2", "trainer.logger=[console]",
)  # fmt: skip
NOTE = (
    "note: actor_rollout_ref.actor.ppo_mini_batch_size=32, critic.ppo_mini_batch_size=32: more than "
    "data.train_batch_size={}, so the whole batch is one mini-batch"
)


def given(script: str, toy: Path, model: str) -> list[str]:
    return overrides_of(script, str(toy / f"{MODES[script]}_ranking"), model, gpus=1)


@pytest.mark.parametrize("script", sorted(BATCHES))
def test_a_script_of_the_authors_trains(
    script: str, toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, said = run_command("train", *given(script, toy, tiny_model), *QUICK)
    assert NOTE.format(BATCHES[script]["prompts"]) in said.splitlines()
    run = tmp_path / "checkpoints" / "Ranking-FM" / f"{script}-run"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert any(name.startswith("val-core/") for name in steps[0])
    assert all(line["training/bad_step"] == 0 for line in steps[1:])
    assert (run / "actor" / "model.safetensors").is_file()


@pytest.mark.parametrize("script", sorted(BATCHES))
def test_a_dry_run_takes_the_same_settings(
    script: str,
    toy: Path,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dry_run(load_config("published", given(script, toy, tiny_model)))
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for role in ("actor", "critic"):
        updates = f"{role}'s updates 1 a step, of {BATCHES[script]['prompts']} prompts; "
        assert any(line.startswith(updates) for line in said)
    assert not list(tmp_path.iterdir())
