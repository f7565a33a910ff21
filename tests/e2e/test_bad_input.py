"""Bad input through the real commands: one line that names what is wrong, exit code 2, and nothing written or lost."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.cli import main as r1ranker_main
from r1ranker.errors import exit_on_user_error
from r1ranker.model.init import ModelSize, init_model
from r1ranker.quickstart import main as quickstart_main

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "problem": ["Which film?", "Which film now?"],
    "candidates": [["Alpha", "Beta", "Gamma"], ["Alpha", "Delta"]],
    "gt": ["Alpha", "Delta"],
    "task_name": ["Rec-Movie", "Rec-Movie"],
}


@dataclass
class Place:
    """What a case may use: a directory of its own, data and a model that are in order."""

    here: Path
    toy: Path
    model: str

    def bench(self, **changes: Any) -> str:
        """A directory in Ranking-bench's layout whose iterative training rows are GOOD with some columns changed."""
        for mode in ("direct", "iterative"):
            for split in ("train", "test"):
                (self.here / mode).mkdir(exist_ok=True)
                columns = GOOD | (changes if (mode, split) == ("iterative", "train") else {})
                table = pa.table({name: values for name, values in columns.items() if values is not None})
                pq.write_table(table, self.here / mode / f"{split}.parquet")
        return str(self.here)

    def cut_bench(self) -> str:
        """The same, with the iterative training rows cut short."""
        file = Path(self.bench()) / "iterative" / "train.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        return str(self.here)

    def copied_model(self, without: str = "", **contents: bytes) -> str:
        """The model, less a file, or with other contents in one."""
        target = self.here / "model"
        shutil.copytree(self.model, target)
        for file in target.glob(without) if without else ():
            file.unlink()
        for name, content in contents.items():
            (target / name.replace("_safetensors", ".safetensors").replace("_json", ".json")).write_bytes(content)
        return str(target)

    def other_model(self) -> str:
        """A model whose tokenizer was trained on other rows."""
        size = ModelSize(32, 1, 1, 1)
        init_model(str(self.here / "other"), [self.training("direct")], size, vocab_size=300)
        return str(self.here / "other")

    def file(self, name: str, content: bytes = b"nothing that can be read") -> str:
        (self.here / name).write_bytes(content)
        return str(self.here / name)

    def directory(self, name: str) -> Path:
        (self.here / name).mkdir(parents=True)
        return self.here / name

    def training(self, mode: str = "iterative") -> str:
        return str(self.toy / f"{mode}_ranking" / "train.parquet")


Command = Callable[[Place], list[str]]


def data(source: Callable[[Place], str], local_dir: str = "out") -> Command:
    """python examples/data_preprocess/iterative_data_generation.py"""
    return lambda place: ["data", "--source", source(place), "--local_dir", str(place.here / local_dir)]


def train(
    *overrides: str | Callable[[Place], str], model: Callable[[Place], str] = lambda place: place.model
) -> Command:
    """r1ranker train, with data and a model that are in order unless an override says otherwise."""

    def command(place: Place) -> list[str]:
        named = [
            f"data.train_files={place.training()}",
            f"actor_rollout_ref.model.path={model(place)}",
            "trainer.val_before_train=false",
            f"trainer.default_local_dir={place.here / 'out'}",
        ]
        more = [one if isinstance(one, str) else one(place) for one in overrides]
        return ["r1ranker", "train", "--config-name", "quickstart", *named, *more]

    return command


def evaluate(*arguments: str | Callable[[Place], str]) -> Command:
    """python eval/eval.py, with what is in order first; of an option that takes one value the last counts."""

    def command(place: Place) -> list[str]:
        named = ["--dataset", "Rec-Movie", "--model_path", place.model, "--data", str(place.toy / "bench")]
        more = [one if isinstance(one, str) else one(place) for one in arguments]
        return ["eval", *named, "--output_dir", str(place.here / "out"), *more]

    return command


