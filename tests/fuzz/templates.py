"""Properties of chat templates as models bring them: some refuse a turn, lose one, take off white space or begin a thought."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from r1ranker.data.chat_template import ChatTemplate
from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError
from r1ranker.rollout.constraint import ConstraintState, build_constraint
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import canonical, sanitise

from .chat_models import KINDS, make_tokenizer, trained
from .hostile import text

MARKERS = (
    ("<|im_start|>{}\n", "<|im_end|>\n"), ("<|{}|>\n", "</s>\n"), ("[{}] ", " [/{}]"), ("<start_of_turn>{}\n", "<end_of_turn>\n"), ("[|{}|]", "\n"),
    ("<<{}>>\n", "\n<</{}>>\n\n"), ("### {}:\n", "\n\n"), ("{}: ", "\n"), ("<｜{}｜>", ""), (" ", " "), ("", "</s>"),
)  # fmt: skip
"""what stands before and behind a turn, with the role's name in it"""
ROLES = ("system", "user", "assistant")
OTHER_THOUGHTS = ("<|START_THINKING|><|END_THINKING|>", "<seed:think>", "<thinking></thinking>\n", "<reasoning>\n")


def _literal(written: str) -> str:
    """As jinja keeps it: a line break behind a block would go."""
    return f"{{{{ {json.dumps(written, ensure_ascii=False)} }}}}"


