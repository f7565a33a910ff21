"""Files of others are data: nothing unpickles them, runs them or has them bring code of their own."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from r1ranker.errors import UserError
from r1ranker.model.loading import load_causal_lm
from r1ranker.pretrained import load_tokenizer
from r1ranker.tasks.custom import read_task

ROOT = Path(__file__).parents[2]
CODE = ("r1ranker", "eval", "examples", "benchmarks", "scripts")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS = {"eval", "exec", "compile", "__import__", "execfile"}
MODELS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModel", "LLM")


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that could run what stands in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            yield from ((node.lineno, f"import {name}") for name in names if name.split(".")[0] in PICKLES)
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            owner, _, method = name.rpartition(".")
            if name in RUNS or name == "os.system" or given.get("shell") == "True":
                yield node.lineno, f"{name}() runs text"
            if owner == "torch" and method == "load" and given.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True"
            if owner == "yaml" and "load" in method and not method.startswith("safe_load"):
                yield node.lineno, f"{name}: safe_load is wanted"
            if given.get("allow_pickle", "False") != "False":
                yield node.lineno, f"{name} with allow_pickle"
            if (owner in MODELS and method == "from_pretrained") or method in MODELS:
                if given.get("trust_remote_code") != "False":
                    yield node.lineno, f"{name} without trust_remote_code=False"
                if "Model" in owner and given.get("use_safetensors") != "True":
                    yield node.lineno, f"{name} without use_safetensors=True"


def test_nothing_in_the_project_could_run_what_stands_in_a_file() -> None:
    files = [file for directory in CODE for file in (ROOT / directory).rglob("*.py")]
    assert len(files) > 100
    found = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in offences(ast.parse(file.read_text()))
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "eval('1')", "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text, Loader)",
        "yaml.unsafe_load(text)", "np.load(path, allow_pickle=True)", "AutoConfig.from_pretrained(path)", "vllm.LLM(path)",
        "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)", "subprocess.run(text, shell=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(offences(ast.parse(code)))


def test_the_search_lets_pass_what_is_safe() -> None:
    code = "torch.load(path, weights_only=True); yaml.safe_load(text); model.eval(); re.compile(text); np.load(path)"
    assert not list(offences(ast.parse(code)))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.path, "it ran")


@pytest.fixture
def copied(tiny_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_weights_in_a_pickle_are_refused_and_not_opened(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "ran")}, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors are wanted"):
        load_causal_lm(str(copied), torch.float32, "eager")
    (copied / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"model.safetensors is damaged|cannot be loaded"):
        load_causal_lm(str(copied), torch.float32, "eager")
    assert not (tmp_path / "ran").exists()


def test_code_that_a_model_brings_is_not_run_and_nobody_is_asked(copied: Path, tmp_path: Path) -> None:
    (copied / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
        "class Config(PretrainedConfig):\n    model_type = 'own'\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})
    )
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(str(copied), torch.float32, "eager")
    tokenizer = json.loads((copied / "tokenizer_config.json").read_text())
    named = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    (copied / "tokenizer_config.json").write_text(json.dumps(tokenizer | named))
    with contextlib.suppress(UserError):  # a class that transformers has may take its place
        load_tokenizer(str(copied))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "attack",
    [
        "goal: !!python/object/apply:pathlib.Path.write_text [!!python/object/apply:pathlib.Path [RAN], it ran]\nrequest: '{{ query }}'\n",
        'goal: x\nrequest: "{{ query.__class__.__mro__[1].__subclasses__() }}"\n',
        "goal: x\nrequest: \"{{ cycler.__init__.__globals__.os.system('touch RAN') }}{{ query }}\"\n",
    ],
)
def test_a_tasks_words_run_nothing(attack: str, tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(attack.replace("RAN", str(tmp_path / "ran")))
    with pytest.raises(UserError):
        read_task(str(file), "mine")
    assert not (tmp_path / "ran").exists()
