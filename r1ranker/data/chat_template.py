"""A tokenizer's chat template: what it writes around the texts of a conversation, with every text in it, in order, once."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import product, zip_longest
from typing import TYPE_CHECKING, Any

from r1ranker.data.control_words import ControlWords
from r1ranker.errors import UserError, first_line, note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters; they stand for a message's content in the template
_SLOT = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_THINK = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning)"
_OPENED = rf"(?:<\|?{_THINK}\|?>|\[{_THINK}\]|◁{_THINK}▷|<\|(?:start|begin)_(?:of_)?{_THINK}\|>|<\|channel>thought|<\|inner_prefix\|>)"
_CLOSED = rf"(?:<\|?/{_THINK}\|?>|\[/{_THINK}\]|◁/{_THINK}▷|<\|end_(?:of_)?{_THINK}\|>|<channel\|>|<\|inner_suffix\|>)"
_THOUGHT = re.compile(rf"(?:{_OPENED}\s*)?(?:{_CLOSED}\s*)?\Z", re.IGNORECASE)
"""a thought that a template opens, or opens and closes, before what the assistant says"""
_THOUGHT_TAG = re.compile(f"{_OPENED}|{_CLOSED}", re.IGNORECASE)
_PROBE = (
    f'"{string.digits}{string.ascii_letters}{string.punctuation} <b>A  b</b> &amp; \\n "É日本"\n\n  - x\t\'y\' http://a.org/?b=c '
    + "long text " * 2000
    + '"'
)
"""what a template that escapes, replaces, cuts or wraps texts does not leave as it is"""
_ROLES = (("user",), ("system", "user"), ("system", "user", "assistant"), ("user", "assistant", "user"))
"""between them, all that a template writes before and behind a turn"""


@dataclass(frozen=True)
class Slot:
    """Where a message's text stands."""

    message: int
    """its place in the conversation"""
    before: str | None
    """characters that the template takes off its beginning; None: all white space"""
    behind: str | None
    """the same of its end"""

    def fill(self, text: str) -> str:
        """`text` as the template writes it."""
        return text.lstrip(self.before).rstrip(self.behind)


Layout = tuple[str | Slot, ...]
"""a conversation of certain roles: what the template writes, and where texts stand"""


class _UnusableError(Exception):
    """A rendering that does not have what it should have."""


class ChatTemplate:
    """The chat template of a tokenizer, as it is when this is made.

    Raises UserError where there is none, or several and none of them is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.name = str(tokenizer.name_or_path or "the tokenizer")
        found: Any = getattr(tokenizer, "chat_template", None)
        if not found:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; one is wanted (chat_template.jinja)"
            )
        if isinstance(found, dict) and "default" not in found:
            raise UserError(
                f"{self.name}: several chat templates ({', '.join(sorted(found))}), none of them called default; one is wanted"
            )
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def layout(self, roles: tuple[str, ...]) -> Layout:
        """What the template writes around messages of these roles.

        A last message of role 'assistant' is begun: nothing comes behind its text. Otherwise the template's opening of an
        assistant's turn comes last. Where the template takes no system turn, its text stands before the next user's, an empty line
        between. Raises UserError where some text would be missing, changed, come twice or out of order, or where nothing opens the
        begun turn.
        """
        if roles not in self._layouts:
            self._layouts[roles] = self._find_layout(roles)
        return self._layouts[roles]

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation as the template writes it, texts with their control words neutralised."""
        return "".join(self.parts(messages))

    def parts(self, messages: Sequence[dict[str, str]]) -> list[str]:
        """The same part by part, as the layout has them."""
        neutralise = self.control_words.neutralise
        return [
            part if isinstance(part, str) else neutralise(part.fill(messages[part.message]["content"]))
            for part in self.layout(_roles_of(messages))
        ]

    def opening(self, messages: Sequence[dict[str, str]]) -> str:
        """What the rendered conversation has behind the text of its last turn but the begun one."""
        layout = self.layout(_roles_of(messages))
        start = len(layout)
        while start and (isinstance(part := layout[start - 1], str) or messages[part.message]["role"] == "assistant"):
            start -= 1
        return "".join(self.parts(messages)[start:])

    @cached_property
    def control_words(self) -> ControlWords:
        """What only the template may write."""
        layouts: list[Layout] = []
        for roles in _ROLES:
            try:
                layouts.append(self.layout(roles))
            except UserError:  # said where a conversation of these roles is asked for
                continue
        return ControlWords(
            self.tokenizer, [[part if isinstance(part, str) else "" for part in one] for one in layouts]
        )

    def _find_layout(self, roles: tuple[str, ...]) -> Layout:
        begun = roles[-1] == "assistant"
        problems: list[str] = []
        # a template that loses a begun turn, or refuses one, may still open one; one that fails on text may take parts
        for as_message, folded, in_parts in product((True, False) if begun else (False,), (False, True), (False, True)):
            if folded and "system" not in roles:
                continue
            try:
                layout = self._try_layout(roles, begun and as_message, folded, in_parts)
            except UserError:
                raise
            except Exception as error:  # a template is a program of others: it may raise anything
                problems.append(first_line(error, 200) or type(error).__name__)
                continue
            if folded:
                note(
                    f"{self.name}: the chat template takes no system turn here; its text stands at the head of the user's"
                )
            return layout
        said = "; ".join(dict.fromkeys(problems))
        raise UserError(f"{self.name}: the chat template cannot be used for the turns {', '.join(roles)}: {said}")

    def _try_layout(self, roles: tuple[str, ...], begun: bool, folded: bool, in_parts: bool) -> Layout:
        def write(texts: list[str]) -> str:
            messages = _messages(roles, texts, begun, folded, in_parts)
            rendered = self._render(messages, not begun)
            if roles[-1] == "assistant" and not begun:
                rendered = _THOUGHT.sub("", rendered)
                if rendered == self._render(messages, False):
                    raise _UnusableError("it writes nothing that opens the assistant's turn")
                rendered += texts[-1]
            return rendered

        def render(before: str = "", behind: str = "") -> list[str]:
            return _split(write([f"{before}{_OPEN}{place}{_CLOSE}{behind}" for place in range(len(roles))]), roles)

        whole = render()
        pieces = list(whole)
        if roles[-1] == "assistant":
            pieces[-1] = ""
            pieces[-2] = _THOUGHT.sub("", pieces[-2])
            if found := _THOUGHT_TAG.search(pieces[-2]):
                raise _UnusableError(
                    f"it writes {found.group()} into the turn that a thought of the answer's own is to begin"
                )
        # white space that a text is given and that is not there afterwards is what the template takes off
        left = [(mark, render(before=mark)) for mark in " \n"]
        right = [(mark, render(behind=mark)) for mark in " \n"]
        slots = [
            Slot(place, _taken_off(left, whole, place), _taken_off(right, whole, place + 1))
            for place in range(len(roles))
        ]
        hard = [f"{_PROBE[0]}{place}{_PROBE}" for place in range(len(roles))]
        _compare(write(hard), whole, [slot.fill(text) for slot, text in zip(slots, hard, strict=True)], roles)
        layout: list[str | Slot] = []
        for piece, slot in zip_longest(pieces, slots):
            layout += [part for part in (piece, slot) if part]
        return tuple(layout)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """The template's text, by transformers; the date is that of the run."""

        def strftime_now(form: str) -> str:
            written = run_date().strftime(form)
            note(
                f"{self.name}: the chat template writes the date into every prompt; this run has {written}, "
                "and SOURCE_DATE_EPOCH (seconds) gives runs of other days the same"
            )
            return written

        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=strftime_now
            )
        )


