"""The paper's experiments in their smallest form, and a saved model in lm-evaluation-harness."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.errors import UserError
from r1ranker.evaluation.harness import run_harness
from r1ranker.evaluation.results import read_result, result_files
from r1ranker.experiments.run import run_experiment
from r1ranker.experiments.spec import BUILT_IN, keep_experiment, load_experiment
from r1ranker.experiments.summary import course_of

SMALL = (
    "steps=1", "cold_start=2", "data.size=16", "data.limit=2", "overrides=[data.max_response_length=24]",
)  # fmt: skip


@pytest.mark.parametrize("name", ["direct_iterative", "zero_shot", "model_sizes", "answers", "thinking"])
def test_an_experiment_ends_in_results_of_every_arm(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_experiment(name, SMALL)
    reports = run_experiment(experiment, tmp_path / name)
    assert list(reports) == [f"{label}, {when}" for label in experiment.arms for when in ("before", "after")]
    shown = capsys.readouterr().out
    for label, arm in experiment.arms.items():
        (before,), (after,) = reports[f"{label}, before"], reports[f"{label}, after"]
        assert before["settings"] == after["settings"]
        assert list(after["tasks"]) == (arm.test or experiment.data.tasks)
        assert after["settings"]["strategy"] == arm.mode
        assert f"{label}, after" in shown
        if arm.train:  # nothing of the tasks that are ranked was learnt from
            rows = (tmp_path / name / "data_of" / label / "iterative_ranking" / "README.md").read_text()
            assert not any(f"| {task} |" in rows for task in arm.test)
            assert all(f"| {task} |" in rows for task in arm.train)
    if name == "model_sizes":
        sizes = [
            (tmp_path / name / "seed_1" / label / "actor" / "model.safetensors").stat().st_size
            for label in experiment.arms
        ]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == 3
    built = sorted(path.parent.name for path in (tmp_path / name).rglob("untrained"))
    assert built == (sorted(experiment.arms) if name == "model_sizes" else ["seed_1"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*") if path.is_file()}
    assert run_experiment(experiment, tmp_path / name) == reports  # a second call does nothing again
    again = {path: path.stat().st_mtime_ns for path in files}
    assert {path for path in files if files[path] != again[path]} == {
        tmp_path / name / kept for kept in ("experiment.yaml", "summary.json", "summary.md")
    }
    with pytest.raises(UserError, match="another experiment's results are there"):
        run_experiment(load_experiment(name, [*SMALL, "engine=vllm"]), tmp_path / name)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "zero",
            [],
            "zero: no such experiment; there are algorithms, answers, conversation, credit, direct_iterative, losses, model_sizes, nine, out_of_domain, passages, rank_ratio, reading, rec_game, rec_movie, rec_movie_1m, rec_music, robustness, routing, routing_merits, thinking, zero_shot, zero_shot_language",
        ),
        ("zero_shot", ["stps=1"], "Key 'stps' not in 'Experiment'"),
        ("zero_shot", ["steps=many"], "Value 'many'"),
        ("zero_shot", ["arms.to_routing.mode=sideways"], "arms.to_routing.mode: found 'sideways'"),
        ("zero_shot", ["data.tasks=[Rec-Movie]"], "is not among data.tasks"),
        ("rec_movie", [], r"rec_movie.yaml: data.source: found none; data.source=DIR is wanted"),
        ("zero_shot", ["seeds=[1,1]"], "seeds: found .1, 1.; distinct numbers are wanted"),
        ("zero_shot", ["data.options={usres: 3}"], r"data.options: no 'usres' .did you mean 'users'.. of prepare's"),
        ("zero_shot", ["arms.to_routing.trained_as=to_passages"], "an arm before it is wanted"),
        (
            "zero_shot",
            ["arms.to_routing.begun_as=to_passages"],
            "begun_as: found 'to_passages'; an arm before it is wanted",
        ),
        (
            "zero_shot",
            ["arms.to_routing.begun_as=to_recommendation", "arms.to_routing.model={vocab_size: 500}"],
            "begun_as: found a trained_as or a model beside it",
        ),
        ("thinking", ["cold_start=0"], "arms.at_once_taught.teacher: of no use without a cold start"),
        ("zero_shot", ["arms.to_routing.elimination={vote: 3}"], "elimination: .*vote"),
    ],
)
def test_what_is_no_experiment_is_refused(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment(name, overrides)
    assert {path.stem for path in BUILT_IN.glob("*.yaml")} == {
        "algorithms",
        "answers",
        "conversation",
        "credit",
        "direct_iterative",
        "losses",
        "model_sizes",
        "nine",
        "out_of_domain",
        "passages",
        "rank_ratio",
        "reading",
        "rec_game",
        "rec_movie",
        "rec_movie_1m",
        "rec_music",
        "robustness",
        "routing",
        "routing_merits",
        "thinking",
        "zero_shot",
        "zero_shot_language",
    }


def test_results_of_an_earlier_version_are_gone_on_with_and_of_another_experiment_are_not(tmp_path: Path) -> None:
    experiment, file = load_experiment("answers"), tmp_path / "experiment.yaml"
    keep_experiment(experiment, file)
    whole = file.read_text()
    kept: Any = OmegaConf.to_container(OmegaConf.load(file))
    del kept["baselines"], kept["model"]["title_words"], kept["arms"]["direct_names"]["elimination"]
    OmegaConf.save(kept, file)
    keep_experiment(experiment, file)  # what is not there is at its default
    assert file.read_text() == whole
    keep_experiment(load_experiment("answers", ["seeds=[1,2]"]), file)
    changes: list[dict[str, object]] = [{"steps": 81}, {"gone": 1}, {"arms": kept["arms"] | {"third": {}}}]
    for change in changes:
        OmegaConf.save(kept | change, file)
        with pytest.raises(UserError, match="another experiment's results are there"):
            keep_experiment(experiment, file)
    OmegaConf.save(kept, file)
    with pytest.raises(UserError, match="another experiment's results are there"):
        keep_experiment(load_experiment("answers", ["model.title_words=true"]), file)


def test_seeds_are_averaged_and_compared_with_baselines_query_by_query(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        """
title: two seeds
steps: 4
cold_start: 0
seeds: [1, 2]
overrides: [trainer.save_freq=1, trainer.total_training_steps=5]
baselines: true
curve: 3
course: 2
data: {source: toy, size: 16, tasks: [Rec-Movie, Router-Cost], limit: 5}
arms:
  one: {mode: iterative, overrides: [trainer.total_training_steps=3]}
  two_out: {trained_as: one, elimination: {eliminate: 2}}