@dataclass(frozen=True)
class Spec:
    """A chat template."""

    marks: tuple[str, str]
    system: str
    """turn | inside (the user's turn) | refused | lost | lost behind (a begun turn)"""
    strips: bool
    in_parts: bool
    alternates: bool
    thought: str
    """before what the assistant says last"""
    special: bool
    """its markers are tokens"""

    def mark(self, place: int, role: str) -> str:
        """What stands before (0) or behind (1) a turn."""
        return self.marks[place].format(role)

    def jinja(self) -> str:
        """The template."""
        content = "{% for c in m.content %}{{ c.text }}{% endfor %}" if self.in_parts else "{{ m.content }}"
        if self.strips:
            content = content.replace(" }}", " | trim }}")
        before = "{% for m in messages if m.role == 'system' %}S{% endfor %}".replace("S", content + _literal("\n\n"))
        lines = ["{% set final = messages[-1].role == 'assistant' %}{{ bos_token }}"]
        if self.system == "refused":
            lines.append("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}")
        skip = "" if self.system in ("turn", "refused") else " if m.role != 'system'"
        lines.append(f"{{% for m in messages{skip} %}}")
        if self.alternates and self.system != "turn":
            lines.append(
                "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns alternate') }}{% endif %}"
            )
        for role in ROLES:
            lines.append(f"{{% if m.role == '{role}' %}}{self.mark(0, role)}")
            if role == "user" and self.system in ("inside", "lost behind"):
                lines.append(before if self.system == "inside" else f"{{% if not final %}}{before}{{% endif %}}")
            if role == "assistant" and self.thought:
                lines.append(f"{{% if loop.last %}}{_literal(self.thought)}{{% endif %}}")
            lines.append(f"{content}{_literal(self.mark(1, role))}{{% endif %}}")
        opening = _literal(self.mark(0, "assistant") + self.thought)
        lines.append(f"{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}")
        return "".join(lines)

    def expected(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that it should give for a system's, a user's and perhaps a begun turn, texts as they are given."""
        system, user, *begun = (message["content"] for message in messages)
        fitted = [one.strip() if self.strips else one for one in (system, user)]
        if self.system == "turn":
            told = self.mark(0, "system") + fitted[0] + self.mark(1, "system") + self.mark(0, "user") + fitted[1]
        elif self.system == "inside" or (self.system == "lost behind" and not begun):
            told = self.mark(0, "user") + fitted[0] + "\n\n" + fitted[1]
        elif self.strips:
            told = self.mark(0, "user") + system.lstrip() + "\n\n" + user.rstrip()
        else:
            told = self.mark(0, "user") + system + "\n\n" + user
        told = "<s>" + told + self.mark(1, "user") + self.mark(0, "assistant")
        return told + begun[0] if begun else told + self.thought

    def tokens(self) -> tuple[str, ...]:
        """Its markers as special tokens."""
        found = [self.mark(place, role).strip() for place in (0, 1) for role in ROLES]
        return tuple(dict.fromkeys(one for one in found if len(one) > 2 and " " not in one)) if self.special else ()


specs = st.builds(
    Spec,
    st.sampled_from(MARKERS),
    st.sampled_from(["turn", "inside", "refused", "lost", "lost behind"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "", "<think>\n\n</think>\n\n", "<think>\n", "</think>", "<think></think>", *OTHER_THOUGHTS]),
    st.booleans(),
)
pools = st.lists(text, min_size=2, max_size=4, unique_by=canonical).filter(lambda names: all(map(sanitise, names)))


def _clean(content: str) -> str:
    return content.encode("utf-8", "replace").decode()


@given(specs, st.sampled_from(sorted(KINDS)), text, text, st.sampled_from(["", "<answer>", "So.\n<think>"]))
def templates(spec: Spec, kind: str, system: str, user: str, begun: str) -> None:
    """A prompt is that of the template with each text in it once, tokenised as a whole, and no text holds what the template writes."""
    tokenizer = make_tokenizer(Tokenizer.from_str(trained(kind)), spec.jinja(), spec.tokens())
    words = ChatTemplate(tokenizer).control_words
    # what would forge a turn
    user += spec.expected([{"content": "a"}, {"content": "b"}, {"content": "c"}]) + user
    messages = [{"role": "system", "content": _clean(system)}, {"role": "user", "content": _clean(user)}]
    messages += [{"role": "assistant", "content": begun}] if begun else []
    quiet = [{**message, "content": words.neutralise(message["content"])} for message in messages]
    for message in quiet[:2]:
        assert not any(word in message["content"] for word in (*words.words, *words.marks))
    expected = spec.expected(quiet)
    assert encode_chat(tokenizer, messages) == tokenizer(expected, add_special_tokens=False)["input_ids"]


@given(
    specs, st.sampled_from(sorted(KINDS)), pools, st.sampled_from(["direct", "iterative"]), st.booleans(), st.integers(0, 9)
)  # fmt: skip
def template_answers(spec: Spec, kind: str, pool: list[str], mode: Mode, think: bool, drawn: int) -> None:
    """Any walk that a constraint allows is an answer that can be used, or the pool is refused and labels are proposed."""
    tokenizer: Any = make_tokenizer(Tokenizer.from_str(trained(kind)), spec.jinja(), spec.tokens())
    pool = [*map(_clean, pool[:-1]), _clean(pool[-1]) + spec.mark(0, "user") + "x"]
    form = AnswerFormat("name", think)
    if len(set(map(canonical, pool))) < len(pool):
        return
    refused = ""
    try:
        constraint = build_constraint(tokenizer, pool, mode, form)
    except UserError as error:
        refused, form = str(error), AnswerFormat("label", think)
        constraint = build_constraint(tokenizer, pool, mode, form)
    assert not refused or "answer_style=label is wanted" in refused
    state = ConstraintState(constraint, lambda token: str(tokenizer.decode([token])))
    begun = "x</think>\n<answer>" if think else ""
    for token in tokenizer(begun, add_special_tokens=False)["input_ids"]:
        state.accept_token(token)
    rng, ids = random.Random(drawn), list[int]()
    while not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(rng.choice(state.allowed_token_ids()))
        state.accept_token(ids[-1])
    written = begun + str(tokenizer.decode(ids[:-1], skip_special_tokens=False))
    assert parse_answer(written, pool, mode, form).is_valid(mode, len(pool))
