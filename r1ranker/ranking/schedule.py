"""Many conversations over one engine: each goes on as soon as its own answer is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from r1ranker.ranking.conversation import Conversation, Question, RankingResult, Reply
from r1ranker.rollout.engine import Completion, Request, SamplingParams, Session

MOST_OPEN = 512
"""conversations at once: enough to fill an engine's batch"""

ToRequest = Callable[[Question], tuple[Request, SamplingParams]]
ToReplies = Callable[[Question, Request, Sequence[Completion]], list[Reply]]


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
    opened: dict[int, tuple[Conversation, Question, Request]] = {}

    def go_on(place: int, conversation: Conversation, replies: Sequence[Reply] | None) -> RankingResult | None:
        try:
            question = next(conversation) if replies is None else conversation.send(replies)
        except StopIteration as end:
            return end.value
        request, params = to_request(question)
        opened[place] = (conversation, question, request)
        session.add(place, request, params)
        return None

    more = True
    while more or opened:
        while more and len(opened) < MOST_OPEN:
            place, conversation = next(waiting, (-1, None))
            if conversation is None:
                more = False
            elif (result := go_on(place, conversation, None)) is not None:
                yield place, result
        finished = session.step()
        while lockstep and len(finished) < len(opened):
            finished += session.step()
        for place, completions in finished:
            conversation, question, request = opened.pop(place)
            if (result := go_on(place, conversation, to_replies(question, request, completions))) is not None:
                yield place, result