"""
    )
    output = tmp_path / "out"
    reports = run_experiment(load_experiment(str(tmp_path / "own.yaml")), output)
    assert {label: len(found) for label, found in reports.items()} == {
        "one, before": 2,
        "one, after": 2,
        "two_out, after": 2,
    }
    models = [output / f"seed_{seed}" / "one" / "actor" / "model.safetensors" for seed in (1, 2)]
    assert models[0].read_bytes() != models[1].read_bytes()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["queries"] == {"Rec-Movie": 5, "Router-Cost": 5}
    for label, found in reports.items():
        ranker = summary["rankers"][label]
        seeds = [report["pooled"]["metrics"]["mrr"]["mean"] for report in found]
        assert ranker["mrr by seed"] == seeds
        assert ranker["all"]["mrr"]["mean"] == pytest.approx(sum(seeds) / 2)
        assert ranker["all"]["mrr"]["low"] <= ranker["all"]["mrr"]["mean"] <= ranker["all"]["mrr"]["high"]
    rankers = summary["rankers"]
    assert rankers["two_out, after"]["calls_per_query"] < rankers["one, after"]["calls_per_query"]
    assert rankers["one, after"]["training_tokens"] > 0
    assert rankers["two_out, after"]["training_tokens"] is None
    for seed, points in enumerate(summary["curves"]["one"], start=1):
        assert [point["step"] for point in points] == [0, 1, 2, 3]
        assert [point["tokens"] for point in points] == sorted(point["tokens"] for point in points)
        lines = (output / f"seed_{seed}" / "one" / "metrics.jsonl").read_text().splitlines()
        spent = [json.loads(line) for line in lines]
        assert points[-1]["tokens"] == sum(line.get("perf/total_num_tokens", 0) for line in spent)
        assert points[-1]["seconds"] == pytest.approx(sum(line.get("timing_s/step", 0) for line in spent))
        # the last state is the trained actor: the same rankings on the same rows
        last = read_result(str(result_files(output / f"seed_{seed}" / "eval" / "one" / "step_3")[0]))
        assert points[-1]["mrr"] == last["pooled"]["metrics"]["mrr"]["mean"]
        whole = reports["one, after"][seed - 1]
        for task, found in last["tasks"].items():
            rankings = {(*one["history"], one["query"]): one["ranking"] for one in whole["tasks"][task]["rankings"]}
            assert len(found["rankings"]) == 3
            assert all(rankings[(*one["history"], one["query"])] == one["ranking"] for one in found["rankings"])
    runs = [output / f"seed_{seed}" / "one" / "metrics.jsonl" for seed in (1, 2)]
    entropy = [
        [json.loads(line)["actor/entropy"] for line in run.read_text().splitlines() if "actor/entropy" in line]
        for run in runs
    ]
    parts = summary["courses"]["one"]
    assert [part["step"] for part in parts] == [1, 3]
    assert [part["entropy"] for part in parts] == [
        [pytest.approx(one[0]) for one in entropy],
        [pytest.approx((one[1] + one[2]) / 2) for one in entropy],
    ]
    assert "| one, up to step | reward | valid answers | entropy |" in (output / "summary.md").read_text()
    assert "| one, step | MRR |" in (output / "summary.md").read_text()
    assert set(summary["baselines"]["nearest queries"]["mrr by task"]) == {"Router-Cost"}
    # of pooled queries the random baseline's mean is known, and so is each difference
    random = summary["baselines"]["random"]["all"]["mrr"]["mean"]
    assert random == pytest.approx(sum(1 / k for k in range(1, 11)) / 10)
    pairs = {(one["first"], one["second"]): one for one in summary["tests"]}
    against = pairs["one, after", "random"]
    assert against["difference"] == pytest.approx(rankers["one, after"]["all"]["mrr"]["mean"] - random)
    assert 0 < against["p"] <= 1
    assert pairs["one, after", "nearest queries"]["tasks"] == ["Router-Cost"]
    assert ("two_out, after", "one, after") in pairs
    assert "| one, after | " in (output / "summary.md").read_text()


def test_side_by_side_experiments_find_the_same_and_a_failure_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        """
title: side by side
steps: 2
cold_start: 2
seeds: [1, 2]
data: {source: toy, size: 16, tasks: [Rec-Movie], limit: 5}
arms:
  one: {overrides: &free [actor_rollout_ref.rollout.constrain=none, data.max_response_length=8]}
  two_out: {trained_as: one, elimination: {eliminate: 2}}
  further: {begun_as: two_out, steps: 1, overrides: *free}
