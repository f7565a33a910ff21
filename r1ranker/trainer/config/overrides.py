"""Overrides: a user's are read in hydra's grammar, values of a program or of the environment in none."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import yaml

from r1ranker.errors import UserError, suggest
from r1ranker.trainer.config.schema import Config

FREE = ("data.task_weights",)
"""sections whose keys are names of the user's"""
_GRAMMAR = "outside quotes a text may hold ASCII letters, digits and . / _ - + % *"


@dataclass(frozen=True)
class Override:
    """key=value as a user wrote it, and what hydra's grammar makes of the value."""

    written: str
    key: str
    value: Any


def parse_override(written: str, known: Collection[str]) -> Override:
    """Read `key=value`; `+` and `++` before it, as in veRL's scripts, change nothing, for every key is `known`.

    A number or a truth value is text where the setting is text: trainer.experiment_name=1e3 is called 1e3. Raises UserError
    naming the override, and how its value is quoted where the grammar does not take it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, text = written.lstrip().lstrip("+").partition("=")
    key = key.strip()
    if not equals:
        raise UserError(f"override {written!r}: found no '='; key=value is wanted")
    if key not in known and not is_free(key):
        raise UserError(f"override {written!r}: unknown key {key!r}{suggest(key, known)}")
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
        if parsed.is_sweep_override():
            raise UserError(f"override {written!r}: found several values; {_in_quotes(key, text)}")
        value = parsed.value()
    except HydraException as error:
        raise UserError(f"override {written!r}: not in hydra's grammar; {_in_quotes(key, text)}") from error
    if isinstance(value, int | float) and is_text(key):
        value = text.strip()
    return Override(written, key, value)


def _in_quotes(key: str, text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    quoted = QuotedString(text=text, quote=Quote.double).with_quotes()
    return f"{_GRAMMAR}; in quotes, for a shell: {_quote_for_shell(f'{key}={quoted}')}"


def _quote_for_shell(text: str) -> str:
    """One word of a shell, on one line: bash's $'...' where the text has line breaks."""
    if len(text.splitlines()) < 2:
        return shlex.quote(text)
    escaped = (f"\\{c}" if c in "\\'" else f"\\u{ord(c):04x}" if len(f"a{c}a".splitlines()) > 1 else c for c in text)
    return f"$'{''.join(escaped)}'"


def literal(value: Any) -> Any:
    """`value` as OmegaConf has to be given it to hold it as it is: its texts without interpolations.

    `${` stands for itself behind a backslash; backslashes before it are doubled.
    """
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: literal(one) for key, one in value.items()}
    return [literal(one) for one in value] if isinstance(value, list | tuple) else value


def as_yaml(values: dict[str, Any]) -> str:
    """YAML that OmegaConf reads as these values; OmegaConf's own is read otherwise where a text has U+0085 in it."""
    return yaml.dump(literal(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes unless they are words or paths: 1e3 is a text to PyYAML, and a number to OmegaConf."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9/._-]*", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def is_free(key: str) -> bool:
    """Whether the key is one that the user names."""
    return key.rpartition(".")[0] in FREE


def is_text(key: str) -> bool:
    """Whether the setting is a text, or null; a path or a list of paths is."""
    return not is_free(key) and set(declared_types(key)) <= {"str", "None", "Any"}


def is_name(value: Any) -> bool:
    """Whether a value is no text, or one that files and processes can be named by: in UTF-8, and without NUL."""
    try:
        return not (isinstance(value, str) and b"\0" in value.encode())
    except UnicodeEncodeError:  # bytes of a path that are none, which Python has as half surrogate pairs
        return False


def declared_types(key: str) -> list[str]:
    """The declared types of a key of the schema, without what is in their brackets."""
    node: Any = Config()
    *parents, last = key.split(".")
    for parent in parents:
        node = getattr(node, parent)
    return [part.strip().split("[")[0] for part in str(type(node).__dataclass_fields__[last].type).split("|")]
