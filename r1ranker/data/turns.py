"""The next turn of a conversation behind what was sampled, which is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from r1ranker.data.chat_template import ChatTemplate, chat_template_of
from r1ranker.data.names import CLOSING
from r1ranker.data.tokenise import ids_behind
from r1ranker.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHT_END = "</think>"


def encode_next_turn(
    tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...], so_far: Sequence[int], text: str, begun: str
) -> list[int]:
    """Token ids of the conversation `so_far`, a turn of the user with `text`, and the assistant's next one, which `begun` begins.

    `roles` are those of the conversation that `so_far` began with, the last of them the assistant whose response it ends in.
    What the template writes between turns is tokenised by itself. Its end of a turn takes the place of a sampled EOS.

    Raises UserError where the template writes the beginning of a longer conversation in another way.
    """
    return go_on(chat_template_of(tokenizer), roles, so_far, text, begun)


def go_on(template: ChatTemplate, roles: tuple[str, ...], so_far: Sequence[int], text: str, begun: str) -> list[int]:
    """The same by a tokenizer's template, which many turns are encoded by."""
    added = _turn_ids(template, roles, text, begun)
    said = list(so_far)
    if said[-1] == template.tokenizer.eos_token_id:
        said.pop()  # the template's own end of a turn comes next, which with most is the same token
    return said + list(added)


@lru_cache(maxsize=65536)
def _turn_ids(template: ChatTemplate, roles: tuple[str, ...], text: str, begun: str) -> tuple[int, ...]:
    """What stands between an answer and the next one; the same whatever was said before."""
    before, whole = template.layout(roles), template.layout((*roles, "user", "assistant"))
    if whole[: len(before)] != before:
        raise UserError(
            f"{template.name}: the chat template writes earlier turns anew as a conversation goes on; rounds=separate is wanted"
        )
    messages = [{"role": role, "content": ""} for role in roles]
    messages += [{"role": "user", "content": text}, {"role": "assistant", "content": begun}]
    turn = "".join(template.parts(messages)[len(before) :])
    # behind the end of an answer, and not at the beginning of a text, where some tokenizers put white space
    ids = ids_behind(template, CLOSING, turn)
    return tuple(template.tokenizer(turn, add_special_tokens=False)["input_ids"] if ids is None else ids)


def drop_thought(tokenizer: PreTrainedTokenizerBase, response: Sequence[int]) -> list[int]:
    """The response from the token in which its thought ends; all of it where no thought does."""
    ids = list(response)
    for start in range(len(ids) - 1, -1, -1):
        if THOUGHT_END in str(tokenizer.decode(ids[start:], skip_special_tokens=False)):
            return ids[start:]
    return ids
