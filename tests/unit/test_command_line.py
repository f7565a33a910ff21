"""The command line as a whole: one declaration of options, both spellings, `--version`, `rank`, and a missing installation."""

from __future__ import annotations

import io
import json
import os
import pwd
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow.parquet as pq
import pytest
import typer
from typer.main import get_command

from r1ranker.cli import COMMANDS, app
from r1ranker.cli.run import HUGE_PAGES, repeat_options, with_huge_pages
from r1ranker.data.prepare import PrepareOptions
from r1ranker.data.sources.passage import SIZES
from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS
from r1ranker.data.sources.routing import OBJECTIVES
from r1ranker.data.sources.user_files import read_requests
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import EliminationSettings

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / "eval" / "eval.py", *sorted((ROOT / "examples" / "data_preprocess").rglob("*.py"))]
GROUP: Any = get_command(app)
FUNCTIONS = {name: function for group in COMMANDS.values() for name, function in group.items()}
EVAL = {
    "dataset", "model-path", "data", "strategy", "constrain", "think", "no-think", "answer-style", "engine", "limit", "seed", "gpu-id",
    "output-dir", "dtype", "top-k", "eliminate", "votes", "max-tokens", "max-model-len", "baselines", "interactions", "router-data", "trec-dir",
    "mode", "window", "step", "passes", "inside", "max-passage-tokens", "rounds", "thoughts", "shots", "similarity",
    "embedder", "shots-from", "shots-show", "baseline-model",
}  # fmt: skip
TASKS = {"passage": {"task": "Passage-5"}, "recommendation": {"task": "Rec-Movie"}, "routing": {"task": "Router-Cost"}}
"""values that nothing else may stand for"""
HOW = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"

Call = Callable[..., tuple[int, str, str]]


