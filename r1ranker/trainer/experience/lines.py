"""Credit by rank: a direct ranking as its lines, each with the reward that it adds, as the turns of a conversation have theirs.

Rank-GRPO (arXiv 2510.20150) has a reward and an importance ratio for each rank; with policy_loss.loss_mode=gspo the ratio is a line's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from r1ranker.data.names import CLOSING
from r1ranker.data.prompt_store import Prompt
from r1ranker.data.tokenise import ANSWER, BREAK
from r1ranker.rewards.parts import CUTOFF, discounted_gains, exponential_gain, known_grades
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.text import find_name
from r1ranker.trainer.batch.trajectory import Trajectory


def split_by_rank(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory], turn_gamma: float
) -> tuple[list[Trajectory], list[int]]:
    """The lines of all direct rankings as trajectories, and of each the place of the response that it is of.

    A line's reward is what it adds to NDCG@20, and what the whole response's reward has beside NDCG (with a discount over lines, so
    much of it that every line's return holds it once). What comes before the list, a
    thought, has the whole response's reward. Lines after which nothing can be gained are not learned from, and left out. A response
    that is no list of lines stays as it is, and so do those of iterative rows.
    """
    found: list[Trajectory] = []
    origins: list[int] = []
    text_of = cache(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)))
    for place, one in enumerate(trajectories):
        lines = _split(text_of, prompts[one.group_id], one, place, turn_gamma)
        found += lines
        origins += [place] * len(lines)
    return found, origins


def _split(
    text_of: Callable[[tuple[int, ...]], str], prompt: Prompt, one: Trajectory, place: int, turn_gamma: float
) -> list[Trajectory]:
    if prompt.mode != "direct":
        return [one]
    texts = [text_of((token,)) for token in one.response_ids]
    begun, spans = _find_lines(texts, prompt.answer_format.think)
    named = [_named(prompt, text_of(tuple(one.response_ids[start:end]))) for start, end in spans]
    if len(spans) < 2 or None in named or len(set(named)) < len(named):
        return [one]
    places = [candidate for candidate in named if candidate is not None]
    gains = _gains(prompt, places)
    # behind the last candidate that has a grade, whichever line it is in, nothing is to be gained
    kept = max((number + 1 for number, gain in enumerate(gains) if gain), default=len(gains))
    rest = one.score - sum(gains)
    # handed back over lines, it counts once
    shared = [rest * (1 - turn_gamma)] * (kept - 1) + [rest]
    scores = [gain + share for gain, share in zip(gains[:kept], shared, strict=True)]
    pieces = [(start, end, score) for (start, end), score in zip(spans, scores, strict=False)]
    if begun:
        returns = sum(turn_gamma**number * score for number, score in enumerate(scores, start=1))
        pieces.insert(0, (0, begun, one.score - returns))  # whose return is then the whole response's reward
    # number 0 is for thoughts, and for responses that stay whole: their rewards are no line's
    first = 0 if begun else 1
    return [_piece(one, start, end, score, turn, place) for turn, (start, end, score) in enumerate(pieces, first)]


def _piece(one: Trajectory, start: int, end: int, score: float, turn: int, place: int) -> Trajectory:
    return replace(
        one,
        prompt_ids=[*one.prompt_ids, *one.response_ids[:start]],
        response_ids=one.response_ids[start:end],
        rollout_logprobs=one.rollout_logprobs[start:end],
        allowed=one.allowed[start:end],
        score=score,
        episode=place,
        turn=turn,
        root_length=len(one.prompt_ids),
    )


def _find_lines(texts: Sequence[str], think: bool) -> tuple[int, list[tuple[int, int]]]:
    """(tokens before the answer's first line, start and end of each line in it, the break behind it among its tokens)."""
    begun, written = 0, ""
    if think:
        for number, text in enumerate(texts, start=1):
            written += text
            if ANSWER in written:
                begun = number
                break
        else:
            return 0, []
    ends = [number + 1 for number, text in enumerate(texts) if BREAK in text and number >= begun]
    bounds = sorted({begun, *ends, len(texts)})
    spans: list[tuple[int, int]] = []
    for start, end in pairwise(bounds):
        # a blank line, and the end of the answer, belong to what comes before
        if "".join(texts[start:end]).partition(CLOSING)[0].strip():
            spans.append((start, end))
        elif spans:
            spans[-1] = (spans[-1][0], end)
        else:
            begun = end
    return begun, spans


def _named(prompt: Prompt, text: str) -> int | None:
    """The one candidate that a line names."""
    line = text.partition(CLOSING)[0]
    answer = parse_answer(
        f"{ANSWER}{line}{CLOSING}", prompt.candidates, "iterative", replace(prompt.answer_format, think=False)
    )
    return answer.named[0] if answer.is_valid("iterative", len(prompt.candidates)) else None


def _gains(prompt: Prompt, places: Sequence[int]) -> list[float]:
    """What each rank adds to NDCG@20, as graded_ndcg sums it."""
    positive = find_name(prompt.candidates, str(prompt.ground_truth["gt"]))
    assert positive is not None  # the reward was computed
    own = [float(grade) for grade in prompt.ground_truth.get("grades") or ()]
    grades = known_grades(positive, len(prompt.candidates), own)
    ideal = sum(discounted_gains(sorted(grades, reverse=True)[:CUTOFF], exponential_gain))
    gains = discounted_gains([grades[place] for place in places[:CUTOFF]], exponential_gain)
    return [gain / ideal if ideal > 0 else 0.0 for gain in gains] + [0.0] * (len(places) - len(gains))
