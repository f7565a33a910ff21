"""What README.md shows is run as it stands."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from r1ranker.cli import app
from r1ranker.data.files.parquet import read_training_rows
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.pretrained import SETTINGS_FILE
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.fit import fit

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(document: Path, name: str) -> list[list[str]]:
    """The `name` commands in a document's bash blocks, taken apart."""
    text = "".join(re.findall(r"^```bash\n(.*?)^```", document.read_text(), flags=re.DOTALL | re.MULTILINE))
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(name)]


def prepared(arguments: list[str], output: Path) -> None:
    """Run `r1ranker prepare`, as shown, into `output`."""
    arguments = [str(ROOT / one) if one.startswith("examples/") else one for one in arguments]
    arguments[arguments.index("--output") + 1] = str(output)
    app(arguments, standalone_mode=False)


def test_own_data_and_own_reward_train_and_are_evaluated(tiny_model: str, tmp_path: Path) -> None:
    (prepare,) = (words for words in commands(ROOT / "README.md", "r1ranker") if words[0] == "prepare")
    prepared(prepare, tmp_path / "support")
    _, reward = blocks("python")
    (tmp_path / "my_reward.py").write_text(reward)
    for mode in ("iterative", "direct"):
        overrides = [
            f"data.train_files={tmp_path}/support/{mode}_ranking/train.parquet", f"data.val_files={tmp_path}/support/{mode}_ranking/test.parquet",
            f"actor_rollout_ref.model.path={tiny_model}", "data.train_batch_size=4", "data.think=false",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.val_before_train=false", "trainer.total_training_steps=1",
            f"custom_reward_function.path={tmp_path}/my_reward.py", "custom_reward_function.name=brief", f"trainer.default_local_dir={tmp_path}/{mode}",
        ]  # fmt: skip
        actor = fit(load_config("quickstart", overrides))
        last = json.loads((tmp_path / mode / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["reward/brevity/mean"] < 0
        options = EvaluationOptions(str(tmp_path / "support" / "bench"), output_dir=str(tmp_path / "eval"))
        (report,) = run_evaluation("all", actor, options)
        assert list(report["tasks"]) == ["Support-Articles"]
        figures = report["tasks"]["Support-Articles"]
        assert set(figures["metrics"]) == {"mrr", "hit@1", "hit@3", "hit@5", "ndcg@1", "ndcg@3", "ndcg@5"}
        for one in figures["rankings"]:  # graded: the second best article counts as well
            gains = [2 ** one["grades"][name] - 1 for name in one["ranking"]]
            assert sorted(gains) == [0, 0, 0, 1, 3]
        mean = np.mean([ndcg(one) for one in figures["rankings"]])
        assert figures["metrics"]["ndcg@5"]["mean"] == pytest.approx(mean)


def ndcg(one: dict) -> float:
    gains = [[2 ** one["grades"][name] - 1 for name in one["ranking"]]]
    return float(ndcg_score(gains, [range(5, 0, -1)], k=5))


def test_requests_are_ranked_from_the_shell_and_from_python(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actor, model = "checkpoints/quickstart/iterative/actor", tmp_path / "actor"
    shutil.copytree(tiny_model, model)
    asked = {"strategy": "iterative", "answer_style": "name", "think": False, "constrain": "candidates"}
    (model / SETTINGS_FILE).write_text(
        json.dumps(asked | {"max_response_length": 64})
    )  # as the quick start's actor has it
    (shell,) = (block for block in blocks("bash") if "r1ranker rank" in block)
    request, command = (shlex.split(part, comments=True) for part in shell.split("|"))
    assert (request[0], command[:2]) == ("echo", ["r1ranker", "rank"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(request[1].encode()), encoding="utf-8"))
    app([str(model) if word == actor else word for word in command[1:]], standalone_mode=False)
    line = json.loads(capsys.readouterr().out)
    candidates = json.loads(request[1])["candidates"]
    assert [candidates[index] for index in line["indices"]] == line["ranking"]
    python, _ = blocks("python")
    assert actor in python
    names: dict[str, Any] = {}
    exec(python.replace(actor, str(model)), names)
    assert list(names["result"].ranking) == line["ranking"]
    assert len(names["result"].out_in_round) == len(candidates) - 1


def test_every_command_of_the_data_document_prepares(tmp_path: Path) -> None:
    others = {"DIR", "data/wikiqa.jsonl"}  # what a user brings
    every = commands(ROOT / "docs" / "data.md", "r1ranker")
    found = [words for words in every if words[0] == "prepare" and not others.intersection(words)]
    assert len(found) == 5
    for number, arguments in enumerate(found):
        prepared(arguments, tmp_path / str(number))
        for mode in ("direct", "iterative"):
            directory = tmp_path / str(number) / f"{mode}_ranking"
            card = (directory / "README.md").read_text()
            manifest = json.loads((directory / "manifest.json").read_text())["files"]
            for split in ("train", "test"):
                rows = list(read_training_rows([str(directory / f"{split}.parquet")]))
                assert manifest[f"{split}.parquet"]["rows"] == len(rows) > 0
                assert f"| {split}.parquet | {len(rows):,} |" in card
