"""Chat messages to token ids, so that text of users can never be read as a control token of the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from r1ranker.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters; they stand for a message's content in the template


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of the conversation, ready for sampling.

    The template is rendered around placeholders and tokenised with its control tokens; each message's content is
    tokenised apart from it, as plain text, whatever it holds. A last message of role 'assistant' is left open for the
    model to go on with; otherwise the template's own opening of an assistant turn is added.

    Raises UserError where the tokenizer has no chat template.
    """
    return encode_chats(tokenizer, [messages])[0]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]]
) -> list[list[int]]:
    """The same for many conversations at once: templates once, contents over all the tokenizer's threads."""
    templates: dict[tuple[str, ...], list[int | list[int]]] = {}
    for messages in conversations:
        roles = tuple(message["role"] for message in messages)
        if roles not in templates:
            templates[roles] = _template(tokenizer, roles)
    texts = list(dict.fromkeys(message["content"] for messages in conversations for message in messages))
    ids_of = dict(zip(texts, _batch(tokenizer, texts), strict=True))
    encoded = []
    for messages in conversations:
        ids: list[int] = []
        for part in templates[tuple(message["role"] for message in messages)]:
            ids += ids_of[messages[part]["content"]] if isinstance(part, int) else part
        encoded.append(ids)
    return encoded


def _template(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> list[int | list[int]]:
    """The conversation's template: the index of a message where its content stands, token ids in between."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; one is wanted (chat_template.jinja)"
        )
    marked = [{"role": role, "content": f"{_OPEN}{index}{_CLOSE}"} for index, role in enumerate(roles)]
    begun = roles[-1] == "assistant"
    rendered = str(
        tokenizer.apply_chat_template(
            marked, tokenize=False, continue_final_message=begun, add_generation_prompt=not begun
        )
    )
    parts: list[int | list[int]] = []
    for piece in rendered.split(_OPEN):
        index, closed, template_text = piece.partition(_CLOSE)
        if not closed:
            index, template_text = "", piece
        if index:
            parts.append(int(index))
        if template_text:
            parts.append(_batch(tokenizer, [template_text], split_special_tokens=False)[0])
    return parts


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` with control tokens taken apart into ordinary characters."""
    return _batch(tokenizer, [text])[0]


def _batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], split_special_tokens: bool = True
) -> list[list[int]]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split_special_tokens)
    return [list(ids) for ids in found["input_ids"]]
