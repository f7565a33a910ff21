"""Properties of paths and names: values of a config, overrides, and places on disk are called what they are called."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from r1ranker.atomic import atomic_path, clear_leftovers
from r1ranker.data.files.parquet_reader import open_parquet
from r1ranker.errors import UserError
from r1ranker.experiments.spec import Experiment, keep_experiment, load_experiment
from r1ranker.trainer.config.load import load_config, to_dict, to_yaml
from r1ranker.trainer.config.overrides import is_name, parse_override

from .files import _directory
from .hostile import PIECES

SIGNS = (
    "=", ",", "(", ")", "[", "]", "{", "}", "'", '"', "#", "~", "!", "$", "\\", ":", " ", "/", "%", "*", "?", "&", ";", "|", "@", "+",
    "${", "${oc.env:HOME}", "\\${x}", "\\\\${x}", "${.x}", "$HOME", "dt=2026-01-01", "Jürgen", "数据", "naïve", "1e3", "true", "NULL", "0x10", "1_000", "007",
    ".5", "nan", "inf", "off", "2026-01-01", "glob(*)", "choice(a,b)", "str(1)", "[a]", "{a: b}", "hdfs://x", "s3://x", "a::b", "**", "[!a]", "???", "\udcfc", "\udcff",
)  # fmt: skip
_pieces = st.sampled_from(SIGNS) | st.sampled_from(PIECES) | st.text(max_size=4)
names = st.lists(_pieces, min_size=1, max_size=5).map("".join).filter(bool)
"""of runs, models and files; some hold NUL or bytes that are no UTF-8"""
MISSING = "???"
"""to OmegaConf, a value that has to be given"""
TEXT_KEYS = (
    "data.train_files", "data.val_files", "data.cache_dir", "actor_rollout_ref.model.path", "custom_reward_function.path",
    "trainer.experiment_name", "trainer.default_local_dir", "trainer.project_name",
)  # fmt: skip


@given(st.lists(names, min_size=4, max_size=4), st.booleans())
def paths(found: list[str], several: bool) -> None:
    """A text given to a config is what the run has, what its config.yaml has, and what a run from that has."""
    first, second, third, fourth = found
    values: dict[str, Any] = {
        "data.train_files": [first, second] if several else first,
        "data.val_files": second,
        "data.cache_dir": third,
        "actor_rollout_ref.model.path": fourth,
        "trainer.experiment_name": first,
        "trainer.default_local_dir": third,
    }
    if not all(map(is_name, found)) or MISSING in found:
        with pytest.raises(UserError, match=r"in UTF-8 is wanted|stands for what is missing|Missing"):
            load_config("quickstart", values=values)
        return
    config = load_config("quickstart", values=values)
    held = to_dict(config)
    for key, value in values.items():
        section: Any = held
        for part in key.split("."):
            section = section[part]
        assert section == value, key
    (_directory() / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config("config", config_path=str(_directory())) == config


@given(st.sampled_from(TEXT_KEYS), names)
def overrides(key: str, name: str) -> None:
    """What a user writes as an override is a value of hydra's, or one line that says how it is quoted, and that works."""
    written = f"{key}={name}"
    refused = ""
    try:
        assert not isinstance(parse_override(written, TEXT_KEYS).value, int | float)
    except UserError as error:
        refused = str(error)
    if refused:
        begun, _, quoted = refused.partition("in quotes, for a shell: ")
        assert begun.startswith(f"override {written!r}: ")
        (again,) = [_read_escapes(quoted[2:-1])] if quoted.startswith("$'") else shlex.split(quoted)
        assert parse_override(again, TEXT_KEYS).value == name


def _read_escapes(text: str) -> str:
    """What bash reads between $' and '."""
    return re.sub(r"\\(?:u([0-9a-f]{4})|(.))", lambda found: chr(int(found[1], 16)) if found[1] else found[2], text)


@cache
def _experiment() -> Experiment:
    return load_experiment("direct_iterative")


@given(names)
def experiment_texts(name: str) -> None:
    """A text of an experiment is taken as it stands, but for quotes and interpolations, and kept so beside its results."""
    assume(not name.startswith(("'", '"')) and name not in ("null", MISSING) and "${" not in name and is_name(name))
    found = load_experiment("direct_iterative", [f"data.source={name}", f"model.path={name}"])
    assert (found.data.source, found.model.path) == (name, name)
    written = replace(_experiment(), title=f"{name}${{x}}\\${{y}}")
    file = _directory() / "experiment.yaml"
    file.unlink(missing_ok=True)
    keep_experiment(written, file)
    assert load_experiment(str(file)) == written
    keep_experiment(written, file)  # it is the same one


@given(names, names)
def places(directory: str, name: str) -> None:
    """Files are written, found and cleared up under the names that they are given, and no others are."""
    for one in (directory, name):
        assume(is_name(one) and "/" not in one and one not in (".", "..") and len(one.encode()) <= 200)
    holder = Path(tempfile.mkdtemp(dir=_directory()))
    try:
        here = holder / directory
        other, torn = here / "other", here / f".{name}.torn"
        for made in (other, torn, here / ".another.torn"):
            made.mkdir(parents=True, exist_ok=True)
        assume(name not in ("other", "another") and torn.name != f".{name}")
        with atomic_path(here / name) as temporary:
            pq.write_table(pa.table({"a": [1]}), temporary)
        with open_parquet(str(here / name)) as file:
            assert file.read().to_pylist() == [{"a": 1}]
        clear_leftovers(here, [name])
        assert {one.name for one in here.iterdir()} == {name, "other", ".another.torn"}
        assert [one.name for one in holder.iterdir()] == [directory]
    finally:
        shutil.rmtree(holder)
