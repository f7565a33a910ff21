"""Many conversations over one engine: each goes on as soon as its own questions are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from r1ranker.errors import UserError
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
Ended = list[tuple[int, RankingResult | UserError]]
"""(place, result) of conversations that have ended, or what ended them"""


@dataclass(frozen=True)
class Asker:
    """How a conversation's questions are put to an engine."""

    to_request: ToRequest
    to_replies: ToReplies
    """makes completions replies"""


@dataclass
class _Open:
    """A conversation and what was asked in it last."""

    place: int
    conversation: Conversation
    asker: Asker
    asked: list[tuple[Question, Request, SamplingParams]] = field(default_factory=list)
    handed: int = 0
    """of what was asked, so many were given to the session"""
    replies: dict[int, list[Reply]] = field(default_factory=dict)


class OpenConversations:
    """Conversations that go on over one session, however many are begun while others are under way."""

    def __init__(self, session: Session, most_asked: int = MOST_ASKED) -> None:
        """`most_asked`: questions of one conversation that the session holds at a time, so that none fills it."""
        self._session, self._most_asked = session, most_asked
        self._open: dict[int, _Open] = {}
        self._keys: dict[int, tuple[_Open, int]] = {}
        """key of each request in the session: its conversation, and its number among the questions asked there"""

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, place: int, conversation: Conversation, asker: Asker) -> RankingResult | None:
        """Have a conversation go on under the number `place`; its result where it ends without a question.

        What it raises, such as UserError for a prompt that is too long, ends it.
        """
        self._open[place] = one = _Open(place, conversation, asker)
        return self._go_on(one)

    def step(self, once: bool = False, lockstep: bool = False) -> Ended:
        """Go on until a request is complete, or `once`; `lockstep`: until all are."""
        finished = self._session.step(once) if self._keys else []
        while lockstep and len(finished) < len(self._keys):
            finished += self._session.step()
        ended: Ended = []
        for key, completions in finished:
            if key not in self._keys:
                continue  # another one of these completions ended its conversation
            one, number = self._keys.pop(key)
            question, request, _ = one.asked[number]
            try:
                one.replies[number] = one.asker.to_replies(question, request, completions)
                self._hand_over(one)
                result = self._go_on(one) if len(one.replies) == len(one.asked) else None
            except UserError as error:
                self.cancel(one.place)
                ended.append((one.place, error))
                continue
            if result is not None:
                ended.append((one.place, result))
        return ended

    def cancel(self, place: int) -> None:
        """Drop a conversation with its open questions; nothing comes of it any more."""
        one = self._open.pop(place, None)
        if one is None:
            return
        one.conversation.close()
        self._let_go(one, range(one.handed))

    def _go_on(self, one: _Open) -> RankingResult | None:
        try:
            if one.asked:
                questions = one.conversation.send([one.replies[number] for number in range(len(one.asked))])
            else:
                questions = next(one.conversation)
            self._let_go(one, range(len(questions), one.handed))
            one.asked = [(question, *one.asker.to_request(question)) for question in questions]
            one.replies, one.handed = {}, 0
            self._hand_over(one)
        except StopIteration as end:
            del self._open[one.place]
            self._let_go(one, range(one.handed))
            result: RankingResult = end.value
            return result
        except BaseException:
            self.cancel(one.place)
            raise
        return None

    def _let_go(self, one: _Open, numbers: Iterable[int]) -> None:
        """Drop these of the last questions, and what the session keeps of them: nobody goes on with it."""
        for number in numbers:
            key = one.place * MOST_ASKED + number
            self._keys.pop(key, None)
            self._session.cancel(key)

    def _hand_over(self, one: _Open) -> None:
        """Give the session what was asked, as far as it may hold of it."""
        while one.handed < len(one.asked) and one.handed - len(one.replies) < self._most_asked:
            key = one.place * MOST_ASKED + one.handed
            _, request, params = one.asked[one.handed]
            self._session.add(key, request, params)
            self._keys[key] = (one, one.handed)
            one.handed += 1


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
    asker, underway = Asker(to_request, to_replies), OpenConversations(session)
    taken, oldest = 0, 0
    ended: set[int] = set()
    """places behind the oldest open one that are done"""
    more = True
    while more or len(underway):
        while oldest in ended:
            ended.remove(oldest)
            oldest += 1
        while more and len(underway) < MOST_OPEN and taken - oldest < MOST_AHEAD:
            place, conversation = next(waiting, (-1, None))
            if conversation is None:
                more = False
                break
            taken += 1
            if (result := underway.begin(place, conversation, asker)) is not None:
                ended.add(place)
                yield place, result
        for place, outcome in underway.step(lockstep=lockstep):
            if isinstance(outcome, UserError):
                raise outcome
            ended.add(place)
            yield place, outcome
