"""Many conversations over one engine: each goes on as soon as its own questions are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from r1ranker.ranking.conversation import Conversation, Question, RankingResult, Reply
from r1ranker.rollout.engine import Completion, Request, SamplingParams, Session

MOST_OPEN = 512
"""conversations at once: enough to fill an engine's batch"""
MOST_AHEAD = 2 * MOST_OPEN
"""conversations that are begun before the oldest open one ends: an engine takes the longest prompts first, so a short one could wait for all"""
MOST_ASKED = 2**20
"""questions that a conversation may ask at once"""

ToRequest = Callable[[Question], tuple[Request, SamplingParams]]
ToReplies = Callable[[Question, Request, Sequence[Completion]], list[Reply]]


@dataclass
class _Open:
    """A conversation and what was asked in it last."""

    place: int
    conversation: Conversation
    asked: list[tuple[Question, Request]] = field(default_factory=list)
    replies: dict[int, list[Reply]] = field(default_factory=dict)


def run_conversations(
    conversations: Iterable[Conversation],
    session: Session,
    to_request: ToRequest,
    to_replies: ToReplies,
    lockstep: bool = False,
) -> Iterator[tuple[int, RankingResult]]:
    """(place, result) of each conversation as it ends.

    `to_request` makes a question a request, `to_replies` makes its completions replies. With `lockstep` all open conversations are
    held in step, as a peer to measure against.
    """
    waiting = iter(enumerate(conversations))
    requests: dict[int, tuple[_Open, int]] = {}
    """key of each open request: its conversation, and its place among the questions asked there"""
    opened, taken, oldest = 0, 0, 0
    ended: set[int] = set()
    """places behind the oldest open one that are done"""

    def go_on(one: _Open) -> RankingResult | None:
        try:
            if one.asked:
                questions = one.conversation.send([one.replies[number] for number in range(len(one.asked))])
            else:
                questions = next(one.conversation)
        except StopIteration as end:
            return end.value
        one.asked, one.replies = [], {}
        for number, question in enumerate(questions):
            request, params = to_request(question)
            one.asked.append((question, request))
            key = one.place * MOST_ASKED + number
            requests[key] = (one, number)
            session.add(key, request, params)
        return None

    more = True
    while more or requests:
        while oldest in ended:
            ended.remove(oldest)
            oldest += 1
        while more and opened < MOST_OPEN and taken - oldest < MOST_AHEAD:
            place, conversation = next(waiting, (-1, None))
            if conversation is None:
                more = False
                break
            taken += 1
            if (result := go_on(_Open(place, conversation))) is not None:
                ended.add(place)
                yield place, result
            else:
                opened += 1
        finished = session.step() if requests else []
        while lockstep and len(finished) < len(requests):
            finished += session.step()
        for key, completions in finished:
            one, number = requests.pop(key)
            one.replies[number] = to_replies(*one.asked[number], completions)
            if len(one.replies) == len(one.asked) and (result := go_on(one)) is not None:
                opened -= 1
                ended.add(one.place)
                yield one.place, result
