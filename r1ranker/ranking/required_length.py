"""How many tokens an engine has to hold to rank given examples, said before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from transformers import PreTrainedTokenizerBase

from r1ranker.errors import UserError, note
from r1ranker.ranking.lengths import check_pool, longest_prompts, part_to_fit
from r1ranker.ranking.settings import RankerSettings
from r1ranker.ranking.shown import Shown
from r1ranker.ranking.strategies import AROUND_TURN
from r1ranker.rollout.context import find_limit, load_context_length
from r1ranker.rollout.start import find_engine
from r1ranker.tasks.example import RankingExample

AT_ONCE = 256
"""examples tokenised together"""
STEP = 64
"""tokens that room for a prompt and a response is a multiple of"""


def required_length(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: RankerSettings,
    examples: Iterable[RankingExample],
    max_model_len: int | None = None,
    engine: str = "hf",
) -> int:
    """Tokens that an engine over the model of `path` has to hold to rank `examples`: `max_model_len`, or what they need.

    Pools that are too long for it are parted, which is said. Raises UserError where not even two candidates and a response fit.
    """
    holds = load_context_length(path)
    if max_model_len is not None and holds is not None and max_model_len > holds:
        raise UserError(f"--max_model_len: found {max_model_len:,}; {path} holds {holds:,}, so at most that is wanted")
    limit = max_model_len or find_limit(path, by_vllm=find_engine(engine) == "vllm")[0]
    room = None if limit is None else limit - settings.max_tokens
    longest, parted, smallest, turns = 0, 0, 0, 0
    shown = Shown(tokenizer, settings, room)
    left = map(shown, examples)
    while some := list(islice(left, AT_ONCE)):
        for example, tokens in zip(some, longest_prompts(tokenizer, settings, some), strict=True):
            if room is not None and tokens > room:
                fitted, tokens = part_to_fit(tokenizer, settings, example, room)
                size = fitted.windows.size
                parted, smallest = parted + 1, min(smallest or size, size)
            check_pool(tokenizer, settings, example)
            longest = max(longest, tokens)
            if settings.rounds == "conversation":
                turns = max(turns, len(example.candidates) - 2)
    for line in shown.say():
        note(line)
    if parted:
        note(
            f"{parted:,} requests have prompts that are too long for the {limit:,} tokens that are held with an answer of up to "
            f"{settings.max_tokens:,}; they are ranked in parts of {smallest:,} candidates or more"
        )
    if max_model_len is not None:
        return max_model_len
    needed = longest + settings.max_tokens
    whole = needed + turns * AROUND_TURN  # where a conversation does not fit it is begun anew
    needed = max(needed, whole if limit is None else min(whole, limit))
    return -(-needed // STEP) * STEP
