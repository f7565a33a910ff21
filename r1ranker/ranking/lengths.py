"""How long prompts are, and how a pool is parted whose prompt is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.pretrained import read_setting
from r1ranker.ranking.settings import RankerSettings, WindowSettings
from r1ranker.rollout.constraint import build_constraint
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import candidate_lines, chat_messages, render_problem

AROUND = 512
"""tokens that a chat and its instruction put around a problem at most: some tens, with any template known"""


def trained_prompt_length(path: str) -> int:
    """Tokens of a prompt that a model was trained with at most, by its settings; 0 where they do not say."""
    found = read_setting(path, "max_prompt_length")
    return found if isinstance(found, int) else 0


def longest_prompts(
    tokenizer: PreTrainedTokenizerBase, settings: RankerSettings, examples: Sequence[RankingExample]
) -> list[int]:
    """Tokens of each example's longest prompt. An elimination begins with its longest: pools only shrink. Of parts of a pool it is
    at most that of the candidates with most tokens.

    Raises UserError for a chat template that cannot be used.
    """
    form, size = settings.answer_format, settings.windows.size
    shown = [_longest_part(tokenizer, example, size) for example in examples] if settings.parts_pools else examples
    problems = [render_problem(example, settings.mode, form.answer_style) for example in shown]
    lengths = map(len, encode_chats(tokenizer, [chat_messages(problem, form, settings.mode) for problem in problems]))
    # at other places of a part a label or a break may cost another token
    return [
        length + size if part is not whole else length
        for length, part, whole in zip(lengths, shown, examples, strict=True)
    ]


def part_to_fit(
    tokenizer: PreTrainedTokenizerBase, settings: RankerSettings, example: RankingExample, room: int | None
) -> tuple[RankerSettings, int]:
    """Settings that rank an example by prompts of at most `room` tokens (None: any number), and the tokens of its longest one.

    They are `settings`, or where these have longer prompts the largest windows that seem to fit. Raises UserError where not even
    two of its candidates do.
    """
    (tokens,) = longest_prompts(tokenizer, settings, [example])
    while room is not None and tokens > room:
        shown = min(len(example.candidates), settings.windows.size if settings.parts_pools else len(example.candidates))
        if shown <= 2:
            raise UserError(
                f"a request of {example.task}: two of its candidates take a prompt of {tokens:,} tokens; {max(room, 0):,} is held beside "
                f"an answer of up to {settings.max_tokens:,}; shorter texts (--max_passage_tokens), a smaller --max_tokens or a "
                "larger max_model_len is wanted"
            )
        settings = _with_windows(settings, max(2, min(shown - 1, shown * room // tokens)))
        (tokens,) = longest_prompts(tokenizer, settings, [example])
    return settings, tokens


def check_pool(tokenizer: PreTrainedTokenizerBase, settings: RankerSettings, example: RankingExample) -> None:
    """Raise UserError for a pool that a constraint cannot tell apart, also where only parts of it are shown together."""
    if settings.is_constrained:
        build_constraint(tokenizer, example.candidates, settings.mode, settings.answer_format)


def is_short(example: RankingExample, settings: RankerSettings, room: int | None) -> bool:
    """Whether the prompt of an example has at most `room` tokens, as can be seen without counting: a token is a byte at least."""
    if room is None:
        return True
    problem = render_problem(example, settings.mode, settings.answer_format.answer_style)
    return len(problem.encode("utf-8", "surrogatepass")) + AROUND <= room


def _with_windows(settings: RankerSettings, size: int) -> RankerSettings:
    """Windows of `size`, or where pools are parted already, parts of that size in the same way."""
    before = settings.windows
    if settings.parts_pools:
        step = max(1, before.step * size // before.size)
        return replace(settings, windows=replace(before, size=size, step=step))
    inside = WindowSettings(size, max(1, size // 2), inside="logits" if settings.by_logits else "answer")
    return replace(settings, strategy="windows", trained=settings.mode, windows=inside)


def _longest_part(tokenizer: PreTrainedTokenizerBase, example: RankingExample, size: int) -> RankingExample:
    if len(example.candidates) <= size:
        return example
    tokens = tokenizer(candidate_lines(example, "name"), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(tokens)), key=lambda place: -len(tokens[place]))
    return example.with_pool(tuple(example.candidates[place] for place in sorted(order[:size])))
