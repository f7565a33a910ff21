"""From configs/*.yaml and overrides (hydra) to a typed Config; unknown keys and wrong types are refused in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from r1ranker.errors import UserError, first_line, suggest
from r1ranker.trainer.config.checks import check_config
from r1ranker.trainer.config.overrides import (
    Override,
    as_yaml,
    declared_types,
    is_free,
    is_name,
    is_text,
    literal,
    parse_override,
)
from r1ranker.trainer.config.schema import Config

BARE_TEXT = (
    "actor_rollout_ref.actor.recompute_old_log_probs",
    "algorithm.rollout_correction.rollout_is_threshold",
    "algorithm.rollout_correction.rollout_rs_threshold",
)
"""texts that may be true, false or a number, which YAML has without quotes"""
MISSING = "???"
"""to OmegaConf, a value that has to be given"""
BUILT_IN = Path(__file__).parents[3] / "configs"


def load_config(
    name: str,
    overrides: Sequence[str] = (),
    config_path: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> Config:
    """The config `name` (of `config_path` or the project's configs/), typed and checked.

    values: dotted key -> what it is set to, as it is; `overrides` are key=value in hydra's grammar, and come after them.
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
    parsed = [parse_override(entry, _known_keys()) for entry in overrides]
    try:
        with initialize_config_dir(config_dir=str(directory), version_base="1.3"):
            composed = compose(config_name=name)
    except HydraException as error:
        raise UserError(f"{directory}/{name}.yaml: {first_line(error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{directory}/{name}.yaml: {first_line(error)}") from error
    except Exception as error:  # yaml's scanner and parser errors come through hydra as they are
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{directory}/{name}.yaml: not YAML ({' '.join(str(error).split())})") from error
        raise
    for key, value in (values or {}).items():
        OmegaConf.update(composed, key, literal(value), force_add=True)
    for one in parsed:
        try:
            OmegaConf.update(composed, one.key, one.value, merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise UserError(f"override {one.written!r}: {first_line(error)}") from error
    return to_config(composed, f"{directory}/{name}.yaml", parsed, (values or {}).keys())


def find_run_config(directory: str | None) -> str | None:
    """Name of the config that a run wrote into its directory; None where there is none."""
    return "config" if directory and (Path(directory) / "config.yaml").is_file() else None


def to_config(
    values: DictConfig, where: str, overrides: Sequence[Override] = (), given: Collection[str] = ()
) -> Config:
    """`values` as a checked Config; what cannot be used is of the last of `overrides` that sets it, or of the file `where`.

    Keys that are `given` by a program are of neither, and named alone.
    """
    for key in _keys(values):
        if key not in _known_keys() and not is_free(key):
            raise UserError(f"{_origin(key, where, overrides, given)}unknown key {key!r}{suggest(key, _known_keys())}")
    merged = OmegaConf.structured(Config)
    for key in _leaves(values):
        begun = f"{_origin(key, where, overrides, given)}{key}"
        try:
            value = _resolve(values, key)
        except MissingMandatoryValue as error:
            wanted = "another name" if is_text(key) else "a value"
            raise UserError(f"{begun}: found '???', which stands for what is missing; {wanted} is wanted") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{begun}: {first_line(error)}") from error
        if isinstance(value, int | float) and is_text(key) and key not in BARE_TEXT:
            raise UserError(f"{begun}: found {value!r}; text is wanted, which has quotes where it looks like a number")
        if not all(map(is_name, value if isinstance(value, list) else [value])):
            raise UserError(f"{begun}: found {value!a}; a name in UTF-8 is wanted")
        try:
            OmegaConf.update(merged, key, literal(value))
        except OmegaConfBaseException as error:
            wanted = re.sub(r"^.*?(?:be converted to|cannot be|is not a valid|is not)\s*", "", first_line(error))
            raise UserError(f"{begun}: found {value!r}; {_wanted(key, wanted)} is wanted") from error
    config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    check_config(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of a Config, for logging."""
    return asdict(config)


def to_yaml(config: Config) -> str:
    """A Config as a file that `load_config` reads as the same."""
    return as_yaml(to_dict(config))


def _origin(key: str, where: str, overrides: Sequence[Override], given: Collection[str]) -> str:
    """What a message begins with: the last override that sets a key or a section it is in; else the file `where`."""
    set_by = [one.written for one in overrides if key == one.key or key.startswith(f"{one.key}.")]
    if set_by:
        return f"override {set_by[-1]!r}: "
    return "" if key in given else f"{where}: "


def _resolve(values: DictConfig, key: str) -> Any:
    """The plain value of a key; raises MissingMandatoryValue for '???', also where a variable or another key holds it."""
    value = _plain(OmegaConf.select(values, key, throw_on_missing=True))
    if value is None:  # also what an interpolation makes of '???'
        parent, _, last = key.rpartition(".")
        node: Any = (OmegaConf.select(values, parent) if parent else values)._get_node(last)
        missing = node._maybe_dereference_node()._is_missing()
    else:
        missing = isinstance(value, list) and MISSING in value
    if missing:
        raise MissingMandatoryValue(key)
    return value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


@cache
def _known_keys() -> frozenset[str]:
    return frozenset(_keys(OmegaConf.structured(Config)))


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
    if is_free(key):
        return "a number"
    words = {
        "int": "an integer",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "list": "a list",
        "None": "null",
    }
    parts = [words.get(part, "") for part in declared_types(key)]
    return " or ".join(part for part in parts if part) or f"a section ({fallback})"
