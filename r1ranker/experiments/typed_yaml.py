"""YAML read by declared types: a text is kept as it is written where a text is wanted, such as 1e3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

VALUES_OF = "values_of"
"""in the metadata of a dictionary's field: the dataclass whose fields it may hold"""
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
_LOOKS_OTHERWISE = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "timestamp")}


def parse_yaml(text: str, declared: Any) -> Any:
    """The value of a YAML text of a `declared` type; raises yaml.YAMLError where it is none."""
    from omegaconf._utils import get_yaml_loader

    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_texts(node, declared)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def type_at(declared: Any, key: str) -> Any:
    """The declared type of a dotted key below a type; None where nothing says it."""
    return reduce(_inner, key.split("."), declared)


def is_text(declared: Any) -> bool:
    """Whether a text, or null, is wanted."""
    parts = _parts(declared)
    return str in parts and set(parts) <= {str, NoneType}


def has_type(value: Any, declared: Any) -> bool:
    """Whether a value as YAML has it is of a declared type; an integer is a number, and true is no integer."""
    for part in _parts(declared):
        if get_origin(part) in (list, Sequence):
            if isinstance(value, list | tuple) and all(has_type(one, get_args(part)[0]) for one in value):
                return True
        elif type(value) is part or (part is float and type(value) is int):
            return True
    return False


def in_words(declared: Any) -> str:
    """A declared type as a message says it."""
    lists = (list, Sequence)
    return " or ".join(
        f"a list ({in_words(get_args(part)[0])} each)" if get_origin(part) in lists else _WORDS.get(part, str(part))
        for part in _parts(declared)
    )


def _parts(declared: Any) -> tuple[Any, ...]:
    return get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)


def _inner(declared: Any, key: str | None) -> Any:
    """The type of what stands under a key of a mapping; of an element of a list, whose key is None."""
    for part in _parts(declared):
        if key is None and get_origin(part) in (list, Sequence):
            return get_args(part)[0]
        if key is not None and is_dataclass(part):
            free = {one.name: one.metadata[VALUES_OF] for one in fields(part) if VALUES_OF in one.metadata}
            return free.get(key) or get_type_hints(part).get(key)
        if key is not None and get_origin(part) is dict:
            return get_args(part)[1]
    return None


def _keep_texts(node: yaml.Node, declared: Any) -> None:
    """Have scalars without quotes be texts where texts are wanted."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _keep_texts(value, _inner(declared, key.value if isinstance(key, yaml.ScalarNode) else ""))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _keep_texts(value, _inner(declared, None))
    elif node.tag in _LOOKS_OTHERWISE and is_text(declared):
        node.tag = "tag:yaml.org,2002:str"
