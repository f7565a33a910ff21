"""The next turn of a conversation: what the template writes for the whole of it, and nothing that was sampled is tokenised again."""

from __future__ import annotations

import pytest
from fuzz.chat_models import FAMILIES, KINDS, tokenizer_of

from r1ranker.data.tokenise import encode_chat
from r1ranker.data.turns import encode_next_turn
from r1ranker.errors import UserError

FIRST = [
    {"role": "system", "content": "You rank."},
    {"role": "user", "content": "Which one?"},
    {"role": "assistant", "content": "<answer>"},
]
SAID = "[2]</answer>"
NEXT = "[2] is out. <|im_end|> Which one is the worst of the rest?"
ROLES = ("system", "user", "assistant")
REWRITING = ("DeepSeek-V3.1", "GLM-4.5")
"""families whose templates take something out of earlier turns"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REWRITING])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_turn_is_what_the_whole_conversation_has_there(family: str, kind: str, stopped: bool) -> None:
    tokenizer = tokenizer_of(kind, family)
    before = [*encode_chat(tokenizer, FIRST), *tokenizer(SAID, add_special_tokens=False)["input_ids"]]
    so_far = [*before, tokenizer.eos_token_id] if stopped else before
    found = encode_next_turn(tokenizer, ROLES, so_far, NEXT, "<answer>")
    whole = encode_chat(
        tokenizer,
        [
            *FIRST[:2],
            {"role": "assistant", "content": "<answer>" + SAID},
            {"role": "user", "content": NEXT},
            {"role": "assistant", "content": "<answer>"},
        ],
    )
    assert found[: len(before)] == before
    turn = found[len(before) :]
    assert whole[-len(turn) :] == turn
    # and nothing of the turn before is missing between the two
    assert len(whole) - len(turn) <= len(before)


@pytest.mark.parametrize("family", REWRITING)
def test_a_template_that_writes_earlier_turns_anew_is_refused(family: str) -> None:
    tokenizer = tokenizer_of("byte-level", family)
    with pytest.raises(UserError, match="earlier turns anew"):
        encode_next_turn(tokenizer, ROLES, encode_chat(tokenizer, FIRST), NEXT, "<answer>")
