"""Names on the terminal: what looks like markup or an emoji in them is shown as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from r1ranker.data.files.card import print_tables
from r1ranker.data.files.tally import Tally
from r1ranker.evaluation import table
from r1ranker.evaluation.harness import Score, harness_table
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.monitoring.tracking import Tracking

NAMES = ["[bold]run", "run [/b]", "a :smile: b", "[a] {b} \\[c]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_progress_bar_has_the_runs_name(name: str, tmp_path: Path) -> None:
    values = {"data.train_files": "x", "data.val_files": "x", "actor_rollout_ref.model.path": "x"}
    values |= {"trainer.experiment_name": name, "trainer.default_local_dir": str(tmp_path)}
    with Tracking(load_config("quickstart", values=values), 3) as tracking:
        shown = Console(width=120)
        with shown.capture() as written:
            shown.print(tracking._progress.get_renderable())
    assert name in written.get()


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_the_names_of_models_and_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(name, Tally(), {})
    assert name in capsys.readouterr().out
    table.wide_console().print(harness_table({name: {name: {"acc": Score(0.5)}}}))
    assert capsys.readouterr().out.count(name) == 2
