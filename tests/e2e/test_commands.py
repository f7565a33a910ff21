"""The commands that users type, as they type them: each in a process of its own, from data to an evaluated model."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.toy_raw import write_toy_raw
from r1ranker.evaluation.results import result_files
from r1ranker.quickstart import COURSES, build_base
from r1ranker.quickstart import run as quickstart
from r1ranker.tasks.catalog import TASK_NAMES

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = 'Jürgen\'s 数据 (v=1), [a] {b: c} #1 ~!$HOME "q" ${x} %s a\\'
"""the name of a directory with what means something to a shell, hydra, OmegaConf, YAML, a glob pattern or a format string"""
PUBLISHED = {
    "N_GPUS": "2",
    "BASE_MODEL": "Qwen/Qwen2.5-3B-Instruct",
    "DATA_DIR": "data/iterative_ranking",
    "ROLLOUT_TP_SIZE": "1",
    "EXPERIMENT_NAME": "iterative_ranking",
}


def call(*command: str, cwd: Path | None = None, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `variables` set; fails showing its output where it ends with another code."""
    inherited = {name: value for name, value in os.environ.items() if name not in PUBLISHED}
    environment = inherited | {"COLUMNS": "200"} | variables
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_missing_variable_is_named_with_an_example(name: str) -> None:
    given = {key: value for key, value in PUBLISHED.items() if key != name}
    error = call("bash", "scripts/Ranking_FM.sh", cwd=ROOT, code=2, **given).stderr
    assert error.startswith(f"error: the variable {name} is not set; for example: export {name}=")
    assert len(error.splitlines()) == 1


def test_the_published_commands_lead_from_data_to_an_evaluated_model(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    tmp_path = tmp_path / HOSTILE
    shutil.copytree(tiny_model, tmp_path / "model")
    for mode in ("direct", "iterative"):
        script = str(ROOT / "examples" / "data_preprocess" / f"{mode}_data_generation.py")
        printed = call(sys.executable, script, "--source", str(toy / "bench"), cwd=tmp_path).stdout
        assert f"data/{mode}_ranking" in printed
        assert all(task in printed for task in TASK_NAMES)
        for split in ("train", "test"):
            rows = pd.read_parquet(tmp_path / "data" / f"{mode}_ranking" / f"{split}.parquet")
            assert len(rows) == len(pd.read_parquet(toy / "bench" / mode / f"{split}.parquet"))
    overrides = [
        "data.train_batch_size=8", "data.max_response_length=24", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "data.val_max_samples=9", "trainer.total_training_steps=2", "trainer.test_freq=-1",
    ]  # fmt: skip
    variables = PUBLISHED | {
        "BASE_MODEL": str(tmp_path / "model"),
        "DATA_DIR": str(tmp_path / "data" / "iterative_ranking"),
        "EXPERIMENT_NAME": "1e3",
    }
    call("bash", str(ROOT / "scripts" / "Ranking_FM.sh"), *overrides, cwd=tmp_path, **variables)
    run = tmp_path / "checkpoints" / "Ranking-FM" / "1e3"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert steps[-1]["rollout/logprob_diff_max"] < 1e-4
    assert steps[-1]["critic/vf_loss"] > 0

    actor = run / "actor"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in actor.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(actor)
    tokens = AutoTokenizer.from_pretrained(actor)("Which film?", return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**tokens).logits).all()
    printed = call(
        sys.executable, str(ROOT / "eval" / "eval.py"), "--dataset", "Rec-Movie", "--model_path", str(actor),
        "--data", str(toy / "bench"), "--limit", "2", cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "Rec-Movie: 2 queries, iterative" in printed
    (result,) = result_files(tmp_path / "eval" / "eval_result")
    report = json.loads(result.read_text())
    assert report["settings"]["answer_format"] == {"answer_style": "name", "think": True}
    assert 0 < report["tasks"]["Rec-Movie"]["metrics"]["mrr"]["mean"] <= 1


def test_the_scripts_of_the_sources_build_the_benchmarks_layout(tmp_path: Path) -> None:
    write_toy_raw(str(tmp_path / "raw"))
    rec = tmp_path / "raw" / "rec" / "ml-1m"
    given = {
        "recommendation": [
            "--task",
            "Rec-Movie",
            "--inter",
            f"{rec}.inter",
            "--item",
            f"{rec}.item",
            "--history",
            "10",
        ],
        "routing": [
            "--router_data",
            str(tmp_path / "raw" / "router" / "router_data.csv.gz"),
            "--task",
            "Router-Balance",
        ],
        "passage": ["--source", str(tmp_path / "raw" / "passage"), "--task", "Passage-9"],
    }
    for name, arguments in given.items():
        script = ROOT / "examples" / "data_preprocess" / "dataset" / f"{name}.py"
        done = call("python", str(script), *arguments, "--local_dir", str(tmp_path / name))
        assert "iterative train" in " ".join(done.stdout.split())
        for config in ("direct", "iterative"):
            rows = [one for _, one in read_ranking_bench(str(tmp_path / name), config, "test")]  # type: ignore[arg-type]
            assert {one.task for one in rows} <= {"Rec-Movie", "Router-Balance", "Passage-9"}
            assert all(len(one.history) == 10 for one in rows if one.history)
    wrong = call("python", str(script), "--source", str(tmp_path / "nowhere"), code=2)
    assert (
        wrong.stderr.strip()
        == f"error: {tmp_path / 'nowhere'}: no train*.parquet; MS MARCO's parquet files of both splits are wanted"
    )


def test_the_quick_start_goes_from_nothing_to_two_evaluated_rankers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tmp_path = tmp_path / HOSTILE
    quickstart(tmp_path, steps=1, sft_steps=2, size=16)
    printed = capsys.readouterr().out
    rankers = ("IRanker, before", "IRanker, after", "DRanker, before", "DRanker, after")
    for row in (*rankers, "random", "order as given", "most frequent label"):
        assert re.search(rf"^ *{row} +[\d.]+ \[[\d.]+, [\d.]+\] ", printed, flags=re.MULTILINE), row
    assert "so the most frequent label does not solve it: MRR " in printed
    assert "DRanker learnt from rewards alone: " in printed
    page = (tmp_path / "report.html").read_text()
    assert "2 training runs, 4 evaluation results, 6 tasks" in page
    assert 'class="paper"' not in page
    untrained, base = ((tmp_path / name / "model.safetensors") for name in ("untrained", "base"))
    assert base.read_bytes() != untrained.read_bytes()
    build_base(tmp_path, 0, Console())  # without a cold start it is the model of random weights
    assert base.read_bytes() == untrained.read_bytes()
    for mode in ("iterative", "direct"):
        assert (tmp_path / mode / "actor" / "model.safetensors").is_file()
        assert str(tmp_path / mode / "actor") in printed.replace("\n", "")


def test_the_quick_start_trains_a_pretrained_model_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_model: str
) -> None:
    """With a stand-in for the model, which is fetched."""

    def fetch(source: str, output: Path) -> str:
        shutil.copytree(tiny_model, output)
        return f"{source} from here"

    monkeypatch.setattr("r1ranker.model.fetch.fetch_model", fetch)
    monkeypatch.setattr("r1ranker.quickstart.EVALUATED", 3)
    quickstart(tmp_path, steps=1, sft_steps=0, size=32, course=COURSES["smollm2"])
    printed = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct from here" in printed
    for row in (
        "DRanker, before",
        "DRanker, after",
        "random",
        "BM25",
        "TF-IDF",
        r"query likelihood \(DRanker, before\)",
    ):
        assert re.search(rf"^ *{row} +[\d.]+ \[[\d.]+, [\d.]+\] ", printed, flags=re.MULTILINE), row
    assert "so BM25 solves only a part: MRR " in printed
    about = json.loads((tmp_path / "direct" / "actor" / "r1ranker.json").read_text())
    assert about["base_model"] == str(tmp_path / "untrained")
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "iterative").exists()