def app_of(script: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The application that a script runs."""
    found: list[typer.Typer] = []
    monkeypatch.setattr("r1ranker.cli.run.run_app", found.append)
    runpy.run_path(str(script), run_name="__main__")
    return found[0]


def options_of(command: Any) -> dict[str, Any]:
    """Spelling without dashes -> parameter, of every option of a command."""
    return {
        spelling.removeprefix("--"): parameter
        for parameter in command.params
        for spelling in (*parameter.opts, *parameter.secondary_opts)
        if spelling.startswith("--")
    }


def parsed(command: Any, *arguments: str) -> dict[str, Any]:
    """The values that a command's arguments mean; what is missing is passed over."""
    parent = GROUP.make_context("r1ranker", ["--help"], resilient_parsing=True)
    return command.make_context("command", list(arguments), parent=parent, resilient_parsing=True).params


def test_both_faces_of_eval_have_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    published = options_of(get_command(app_of(ROOT / "eval" / "eval.py", monkeypatch)))
    command = options_of(GROUP.commands["eval"])
    assert set(published) == set(command) == EVAL
    for field in ("name", "default", "required", "help", "multiple"):
        assert {name: getattr(published[name], field) for name in EVAL} == {
            name: getattr(command[name], field) for name in EVAL
        }


@pytest.mark.parametrize("name", [*FUNCTIONS, *(str(script.relative_to(ROOT)) for script in SCRIPTS)])
def test_every_option_takes_both_spellings_and_leaves_its_value_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = GROUP.commands[name] if name in FUNCTIONS else get_command(app_of(ROOT / name, monkeypatch))
    hints = get_type_hints(command.callback.__wrapped__)
    for spelling, parameter in options_of(command).items():
        if parameter.is_flag:
            value, wanted = [], f"--{spelling}" in parameter.opts
        else:
            text = TASKS.get(Path(name).stem, {}).get(spelling, example_of(hints[parameter.name]))
            value, wanted = [text], {"3": 3, "0.5": 0.5}.get(text, text)
            wanted = [wanted] if parameter.multiple else wanted
        for written in (spelling, spelling.replace("-", "_")):
            found = parsed(command, f"--{written}", *value)[parameter.name]
            assert (list(found) if parameter.multiple else found) == wanted, written


def parts_of(hint: Any) -> Iterator[Any]:
    """The innermost types or choices of a type hint, but for None."""
    inner = [one for one in get_args(hint) if one is not type(None)]
    if not inner:
        yield hint
    for one in inner:
        yield from parts_of(one)


def example_of(hint: Any) -> str:
    """A value of an option: a choice, a number, or a text that has an underscore."""
    part = next(parts_of(hint))
    return part if isinstance(part, str) else {int: "3", float: "0.5", str: "a_b"}[part]


@pytest.mark.parametrize(
    "given",
    [
        ["--model_path", "a_1", "b", "--seed", "3"],
        ["--model-path", "a_1", "--seed", "3", "--model_path", "b"],
        ["--model-path=a_1", "b", "--seed=3"],
    ],
)
def test_several_models_stand_after_one_option_or_after_several(given: list[str]) -> None:
    found = parsed(GROUP.commands["eval"], *given)
    assert (list(found["model_path"]), found["seed"]) == (["a_1", "b"], 3)


def test_only_options_that_may_be_repeated_are() -> None:
    given = ["--task", "a", "b", "c", "--seed", "1", "d", "--task=e", "f", "--", "g"]
    wanted = ["--task", "a", "--task", "b", "--task", "c", "--seed", "1", "d", "--task=e", "--task", "f", "--", "g"]
    assert list(repeat_options(given, {"--task"})) == wanted


def test_settings_of_a_training_are_passed_on_as_they_are() -> None:
    found = parsed(GROUP.commands["train"], "a_b.c_d=e_f", "--config_name", "g_h", "+i_j=-1", "--dry_run")
    assert list(found["overrides"]) == ["a_b.c_d=e_f", "+i_j=-1"]
    assert (found["config_name"], found["dry_run"]) == ("g_h", True)


def test_options_of_prepare_reach_their_fields(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PrepareOptions] = []
    monkeypatch.setattr("r1ranker.data.prepare.prepare", asked.append)
    assert call("prepare")[0] == 0
    given = ["--source", "s", "--output", "o", "--answer_style", "label", "--no_think", "--task", "t", "--seed", "1"]
    given += [
        "--test_share",
        "0.5",
        "--cold_start",
        "--teacher",
        "right",
        "--tokenizer",
        "k",
        "--max_prompt_length",
        "2",
    ]
    given += ["--size", "3", "--history", "4", "--candidates", "5", "--users", "6", "--positions", "7", "--pools", "8"]
    given += ["--recbole", "r=x", "--test_rows", "9", "--pool_sizes", "2-4", "--merits", "--template", "y", "--shuffle"]
    assert call("prepare", *given)[0] == 0
    assert asked == [
        PrepareOptions(),
        PrepareOptions(
            source="s", output="o", answer_style="label", think=False, tasks=["t"], seed=1, test_share=0.5, cold_start=True,
            tokenizer="k", max_prompt_length=2, size=3, history=["4"], candidates=5, users=6, positions=7, recbole=["r=x"],
            template="y", shuffle=True, test_rows=9, pool_sizes="2-4", merits=True, teacher="right", pools=8,
        ),
    ]  # fmt: skip


def test_options_of_eval_reach_their_fields(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "r1ranker.evaluation.runner.run_evaluation", lambda *given, trec_dir: asked.append((*given, trec_dir))
    )
    assert call("eval", "--dataset", "all", "--model_path", "m")[0] == 0
    given = ["--data", "d", "--limit", "1", "--seed", "2", "--output_dir", "o", "--strategy", "direct", "--think"]
    given += [
        "--constrain",
        "candidates",
        "--answer_style",
        "label",
        "--eliminate",
        "3",
        "--votes",
        "4",
        "--top_k",
        "5",
    ]
    given += ["--engine", "hf", "--gpu_id", "6", "--interactions", "i", "--router_data", "r", "--trec_dir", "t"]
    given += ["--max_tokens", "7", "--max_model_len", "8", "--dtype", "bfloat16"]
    assert call("eval", "--dataset", "Rec-Movie", "--model_path", "m", "n", *given)[0] == 0
    assert asked == [
        ("all", ["m"], EvaluationOptions(engine="auto"), None),
        (
            "Rec-Movie",
            ["m", "n"],
            EvaluationOptions(
                data="d", limit=1, seed=2, output_dir="o", strategy="direct", constrain="candidates", think=True,
                answer_style="label", elimination=EliminationSettings(3, 4, 5), engine="hf", gpu=6, baselines=True,
                interactions="i", router_data="r", max_tokens=7, max_model_len=8, dtype="bfloat16",
            ),
            "t",
        ),
    ]  # fmt: skip


def test_the_version_is_that_of_the_package(call: Call) -> None:
    assert call("--version") == (0, f"r1ranker {version('r1ranker')}\n", "")


def test_help_has_a_line_for_every_command(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call("--help")
    assert code == 0
    lines = [" ".join(line.strip("│ ").split()) for line in printed.splitlines()]
    for name, function in FUNCTIONS.items():
        assert f"{name} {str(function.__doc__).splitlines()[0]}" in lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
@pytest.mark.parametrize("found", [False, True], ids=["package missing", "dependencies missing"])
def test_a_script_without_the_package_says_how_to_install_it(script: Path, found: bool) -> None:
    environment = {"PYTHONPATH": str(ROOT)} if found else {}
    command = [sys.executable, "-S", *([] if found else ["-I"]), str(script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: r1ranker is not installed (No module named '")
    assert done.stderr.endswith(f"); {HOW}\n")
    assert done.stderr.count("\n") == 1


def test_a_dependency_that_is_missing_is_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "r1ranker.evaluation.runner", None)
    with pytest.raises(ModuleNotFoundError):  # our own fault, which is not to be hidden
        call("eval", "--dataset", "all", "--model-path", "m")
    monkeypatch.delitem(sys.modules, "r1ranker.trainer.sft", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    given = ["sft", "--model", "m", "--data", "d", "--output", "o"]
    assert call(*given) == (2, "", f"error: torch is not installed; {HOW}\n")


@pytest.mark.parametrize(
    ("name", "given", "tasks"),
    [
        ("passage", ["--source", "s"], SIZES),
        ("recommendation", ["--inter", "i", "--item", "j"], RECBOLE_DATA_SETS),
        ("routing", ["--router_data", "r"], OBJECTIVES),
    ],
)
def test_the_scripts_of_the_sources_refuse_the_tasks_of_others(name: str, given: list[str], tasks: dict) -> None:
    script = ROOT / "examples" / "data_preprocess" / "dataset" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), *given, "--task", "Rec-Film"], capture_output=True, text=True, check=False
    )
    known = ", ".join(map(repr, tasks))
    assert done.returncode == 2
    assert done.stderr == f"error: Invalid value for '--task': 'Rec-Film' is not one of {known}. (see --help)\n"


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has neither HOME nor an entry in the password file, as in a container run under a number."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "R1RANKER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_has_one_for_the_time_of_a_command(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_home(monkeypatch)
    at_the_end: list[Any] = []
    monkeypatch.setattr("r1ranker.errors._NOTED", set())
    monkeypatch.setattr("atexit.register", lambda *given, **named: at_the_end.append((given, named)))
    code, _, said = call("--version")
    home = Path(os.environ["HOME"])
    ((remove, *given), named) = at_the_end[0]
    assert (code, home.is_dir(), Path("~/x").expanduser()) == (0, True, home / "x")
    assert (
        said == f"note: this user has no home: caches go to {home}, and are deleted at the end; HOME=DIR keeps them\n"
    )
    remove(*given, **named)
    assert not home.exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("--version")[2] == ""
    assert os.environ["HOME"] == str(tmp_path)


def test_rows_are_tokenised_without_a_home(monkeypatch: pytest.MonkeyPatch, toy: Path, tiny_model: str) -> None:
    from r1ranker.data.loader import load_prompts
    from r1ranker.pretrained import load_tokenizer

    without_home(monkeypatch)
    file = str(toy / "direct_ranking" / "test.parquet")
    tokenizer = load_tokenizer(tiny_model)
    found, _ = load_prompts([file], tokenizer, 2000)
    assert len(found) == pq.read_metadata(file).num_rows


REQUESTS = [
    {"id": 7, "task": "Rec-Movie", "history": ["Silent Harbour"], "candidates": ["Broken Verdict", "Golden Mirror", "é"]},
    {"query": "Which?", "candidates": ["B", "A"], "labels": [0, 0]},
    {"id": "x", "query": "Which one?", "candidates": ["C"], "texts": ["a text"]},
]  # fmt: skip
ANSWER = ("--constrain", "candidates", "--no-think", "--engine", "hf")


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("strategy", ["iterative", "direct"])
def test_rank_prints_what_the_ranker_ranks(strategy: Any, call: Call, tiny_model: str, tmp_path: Path) -> None:
    file = written(tmp_path / "requests.jsonl", REQUESTS)
    code, printed, _ = call("rank", file, "--model", tiny_model, "--strategy", strategy, *ANSWER)
    assert code == 0
    ranker = Ranker.from_pretrained(tiny_model, strategy=strategy, constrain="candidates", think=False)
    wanted = ranker.rank_many(example for _, example in read_requests(file, None))
    lines = [json.loads(line) for line in printed.splitlines()]
    for line, request, result in zip(lines, REQUESTS, wanted, strict=True):
        assert line.get("id") == request.get("id")
        assert line["ranking"] == list(result.ranking)
        assert [request["candidates"][place] for place in line["indices"]] == line["ranking"]
        assert set(line) == {"ranking", "indices"} | ({"id"} & set(request))


def test_rank_takes_stdin_and_tables_and_writes_a_file(
    call: Call, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{json.dumps(row)}\n" for row in REQUESTS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    output = tmp_path / "new" / "ranked.jsonl"
    given = ("--model", tiny_model, *ANSWER, "--top_k", "2")
    assert call("rank", "-", *given, "--output", str(output))[:2] == (0, "")
    ranked = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [one.get("unordered") for one in ranked] == [2, 2, None]
    assert list(output.parent.iterdir()) == [output]
    table = tmp_path / "requests.csv"
    table.write_text("query,candidates\nWhich?,B|A\n", encoding="utf-8")
    code, printed, _ = call("rank", str(table), *given)
    assert (code, json.loads(printed)) == (0, ranked[1])


def test_rank_words_requests_by_a_template(
    call: Call, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ROOT / "examples" / "own_data"
    asked: list[Any] = []
    rank_stream = Ranker.rank_stream
    monkeypatch.setattr(Ranker, "rank_stream", lambda self, given: rank_stream(self, asked.extend(given) or asked))
    given = ("--model", tiny_model, "--template", str(own / "support.yaml"), "--strategy", "direct", *ANSWER)
    code, printed, _ = call("rank", str(own / "support.jsonl"), *given)
    assert (code, {example.task for example in asked}) == (0, {"Support-Articles"})
    assert len(printed.splitlines()) == len(asked) == len((own / "support.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"query": "q"}, (), "requests.jsonl: line 1: no key 'candidates'"),
        ({"candidates": ["A"]}, (), "requests.jsonl: line 1: found neither of query and history"),
        ({"query": "q", "candidates": ["A", "A"]}, (), "requests.jsonl: line 1: candidates holds 'A' twice"),
        ({"query": "q", "candidates": ["A"], "id": [1]}, (), "requests.jsonl: line 1: id: found [1]"),
        (REQUESTS[1], ("--model", "./gone"), "./gone: no such model directory"),
        (REQUESTS[1], ("--votes", "0"), "--votes: found 0; at least 1 is wanted"),
        (REQUESTS[1], ("--seed", "-1"), "--seed: found -1; at least 0 is wanted"),
        (REQUESTS[1], ("--strategy", "best"), "Invalid value for '--strategy'"),
        (REQUESTS[1], ("--template", "gone.yaml"), "gone.yaml: no such file"),
    ],
)
def test_bad_input_of_rank_is_one_line_and_writes_nothing(
    row: dict, options: tuple[str, ...], message: str, call: Call, tiny_model: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "requests.jsonl", [row])
    output = tmp_path / "ranked.jsonl"
    output.write_text("as it was")
    code, printed, error = call("rank", file, "--model", tiny_model, *options, "--output", str(output))
    assert (code, printed) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert output.read_text() == "as it was"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_sleep_soon_unless_the_user_says_how_they_wait(given: dict[str, str], wanted: str | None) -> None:
    """Said before torch is there, whose threads read it once."""
    code = (
        "import os, sys\nfrom r1ranker.cli.run import share_cores\nshare_cores()\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wanted), "False"]


@pytest.mark.parametrize(
    ("tunables", "enabled", "wanted"),
    [
        ("", "always [madvise] never", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=1", "always [madvise] never", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "always [madvise] never", None),
        ("", "[always] madvise never", None),
        ("", "always madvise [never]", None),
        ("", None, None),
    ],
)
def test_huge_pages_are_asked_for_where_whoever_asks_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tunables: str, enabled: str | None, wanted: str | None
) -> None:
    setting = tmp_path / "enabled"
    if enabled is not None:
        setting.write_text(enabled)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    assert with_huge_pages(tunables, setting) == wanted
    for other in ("glibc 2.31", None):  # which has no such tunable, and another library
        monkeypatch.setattr(os, "confstr", lambda name, other=other: other)
        assert with_huge_pages(tunables, setting) is None


@pytest.mark.parametrize(
    ("command", "change", "computes"),
    [
        ("train", "", True),
        ("prepare", "", False),
        # as in a fork, which has another command than its process began with
        ("prepare", "sys.argv[1] = 'train'", False),
    ],
)
def test_a_command_that_computes_is_begun_again_with_huge_pages(command: str, change: str, computes: bool) -> None:
    code = (
        f"import os, sys\n{change}\nfrom r1ranker.cli import start\n"
        "try:\n    start()\nexcept SystemExit as end:\n    print(end.code, os.environ.get('GLIBC_TUNABLES'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    arguments = [sys.executable, "-c", code, command, "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    wanted = with_huge_pages("", HUGE_PAGES) if computes else None
    assert done.stdout.splitlines()[-1] == f"0 {wanted}"
    assert done.stdout.count("Usage:") == 1
