"""The next turn of a conversation behind what was sampled, which is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from r1ranker.data.chat_template import chat_template_of
from r1ranker.data.names import CLOSING
from r1ranker.data.tokenise import ids_behind
from r1ranker.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_next_turn(
    tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...], so_far: Sequence[int], text: str, begun: str
) -> list[int]:
    """Token ids of the conversation `so_far`, a turn of the user with `text`, and the assistant's next one, which `begun` begins.

    `roles` are those of the conversation that `so_far` began with, the last of them the assistant whose response it ends in.
    What the template writes between turns is tokenised by itself. Its end of a turn takes the place of a sampled EOS.

    Raises UserError where the template writes the beginning of a longer conversation in another way.
    """
    template = chat_template_of(tokenizer)
    before, whole = template.layout(roles), template.layout((*roles, "user", "assistant"))
    if whole[: len(before)] != before:
        raise UserError(
            f"{template.name}: the chat template writes earlier turns anew as a conversation goes on; rounds=separate is wanted"
        )
    messages = [{"role": role, "content": ""} for role in roles]
    messages += [{"role": "user", "content": text}, {"role": "assistant", "content": begun}]
    turn = "".join(template.parts(messages)[len(before) :])
    said = list(so_far)
    if said[-1] == tokenizer.eos_token_id:
        said.pop()  # the template's own end of a turn comes next, which with most is the same token
    # behind the end of an answer, and not at the beginning of a text, where some tokenizers put white space
    ids = ids_behind(template, CLOSING, turn)
    return said + (list(tokenizer(turn, add_special_tokens=False)["input_ids"]) if ids is None else ids)