def _roles_of(messages: Sequence[dict[str, str]]) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _messages(
    roles: Sequence[str], texts: Sequence[str], begun: bool, folded: bool, in_parts: bool
) -> list[dict[str, Any]]:
    """Messages for a template: without an assistant's turn that is not to be begun, with system texts put before the next user's."""
    messages: list[dict[str, Any]] = []
    waiting: list[str] = []
    last = len(roles) - (roles[-1] == "assistant" and not begun)
    for role, text in zip(roles[:last], texts, strict=False):
        if folded and role == "system":
            waiting.append(text)
            continue
        if role == "user":
            text, waiting = "\n\n".join([*waiting, text]), []
        messages.append({"role": role, "content": [{"type": "text", "text": text}] if in_parts else text})
    if waiting:
        raise _UnusableError("no turn of the user comes behind that of the system")
    return messages


def _split(rendered: str, roles: Sequence[str]) -> list[str]:
    """What the template writes before, between and behind the texts [len(roles) + 1]."""
    found = [int(place) for place in _SLOT.findall(rendered)]
    for place, role in enumerate(roles):
        if found.count(place) != 1:
            many = "leaves out" if place not in found else "repeats"
            raise _UnusableError(f"it {many} the text of the {role}'s turn")
    if found != sorted(found):
        raise _UnusableError("it changes the order of the turns")
    return _SLOT.split(rendered)[::2]


def _compare(rendered: str, pieces: Sequence[str], texts: Sequence[str], roles: Sequence[str]) -> None:
    """Raise _UnusableError unless `rendered` is the pieces with the texts between them."""
    end = 0
    for piece, text, role in zip(pieces, texts, roles, strict=False):
        if not rendered.startswith(piece + text, end):
            raise _UnusableError(f"it changes the text of the {role}'s turn")
        end += len(piece + text)
    if rendered[end:] != pieces[-1]:
        raise _UnusableError(f"it changes the text of the {roles[-1]}'s turn")


def _taken_off(padded: Sequence[tuple[str, Sequence[str]]], pieces: Sequence[str], place: int) -> str | None:
    """Of a space and a line break beside a text, those that are not in the piece there."""
    kept = {mark for mark, longer in padded if len(longer[place]) > len(pieces[place])}
    taken = "".join(mark for mark, _ in padded if mark not in kept)
    return None if len(taken) == len(padded) else taken


@lru_cache(maxsize=1)
def run_date() -> datetime:
    """The beginning of the day on which this process first asks; SOURCE_DATE_EPOCH (seconds since 1970, UTC) sets another.

    Raises UserError where that is no number.
    """
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    if fixed is None:
        return datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        return datetime.fromtimestamp(int(fixed), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"SOURCE_DATE_EPOCH: found {fixed!r}; seconds since 1970 are wanted") from error


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's chat template, made once as long as nothing of the tokenizer changes."""
    special = repr(sorted(tokenizer.special_tokens_map.items()))
    return _made(tokenizer, repr(getattr(tokenizer, "chat_template", None)), special, len(tokenizer))


@lru_cache(maxsize=16)
def _made(tokenizer: PreTrainedTokenizerBase, *state: object) -> ChatTemplate:
    return ChatTemplate(tokenizer)
