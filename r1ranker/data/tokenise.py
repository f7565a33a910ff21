"""Chat messages to token ids: those of the whole rendered conversation, in which no text of a user is a control token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from r1ranker.data.chat_template import ChatTemplate, Layout, chat_template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BREAK = "\n"
"""no token reaches over a line break, so that what follows one is tokenised as at the beginning of a word"""
ANSWER = "<answer>"


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of the conversation, ready for sampling.

    They are those that the tokenizer gives for the whole conversation as its template writes it, where no text holds one of its
    control words; a control word in a text is written with look-alike characters. A last message of role 'assistant' is left open
    for the model to go on with; otherwise the template's own opening of an assistant turn is added.

    Raises UserError where the tokenizer has no chat template, or one in which a text would be lost.
    """
    return encode_chats(tokenizer, [messages])[0]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]]
) -> list[list[int]]:
    """The same for many conversations at once, over all the tokenizer's threads."""
    template = chat_template_of(tokenizer)
    encoded = _batch(tokenizer, [template.render(messages) for messages in conversations])
    control = template.control_words.ids
    for place, (messages, ids) in enumerate(zip(conversations, encoded, strict=True)):
        layout = template.layout(tuple(message["role"] for message in messages))
        if sum(map(control.__contains__, ids)) != _count_control(template, layout):
            # a normaliser has made a control word of other characters: this conversation's texts are tokenised apart
            encoded[place] = _encode_apart(template, layout, messages)
    return encoded


@lru_cache(maxsize=256)
def _count_control(template: ChatTemplate, layout: Layout) -> int:
    """Control tokens that the template itself writes."""
    written = "".join(part if isinstance(part, str) else "x" for part in layout)
    return sum(map(template.control_words.ids.__contains__, _batch(template.tokenizer, [written])[0]))


def _encode_apart(template: ChatTemplate, layout: Layout, messages: Sequence[dict[str, str]]) -> list[int]:
    ids: list[int] = []
    for part, text in zip(layout, template.parts(messages), strict=True):
        ids += _batch(template.tokenizer, [text], split_special_tokens=not isinstance(part, str))[0]
    return ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone, with control tokens taken apart into ordinary characters."""
    return _batch(tokenizer, [text], split_special_tokens=True)[0]


def encode_continuation(tokenizer: PreTrainedTokenizerBase, context: str, text: str) -> list[int]:
    """Token ids of `text` where it follows `context`: those of both together, without the ones of `context`.

    The tokens of a prompt are there before its answer is. Where tokenising both together would join the last of them to the
    text's first characters (as `>A` of `<answer>Alien`), the text begins anew, as it does behind a line break.
    """
    template = chat_template_of(tokenizer)
    text = template.control_words.neutralise(text)
    for before in (context, BREAK):
        if (ids := ids_behind(template, before, text)) is not None:
            return ids
    return encode_text(tokenizer, text)


def ids_behind(template: ChatTemplate, context: str, text: str) -> list[int] | None:
    """Token ids of `text`, control words among them, behind `context`; None where its first characters join the context's last."""
    begun = _context_ids(template, context)
    whole = _batch(template.tokenizer, [context + text])[0]
    return whole[len(begun) :] if tuple(whole[: len(begun)]) == begun else None


def encode_completion(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], text: str) -> list[int]:
    """Token ids of a completion of the conversation; no token reaches over the tag that opens its answer.

    So they are tokens that can be sampled: a prompt, or the free part of a response, ends with that tag.
    """
    context = chat_template_of(tokenizer).opening(messages)
    before, tag, answer = text.rpartition(ANSWER)
    ids = encode_continuation(tokenizer, context, before + tag) if tag else []
    return ids + encode_continuation(tokenizer, context + before + tag, answer)


def decode_response(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stopped: bool) -> str:
    """The response as text, without the token that ended it; control tokens elsewhere stay visible."""
    return str(tokenizer.decode(list(token_ids[:-1] if stopped else token_ids), skip_special_tokens=False))


@lru_cache(maxsize=1024)
def _context_ids(template: ChatTemplate, context: str) -> tuple[int, ...]:
    return tuple(_batch(template.tokenizer, [context])[0])


def _batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], split_special_tokens: bool = False
) -> list[list[int]]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split_special_tokens)
    return [list(ids) for ids in found["input_ids"]]
