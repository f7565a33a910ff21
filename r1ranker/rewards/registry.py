"""The registry of reward functions: by name, or a user's own by `path/to/file.py:function`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1ranker.errors import UserError, suggest

RewardFunction = Callable[..., Any]
"""(data_source, solution_str, ground_truth, extra_info) -> a number, or a dict with `score` and its parts"""

REWARDS: dict[str, RewardFunction] = {}


def register(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator: make a reward function known by `name`."""

    def add(function: RewardFunction) -> RewardFunction:
        known = REWARDS.get(name)
        # the same file may be loaded again under another name, as veRL does with a custom reward function
        if known is not None and known.__code__.co_filename != function.__code__.co_filename:
            raise UserError(f"reward {name!r} is already registered")
        REWARDS[name] = function
        return function

    return add


def get_reward(name: str) -> RewardFunction:
    """The registered reward of that name, or the function of a file, given as path/to/file.py:function.

    Raises UserError where there is no such name, file or function, or the file fails to load.
    """
    path, colon, function_name = name.rpartition(":")
    if not colon:
        import r1ranker.rewards  # noqa: F401  (the built-in ones register themselves)

        if name not in REWARDS:
            raise UserError(
                f"unknown reward {name!r}{suggest(name, REWARDS)}; one of {', '.join(REWARDS)} or path/to/file.py:function is wanted"
            )
        return REWARDS[name]
    file = Path(path)
    if not file.is_file():
        raise UserError(f"custom_reward_function.path: {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"r1ranker_user_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"custom_reward_function.path: {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left beside a user's file
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UserError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error
    finally:
        sys.dont_write_bytecode = writes
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{path}: no function {function_name!r}{suggest(function_name, functions)}")
    return function
