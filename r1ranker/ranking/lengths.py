"""How many tokens an engine has to hold to rank given examples, said before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.pretrained import read_setting
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.context import check_fits, load_context_length
from r1ranker.rollout.start import find_engine
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import candidate_lines, chat_messages, render_problem

if TYPE_CHECKING:
    from r1ranker.ranking.settings import RankerSettings

AT_ONCE = 256
"""examples tokenised together"""
STEP = 64
"""tokens that room for a prompt and a response is a multiple of"""


def trained_prompt_length(path: str) -> int:
    """Tokens of a prompt that a model was trained with at most, by its settings; 0 where they do not say."""
    found = read_setting(path, "max_prompt_length")
    return found if isinstance(found, int) else 0


def find_longest_prompt(
    tokenizer: PreTrainedTokenizerBase, settings: RankerSettings, examples: Iterable[RankingExample]
) -> int:
    """Tokens of the longest prompt. An elimination begins with its longest: pools only shrink. Of parts of a pool it is at most that
    of the candidates with most tokens.

    Raises UserError for a chat template that cannot be used, and for a pool that a constraint cannot tell apart.
    """
    form, size, longest, left = settings.answer_format, settings.windows.size, 0, iter(examples)
    while some := list(islice(left, AT_ONCE)):
        shown = [_longest_part(tokenizer, example, size) for example in some] if settings.parts_pools else some
        problems = [render_problem(example, settings.mode, form.answer_style) for example in shown]
        chats = [chat_messages(problem, form, settings.mode) for problem in problems]
        longest = max(longest, *map(len, encode_chats(tokenizer, chats)))
        for example in some if settings.is_constrained else ():
            build_constraint(tokenizer, example.candidates, settings.mode, form)
    # at other places of a part a label or a break may cost another token
    return longest + size if settings.parts_pools else longest


def _longest_part(tokenizer: PreTrainedTokenizerBase, example: RankingExample, size: int) -> RankingExample:
    if len(example.candidates) <= size:
        return example
    tokens = tokenizer(candidate_lines(example, "name"), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(tokens)), key=lambda place: -len(tokens[place]))
    return example.with_pool(tuple(example.candidates[place] for place in sorted(order[:size])))


def required_length(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: RankerSettings,
    examples: Iterable[RankingExample],
    max_model_len: int | None = None,
    engine: str = "hf",
) -> int:
    """Tokens that an engine over the model of `path` has to hold to rank `examples`: `max_model_len`, or what they need.

    Raises UserError where the longest prompt and a response are longer than the model or `max_model_len` holds.
    """
    prompt, response = find_longest_prompt(tokenizer, settings, examples), settings.max_tokens
    advice = "shorter requests, or a smaller --max_tokens (of a response), are wanted"
    check_fits(path, prompt, response, advice, by_vllm=find_engine(engine) == "vllm")
    needed, holds = prompt + response, load_context_length(path)
    if max_model_len is not None and holds is not None and max_model_len > holds:
        raise UserError(f"--max_model_len: found {max_model_len:,}; {path} holds {holds:,}, so at most that is wanted")
    if max_model_len is not None and needed > max_model_len:
        raise UserError(
            f"--max_model_len: found {max_model_len:,}; the longest prompt has {prompt:,} tokens and a response up to "
            f"{response:,}: at least {needed:,} is wanted"
        )
    return max_model_len or -(-needed // STEP) * STEP