CASES: dict[str, tuple[Command, tuple[str, ...]]] = {
    # preparing data
    "no such directory": (data(lambda p: str(p.here / "gone")), ("gone", "no such directory", "hub id")),
    "a file for a directory": (data(lambda p: p.file("a.parquet")), ("a.parquet", "no such directory")),
    "no such file": (data(lambda p: str(p.toy)), ("iterative/train.parquet", "no such file")),
    "not parquet": (data(lambda p: p.cut_bench()), ("iterative/train.parquet", "not a parquet file, or cut short")),
    "empty parquet": (
        data(lambda p: p.bench(**{name: pa.array([], pa.list_(pa.string()) if name == "candidates" else pa.string()) for name in GOOD})),
        ("train.parquet", "no rows", "at least one"),
    ),
    "missing column": (data(lambda p: p.bench(gt=None, gtt=["a", "b"])), ("no column 'gt'", "did you mean 'gtt'", "problem")),
    "column of another type": (data(lambda p: p.bench(candidates=["Alpha", "Delta"])), ("'candidates'", "string", "a list of texts")),
    "null": (data(lambda p: p.bench(gt=["Alpha", None])), ("row 1", "gt is null")),
    "no candidates": (data(lambda p: p.bench(candidates=[["Alpha"], []])), ("row 1", "candidates is empty")),
    "candidates twice": (data(lambda p: p.bench(candidates=[["Alpha", "Beta", "Alpha"], ["Delta"]])), ("row 0", "'Alpha' twice")),
    "positive elsewhere": (data(lambda p: p.bench(gt=["Alpha", "Omega"])), ("row 1", "'Omega' is not among the 2 candidates")),
    "blank candidate": (data(lambda p: p.bench(candidates=[["Alpha", " "], ["Delta"]])), ("row 0", "blank name")),
    "unknown task": (data(lambda p: p.bench(task_name=["Rec-Movie", "Rec-Movies"])), ("row 1", "Rec-Movies", "Router-Balance")),
    "output is a file": (data(lambda p: p.bench(), "model.txt/out"), ("model.txt", "cannot be written")),
    # building a model
    "impossible sizes": (
        lambda p: ["r1ranker", "init-model", str(p.here / "out"), "--data", p.training(), "--heads", "5"],
        ("--hidden-size 64 is not a multiple of --heads 5",),
    ),
    "model from no data": (
        lambda p: ["r1ranker", "init-model", str(p.here / "out"), "--data", str(p.here / "gone.parquet")],
        ("gone.parquet", "no such file"),
    ),
    "cold start from training rows": (
        lambda p: ["r1ranker", "sft", "--model", p.model, "--data", p.training(), "--output", str(p.here / "out")],
        ("no column 'completion'", "prompt"),
    ),
    # training
    "unknown key": (train("trainer.total_trainig_steps=3"), ("trainer.total_trainig_steps", "trainer.total_training_steps")),
    "value of another type": (train("data.train_batch_size=many"), ("data.train_batch_size", "many", "an integer is wanted")),
    "contradiction": (train("actor_rollout_ref.rollout.n=1"), ("rollout.n", "at least 2")),
    "unknown config": (lambda p: ["r1ranker", "train", "--config-name", "publishd"], ("publishd", "published")),
    "training file missing": (train(lambda p: f"data.train_files={p.here}/gone.parquet"), ("gone.parquet", "no such file")),
    "training file is a directory": (train(lambda p: f"data.train_files={p.here}"), ("found a directory",)),
    "training file of another layout": (
        train(lambda p: f"data.train_files={p.toy}/bench/direct/train.parquet"), ("no column 'data_source'", "found problem"),
    ),
    "training file cut short": (
        train(lambda p: f"data.train_files={p.file('cut.parquet', Path(p.training()).read_bytes()[:-200])}"),
        ("cut.parquet", "cut short"),
    ),
    "prompt over the limit": (
        train("data.max_prompt_length=150", "data.filter_overlong_prompts=false"),
        ("row ", "tokens", "data.max_prompt_length = 150", "data.filter_overlong_prompts=true"),
    ),
    "every prompt over the limit": (train("data.max_prompt_length=5"), ("all 2160 prompts", "data.max_prompt_length = 5")),
    "batch larger than the data": (train("data.train_batch_size=9600"), ("data.train_batch_size: 9600", "hold 2160")),
    "no such model": (train(model=lambda p: str(p.here / "gone")), ("gone", "no such model directory")),
    "model without tokenizer": (train(model=lambda p: p.copied_model("tokenizer.json")), ("without tokenizer", "tokenizer.json")),
    "model without weights": (train(model=lambda p: p.copied_model("*.safetensors")), ("no model.safetensors",)),
    "model without config": (train(model=lambda p: p.copied_model("config.json")), ("no config.json",)),
    "damaged weights": (train(model=lambda p: p.copied_model(model_safetensors=b"12345678 not weights")), ("model.safetensors", "damaged")),
    "damaged config": (train(model=lambda p: p.copied_model(config_json=b"{")), ("config.json",)),
    "critic of another vocabulary": (
        train(
            "algorithm.adv_estimator=gae",
            lambda p: f"critic.model.path={p.other_model()}",
        ),
        ("critic.model.path", "another vocabulary"),
    ),
    "no such reward file": (
        train(lambda p: f"custom_reward_function.path={p.here}/gone.py"), ("gone.py", "no such file"),
    ),
    "no such reward function": (
        train(lambda p: f"custom_reward_function.path={p.file('own.py', b'def score(): pass')}", "custom_reward_function.name=scor"),
        ("own.py", "scor"),
    ),
    "output of a run is a file": (
        train(lambda p: f"trainer.default_local_dir={p.file('taken')}", "trainer.total_training_steps=1"), ("taken",),
    ),
    # evaluation
    "unknown data set": (evaluate("--dataset", "Rec-Film"), ("Rec-Film", "Rec-Movie", "Router-Balance", "Passage-9")),
    "no rows wanted": (evaluate("--limit", "0"), ("--limit: found 0",)),
    "model to evaluate missing": (evaluate("--model_path", "./gone"), ("./gone", "no such model directory")),
    "data to evaluate missing": (evaluate("--data", "./gone"), ("./gone", "no such directory")),
    "router table missing": (evaluate("--router_data", "./gone.csv"), ("./gone.csv", "no such file")),
    "router table without a column": (
        evaluate("--router_data", lambda p: p.file("r.csv", b"task_id,query,llm,effect,price\na,q,m,1,1\n")),
        ("r.csv: line 1: no column 'cost'", "task_id,query,llm,effect,cost"),
    ),
    "router table for films": (
        evaluate("--router_data", lambda p: p.file("r.csv", b"task_id,query,llm,effect,cost\na,q,m,1,1\na,q,n,1,1\n")),
        ("--router_data: found Rec-Movie", "Router-Performance"),
    ),
    "damaged ranker settings": (
        evaluate("--model_path", lambda p: p.copied_model(r1ranker_json=b"{}")), ("r1ranker.json", "not the settings of a ranker"),
    ),
    "negative seed": (evaluate("--seed", "-1"), ("--seed: found -1",)),
    "results where a file is": (evaluate("--output_dir", lambda p: p.file("taken")), ("--output_dir", "taken")),
    "task without rows": (evaluate("--dataset", "Rec-Music", "--data", lambda p: p.bench()), ("no test rows of Rec-Music",)),
    # the quick start
    "no steps": (lambda p: ["quickstart", "--steps", "0", "--output", str(p.here / "out")], ("--steps: found 0",)),
    "fewer rows than a step's": (lambda p: ["quickstart", "--size", "5", "--output", str(p.here / "out")], ("--size: found 5", "at least 6")),
    "no output": (lambda p: ["quickstart", "--output", " "], ("--output: found nothing",)),
    "output of the quick start is a file": (lambda p: ["quickstart", "--output", p.file("taken")], ("taken", "a writable directory")),
    "output of the quick start below a file": (lambda p: ["quickstart", "--output", p.file("taken") + "/out"], ("taken", "a writable directory")),
    "a file where results go": (
        lambda p: ["quickstart", "--output", str(Path(p.file("eval")).parent)], ("found a file eval", "the place of a directory"),
    ),
    "a directory where the report goes": (
        lambda p: ["quickstart", "--output", str(p.directory("out/report.html").parent)], ("found a directory report.html",),
    ),
}  # fmt: skip


def invoke(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command as its script runs it, in this process."""
    name, *rest = arguments
    monkeypatch.setattr(sys, "argv", [name, *rest])
    if name == "r1ranker":
        r1ranker_main()
    elif name == "quickstart":
        exit_on_user_error(quickstart_main)
    else:
        script = {"data": "examples/data_preprocess/iterative_data_generation.py", "eval": "eval/eval.py"}[name]
        runpy.run_path(str(ROOT / script), run_name="__main__")


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(directory.rglob("*"))}


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_ends_with_one_line_and_code_2(
    name: str,
    toy: Path,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, wanted = CASES[name]
    (tmp_path / "model.txt").write_text("a file")
    monkeypatch.chdir(tmp_path)
    arguments = command(Place(tmp_path, toy, tiny_model))
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        invoke(arguments, monkeypatch)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2, error
    lines = error.splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    for part in wanted:
        assert part in lines[0], lines[0]
    assert snapshot(tmp_path) == before
