"""Rewards of completions: the response alone is decoded and handed to the reward function, whose breakdown is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from r1ranker.data.prompts import Prompt
from r1ranker.errors import UserError
from r1ranker.rewards.base import get_reward
from r1ranker.trainer.config import RewardFunctionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # brings torch, which processes of the reward do without

RewardFunction = Callable[..., Any]


def reward_function(config: RewardFunctionConfig) -> RewardFunction:
    """The user's own function where a path is given, else the built-in compute_score."""
    return get_reward(f"{config.path}:{config.name}" if config.path else config.name)


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stopped: bool) -> str:
    """The response as text, without the token that ended it; control tokens elsewhere stay visible."""
    return str(tokenizer.decode(list(token_ids[:-1] if stopped else token_ids), skip_special_tokens=False))


def breakdown(reward: RewardFunction, prompt: Prompt, text: str) -> dict[str, float]:
    """The reward of one response: its `score` and the parts that the function names.

    Raises UserError where the function fails or gives something that is no finite number.
    """
    extra_info = dict(prompt.extra_info) | {
        "think": prompt.answer_format.think,
        "answer_style": prompt.answer_format.answer_style,
    }
    row = f"{prompt.data_source} row {prompt.extra_info.get('index')}"
    try:
        result = reward(prompt.data_source, text, prompt.ground_truth, extra_info)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{_place(error)}: the reward failed on {row}: {type(error).__name__}: {error}") from error
    parts = dict(result) if isinstance(result, Mapping) else {"score": result}
    numbers = {name: float(value) for name, value in parts.items() if isinstance(value, Real)}
    if not math.isfinite(numbers.get("score", math.nan)):
        raise UserError(f"the reward gave {result!r} for {row}; a finite number, or a dict with `score`, is wanted")
    return numbers


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "reward function"