"""
    )
    run_experiment(load_experiment(str(tmp_path / "own.yaml"), ["seeds=[1]"]), tmp_path / "alone")
    alone = run_experiment(load_experiment(str(tmp_path / "own.yaml")), tmp_path / "alone")  # a seed more
    beside = run_experiment(load_experiment(str(tmp_path / "own.yaml")), tmp_path / "beside", jobs=2)
    assert list(alone) == list(beside)
    for label, reports in alone.items():
        for one, other in zip(reports, beside[label], strict=True):
            assert one["settings"]["constrain"] == "none"  # measured as it was trained
            assert one["settings"]["max_tokens"] == 8
            assert one["tasks"]["Rec-Movie"]["rankings"] == other["tasks"]["Rec-Movie"]["rankings"]
    assert "one, seed 1" in (tmp_path / "beside" / "seed_1" / "one.log").read_text()
    for seed in (1, 2):
        actor = tmp_path / "beside" / f"seed_{seed}" / "one" / "actor"
        begun, after = alone["further, before"][seed - 1], alone["one, after"][seed - 1]
        assert begun["tasks"]["Rec-Movie"]["rankings"] == after["tasks"]["Rec-Movie"]["rankings"]
        about = json.loads((actor.parents[1] / "further" / "actor" / "r1ranker.json").read_text())
        assert about["base_model"] == str(actor)
    broken = load_experiment(
        str(tmp_path / "own.yaml"),
        ["seeds=[1]", "arms.one.overrides=[custom_reward_function.path=gone.py]", "arms.other={}"],
    )
    with pytest.raises(UserError, match=r"one, seed 1: .*gone\.py") as raised:
        run_experiment(broken, tmp_path / "broken", jobs=2)
    assert "other" not in str(raised.value).replace(str(tmp_path), "")
    assert {path.parent.parent.name for path in (tmp_path / "broken").glob("seed_*/other/actor/config.json")} == {
        "other"
    }
    assert len(result_files(tmp_path / "broken" / "seed_1" / "eval" / "other" / "after")) == 1


def test_a_course_is_told_of_steps_without_an_update_too(tmp_path: Path) -> None:
    lines = [
        {"step": step, "critic/score/mean": step / 10} | ({"actor/entropy": 2.0} if step != 3 else {})
        for step in range(1, 7)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = course_of([tmp_path, tmp_path], 3)
    assert [part["step"] for part in parts] == [2, 4, 6]
    assert [part["reward"] for part in parts] == [[pytest.approx(mean)] * 2 for mean in (0.15, 0.35, 0.55)]
    assert [part["entropy"] for part in parts] == [[2.0, 2.0]] * 3


def test_the_harness_scores_a_saved_model_on_a_task_of_ones_own(tiny_model: str, tmp_path: Path) -> None:
    questions = [
        {"q": f"Films I have watched: {n}", "options": ["Candidate", "films", "worst"], "gold": n % 3} for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    (tmp_path / "own_choice.yaml").write_text(
        f"""
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
    )
    scores = run_harness(tiny_model, ["own_choice"], tmp_path / "scores.json", str(tmp_path))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    right = 0
    for one in questions:
        sums = []
        for option in one["options"]:  # type: ignore[attr-defined]
            start = len(tokenizer(str(one["q"]))["input_ids"])
            ids = torch.tensor([tokenizer(f"{one['q']} {option}")["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            sums.append(float(logs[start - 1 :].sum()))
        right += sums.index(max(sums)) == one["gold"]
    score = scores["own_choice"]["acc"]
    assert score.value == pytest.approx(right / 9)
    assert (len(score.questions), sum(score.questions)) == (9, right)
    kept = json.loads((tmp_path / "scores.json").read_text())["scores"]["own_choice"]["acc"]
    assert kept == {"value": score.value, "questions": list(score.questions)}
    with pytest.raises(UserError, match="does not know own_choise"):
        run_harness(tiny_model, ["own_choise"], tmp_path / "scores.json", str(tmp_path))


def test_one_command_compares_models_on_the_tasks_of_the_examples(
    tiny_model: str, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # the tasks name their rows from there
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    ask = [
        "harness",
        tiny_model,
        str(other),
        "--include-path",
        "examples/out_of_domain",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    code, out, error = call(*ask, "--tasks", "arithmetic_choice,instructions", "--limit", "6")
    assert code == 0, error
    assert out.count("+0.0 (p = 1.0000)") == 2, out
    found = [json.loads(file.read_text())["scores"] for file in (tmp_path / "out").glob("*.json")]
    assert len(found) == 2
    assert found[0] == found[1]
    assert [
        len(found[0][task][metric]["questions"])
        for task, metric in (("arithmetic_choice", "acc"), ("instructions", "followed"))
    ] == [6, 6]
    code, out, error = call(*ask, "--tasks", "none_such")
    assert (code, "does not know none_such" in error) == (2, True)


def test_an_instruction_is_followed_or_not() -> None:
    follows = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "out_of_domain" / "instructions.py"))[
        "follows"
    ]
    for rule, value, good, bad in (
        ("capitals", "river", " RIVER\n", "River"),
        ("words", "3", "Long, wide water.", "A long wide water"),
        ("ends with", "DONE", "It flows. DONE.", "DONE it is"),
        ("one of", "yes|no", "No.", "No, it is not"),
        ("without", "the", "A river breathes.", "I like The river"),
    ):
        assert [follows({"rule": rule, "value": value}, [text]) for text in (good, bad, "")] == [
            {"followed": 1.0}, {"followed": 0.0}, {"followed": 0.0},
        ]  # fmt: skip
