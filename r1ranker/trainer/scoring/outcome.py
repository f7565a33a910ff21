"""Rewards of completions: the response alone is decoded and handed to the reward function, whose breakdown is kept."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import Terminated, UserError
from r1ranker.rewards.registry import get_reward
from r1ranker.tasks.text import one_line
from r1ranker.trainer.config.schema import RewardFunctionConfig

RewardFunction = Callable[..., Any]
MAX_SHOWN = 300
"""characters of what a reward gave or said"""


@dataclass(frozen=True)
class Failure:
    """A reward that could not be computed: one sample's, and why."""

    place: str
    """file:line"""
    row: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: the reward failed on {self.row}: {self.what}"


Outcome = dict[str, float] | Failure
"""of one response: `score` and the parts that the reward names, or why there are none"""


def load_reward(config: RewardFunctionConfig) -> RewardFunction:
    """The user's own function where a path is given, else the built-in compute_score."""
    return get_reward(f"{config.path}:{config.name}" if config.path else config.name)


def describe_row(prompt: Prompt) -> str:
    """How a prompt's row is named to the user."""
    return f"{prompt.data_source} row {prompt.extra_info.get('index')}"


def score_response(reward: RewardFunction, prompt: Prompt, text: str) -> Outcome:
    """The reward of one response, or a Failure where the function fails or gives something that is no finite number.

    Raises UserError where the function does: for a row that no response could be scored on.
    """
    extra_info = dict(prompt.extra_info) | {
        "think": prompt.answer_format.think,
        "answer_style": prompt.answer_format.answer_style,
    }
    try:
        result = reward(prompt.data_source, text, prompt.ground_truth, extra_info)
        parts = dict(result) if isinstance(result, Mapping) else {"score": result}
        numbers = {str(name): float(value) for name, value in parts.items() if isinstance(value, Real)}
    except (UserError, Terminated):
        raise
    except (Exception, SystemExit) as error:  # a reward that calls sys.exit() fails; it does not end the run
        trace = traceback.extract_tb(error.__traceback__)
        frames = [(frame.filename, frame.lineno or 0) for frame in trace if frame.filename != __file__]
        place = find_place(frames, find_definition(reward))
        return Failure(place, describe_row(prompt), f"{type(error).__name__}: {_short(str, error)}")
    odd = [name for name, value in numbers.items() if not math.isfinite(value)]
    if "score" in numbers and not odd:
        return numbers
    wanted = f"{odd[0]!r} is no finite number" if odd else "a finite number, or a dict with `score`, is wanted"
    place = ":".join(map(str, find_definition(reward)))
    return Failure(place, describe_row(prompt), f"it gave {_short(repr, result)}; {wanted}")


def find_definition(reward: RewardFunction) -> tuple[str, int]:
    """File and line where a reward function is defined, as well as that can be known."""
    code = getattr(inspect.unwrap(reward), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else (type(reward).__module__, 0)


def find_place(frames: Sequence[tuple[str, int]], code: tuple[str, int]) -> str:
    """file:line of the innermost of `frames` (outermost first) that is in the reward's own file, else of the innermost."""
    own = [frame for frame in frames if frame[0] == code[0]]
    return ":".join(map(str, (own or list(frames) or [code])[-1]))


def _short(write: Callable[[Any], str], value: Any) -> str:
    """What a user's object says of itself, on one line; it may fail at that, too."""
    try:
        return one_line(write(value)[: 10 * MAX_SHOWN])[:MAX_SHOWN]
    except Exception as error:
        return f"(and {type(error).__name__} when it was asked to say more)"


def report_failures(failures: Sequence[Failure], responses: int) -> list[str]:
    """A line for each place where rewards of a batch failed."""
    by_place: dict[str, list[Failure]] = {}
    for failure in failures:
        by_place.setdefault(failure.place, []).append(failure)
    return [f"{own[0]} ({len(own)} of {responses} responses; left out of the batch)" for own in by_place.values()]


def refuse_too_many_failures(failures: Sequence[Failure], responses: int, most: float) -> None:
    """Raise UserError where more than the share `most` of a batch's rewards failed."""
    if len(failures) > most * responses:
        raise UserError(
            f"{failures[0]} ({len(failures)} of {responses} responses; reward.max_failure_rate is {most:g})"
        )
