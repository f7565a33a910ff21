"""From configs/*.yaml and overrides (hydra) to a typed Config; unknown keys and wrong types are refused in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from r1ranker.errors import UserError, first_line, suggest
from r1ranker.trainer.config.checks import check_config
from r1ranker.trainer.config.schema import Config

FREE = ("data.task_weights",)
"""sections whose keys are names of the user's"""
BUILT_IN = Path(__file__).parents[3] / "configs"


def load_config(name: str, overrides: Sequence[str] = (), config_path: str | None = None) -> Config:
    """The config `name` (of `config_path` or the project's configs/) with hydra overrides, typed and checked.

    Raises UserError for a missing file, an unknown key, a wrong type or values that contradict each other.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    directory = Path(config_path).resolve() if config_path else BUILT_IN
    if not (directory / f"{name}.yaml").is_file():
        found = sorted(path.stem for path in directory.glob("*.yaml"))
        raise UserError(
            f"{directory}/{name}.yaml: no such config{suggest(name, found)}; there are {', '.join(found) or 'none'}"
        )
    schema = OmegaConf.structured(Config)
    known = set(_keys(schema))
    try:
        with initialize_config_dir(config_dir=str(directory), version_base="1.3"):
            # `+key=value` is how veRL's scripts set keys that their file lacks; ours has them all
            composed = compose(config_name=name, overrides=["++" + _checked(entry, known) for entry in overrides])
    except HydraException as error:
        raise UserError(f"{directory}/{name}.yaml: {first_line(error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{directory}/{name}.yaml: {first_line(error)}") from error
    except Exception as error:  # yaml's scanner and parser errors come through hydra as they are
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{directory}/{name}.yaml: not YAML ({' '.join(str(error).split())})") from error
        raise
    return to_config(composed, f"{directory}/{name}.yaml")


def find_run_config(directory: str | None) -> str | None:
    """Name of the config that a run wrote into its directory; None where there is none."""
    return "config" if directory and (Path(directory) / "config.yaml").is_file() else None


def to_config(values: DictConfig, where: str) -> Config:
    """`values` as a checked Config."""
    known = set(_keys(OmegaConf.structured(Config)))
    for key in _keys(values):
        if key not in known and not _is_free(key):
            raise UserError(f"{where}: unknown key {key!r}{suggest(key, known)}")
    merged = OmegaConf.structured(Config)
    for key in _leaves(values):
        try:
            value = OmegaConf.select(values, key)
        except OmegaConfBaseException as error:
            raise UserError(f"{where}: {key}: {first_line(error)}") from error
        try:
            OmegaConf.update(merged, key, value)
        except OmegaConfBaseException as error:
            wanted = re.sub(r"^.*?(?:be converted to|cannot be|is not a valid|is not)\s*", "", first_line(error))
            raise UserError(f"{where}: {key}: found {value!r}; {_wanted(key, wanted)} is wanted") from error
    config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    check_config(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of a Config, for logging and YAML."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)  # type: ignore[return-value]


def _checked(override: str, known: set[str]) -> str:
    entry = override.lstrip("+")
    key, equals, _ = entry.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: found no '='; key=value is wanted")
    if key not in known and not _is_free(key):
        raise UserError(f"override {override!r}: unknown key {key!r}{suggest(key, known)}")
    return entry


def _is_free(key: str) -> bool:
    """Whether the key is one that the user names."""
    return key.rpartition(".")[0] in FREE


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, inner and outer."""
    for key in node:
        name = prefix + str(key)
        yield name
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _keys(child, name + ".")


def _leaves(node: DictConfig) -> list[str]:
    names = list(_keys(node))
    return [name for name in names if not any(other.startswith(name + ".") for other in names)]


def _wanted(key: str, fallback: str) -> str:
    """The declared type of `key` in words."""
    if _is_free(key):
        return "a number"
    node: Any = Config()
    *parents, last = key.split(".")
    for parent in parents:
        node = getattr(node, parent)
    declared = str(type(node).__dataclass_fields__[last].type)
    words = {
        "int": "an integer",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "list": "a list",
        "None": "null",
    }
    parts = [words.get(part.strip().split("[")[0], "") for part in declared.split("|")]
    return " or ".join(part for part in parts if part) or f"a section ({fallback})"