def test_wikiqas_files_become_rows(tmp_path: Path) -> None:
    script, source = str(ROOT / "examples" / "data_preprocess" / "dataset" / "wikiqa.py"), tmp_path / "raw"
    source.mkdir()
    lines = {
        question: [f"{question}\tA sentence {place} on {question}.\t{int(place == right)}" for place in range(6)]
        for question, right in (("who", 2), ("where", 0), ("why", 9))
    }
    long = f"how\t{'long ' * 90}\t1"
    text = "\n".join([*lines["who"], *lines["where"], *lines["why"], long, "how\tshort\t0"]) + "\n"
    (source / "WikiQA-train.txt").write_text(text)
    with gzip.open(source / "WikiQA-test.txt.gz", "wt") as file:
        file.write(text)
    output = tmp_path / "rows.jsonl"
    printed = call(sys.executable, script, "--source", str(source), "--output", str(output), "--pools", "3").stdout
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    tests = [row for row in rows if row["split"] == "test"]
    assert re.findall(r"(\w+): 2 questions", printed) == ["train", "test"]
    assert [(row["query"], row["positive"]) for row in tests] == [
        ("who", "A sentence 2 on who."),
        ("where", "A sentence 0 on where."),
    ]
    assert all(len(row["candidates"]) == 5 and row["positive"] in row["candidates"] for row in tests)
    training = [row for row in rows if row["split"] == "train"]
    assert {len(row["candidates"]) for row in training} == {5}
    assert len({frozenset(row["candidates"]) for row in training}) == len(training) >= 4
    few = tmp_path / "few.jsonl"
    call(sys.executable, script, "--source", str(source), "--output", str(few), "--train_sentences", "2")
    pairs = [row for row in map(json.loads, few.read_text().splitlines()) if row["split"] == "train"]
    assert {len(row["candidates"]) for row in pairs} == {2}
    (source / "WikiQA-train.txt").write_text("who\twhat\n")
    wrong = call(sys.executable, script, "--source", str(source), "--output", str(output), code=2)
    assert "WikiQA-train.txt: line 1: question, sentence and 0 or 1 are wanted" in wrong.stderr
    assert len(output.read_text().splitlines()) == len(rows)


def test_help_names_every_command() -> None:
    printed = call(sys.executable, "-m", "r1ranker.cli", "--help").stdout
    for command in ("prepare", "init-model", "sft", "train", "eval"):
        assert command in printed
