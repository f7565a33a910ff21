"""examples/recipes: each script in its smallest form, as a user runs it, in a checkout that has a .venv already."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_commands import forked_python

ROOT = Path(__file__).resolve().parents[2]
STEMS = sorted(file.stem for file in (ROOT / "examples" / "recipes").glob("*.sh"))
TINY = {"SIZE": "4", "STEPS": "1", "BATCH_SIZE": "4"}
UNVALIDATED = "trainer.val_before_train=false"
STAMP = "cat pyproject.toml scripts/setup.sh scripts/flash_attn.sh | cksum > .venv/.installed"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tree as a user has it: scripts and examples, and a .venv that set-up takes for complete, so that it installs nothing."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "examples", "eval", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("eval_result", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "r1ranker").symlink_to(ROOT / "r1ranker")
    (root / ".venv" / "bin").mkdir(parents=True)
    subprocess.run(["bash", "-c", STAMP], cwd=root, check=True)
    with forked_python(root / ".venv" / "bin"):
        yield root


def run(root: Path, recipe: str, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe from elsewhere than its checkout; fails showing its output where it ends with another code."""
    command = ["bash", str(root / "examples" / "recipes" / f"{recipe}.sh"), *arguments]
    environment = os.environ | TINY | variables
    done = subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "installing" not in done.stdout
    return done


def left_behind(root: Path, printed: str) -> dict[str, Path]:
    """What the last lines say is where, each of which is there: {"report": path}."""
    said: dict[str, Path] = {}
    for line in reversed(printed.splitlines()):
        match = re.fullmatch(r"([\w ,]+): (\S+)", line)
        if match is None:
            break
        said[match[1]] = root / match[2]
        assert said[match[1]].exists(), line
    assert said
    return said


def steps_of(run_directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["step"] > 0]


def results_in(directory: Path) -> dict[str, dict]:
    """{name of the ranker's directory: its result}."""
    files = [file for file in directory.glob("*.json") if not file.name.endswith(".timing.json")]
    results = [json.loads(file.read_text()) for file in files]
    return {Path(result["model"].removesuffix("/actor")).name: result for result in results}


@pytest.fixture(scope="module")
def dranker(checkout: Path) -> str:
    """What dranker_grpo.sh prints."""
    sizes = ("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
    return run(checkout, "dranker_grpo", *sizes, UNVALIDATED).stdout


@pytest.fixture(scope="module")
def base(checkout: Path, dranker: str) -> str:
    """A tiny model for the other recipes, seen from the checkout."""
    assert (checkout / "checkpoints/recipes/dranker_grpo/base").is_dir()
    return "checkpoints/recipes/dranker_grpo/base"


@pytest.fixture(scope="module")
def iranker(checkout: Path, base: str) -> str:
    """What iranker_ppo.sh prints."""
    return run(checkout, "iranker_ppo", UNVALIDATED, BASE_MODEL=base).stdout


def test_dranker_grpo(checkout: Path, dranker: str) -> None:
    said = left_behind(checkout, dranker)
    (step,) = steps_of(said["DRanker"].parent)
    assert "critic/vf_loss" not in step
    results = results_in(said["every ranking"])
    assert set(results) == {"base", "dranker_grpo"}
    assert all(result["settings"]["strategy"] == "direct" for result in results.values())
    assert "mean over all test queries" in dranker


def test_iranker_ppo(checkout: Path, iranker: str) -> None:
    said = left_behind(checkout, iranker)
    (step,) = steps_of(said["IRanker"].parent)
    assert step["critic/vf_loss"] > 0
    results = results_in(said["every ranking"])
    assert set(results) == {"base", "iranker_ppo"}
    assert all(result["settings"]["strategy"] == "iterative" for result in results.values())


def test_labels_on_a_laptop(checkout: Path, base: str) -> None:
    printed = run(checkout, "labels_on_a_laptop", UNVALIDATED, BASE_MODEL=base).stdout
    said = left_behind(checkout, printed)
    assert len(steps_of(said["IRanker by labels"].parent)) == 1
    for result in results_in(said["every ranking"]).values():
        assert result["settings"]["answer_format"] == {"answer_style": "label", "think": False}
        assert all(task["valid_answer_rate"] == 1 for task in result["tasks"].values())


@pytest.mark.parametrize(("source", "task"), [("support.jsonl", "Support-Articles"), ("plants.csv", "Plants")])
def test_own_data(checkout: Path, base: str, source: str, task: str) -> None:
    variables = {"BASE_MODEL": base}
    if source == "plants.csv":
        variables |= {
            "SOURCE": f"examples/own_data/{source}",
            "TEMPLATE": "",
            "TASK": task,
            "OUTPUT": "checkpoints/recipes/plants",
        }
    said = left_behind(checkout, run(checkout, "own_data", UNVALIDATED, **variables).stdout)
    assert len(steps_of(said["ranker"].parent)) == 1
    (result,) = results_in(said["every ranking"]).values()
    assert set(result["tasks"]) == {task}
    assert "BM25" in result["tasks"][task]["baselines"]
    assert task in said["curves, results and examples"].read_text()


def test_published_4_gpus(checkout: Path, base: str) -> None:
    sizes = (
        "data.train_batch_size=4",
        "data.max_response_length=8",
        "data.val_max_samples=2",
        "trainer.test_freq=-1",
        UNVALIDATED,
    )
    variables = {"N_GPUS": "2", "BASE_MODEL": base, "ENGINE": "hf", "DATASET": "Rec-Movie", "LIMIT": "1"}
    source = "checkpoints/recipes/dranker_grpo/data/bench"
    printed = run(checkout, "published_4_gpus", *sizes, SOURCE=source, **variables).stdout
    said = left_behind(checkout, printed)
    assert said["ranker"] == checkout / "checkpoints/Ranking-FM/iterative_ranking/actor"
    (step,) = steps_of(said["ranker"].parent)
    assert step["critic/vf_loss"] > 0
    (result,) = results_in(said["every ranking"]).values()
    assert result["settings"]["answer_format"] == {"answer_style": "name", "think": True}
    assert said["curves, results and examples"].stat().st_size > 0


def test_evaluate_with_baselines(checkout: Path, dranker: str, iranker: str) -> None:
    printed = run(checkout, "evaluate_with_baselines", "--limit", "2", DATASET="Rec-Movie").stdout
    said = left_behind(checkout, printed)
    results = results_in(said["every ranking"].parent)
    assert set(results) == {"dranker_grpo", "iranker_ppo"}
    for name in (*results, "most frequent label", "popularity", "BPR", "BM25", "TF-IDF"):
        assert name in printed
    assert "iranker_ppo against dranker_grpo, MRR over all queries: p =" in printed
    assert "Rec-Movie" in said["report"].read_text()


def test_evaluate_with_baselines_says_what_to_run_first(checkout: Path) -> None:
    missing = "checkpoints/recipes/nothing_there/actor"
    done = run(checkout, "evaluate_with_baselines", code=2, MODEL_PATH=missing)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {missing} is not there; run bash examples/recipes/nothing_there.sh first")


def test_every_recipe_has_a_test_and_a_line_in_the_readme() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    for stem in STEMS:
        assert f"test_{stem}" in globals(), stem
        assert f"{stem}.sh" in listed, stem
