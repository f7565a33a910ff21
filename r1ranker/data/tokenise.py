"""Chat messages to token ids, so that text of users can never be read as a control token of the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; one is wanted (chat_template.jinja)"
        )
    marked = [{"role": message["role"], "content": f"{_OPEN}{index}{_CLOSE}"} for index, message in enumerate(messages)]
    begun = messages[-1]["role"] == "assistant"
    rendered = str(
        tokenizer.apply_chat_template(
            marked, tokenize=False, continue_final_message=begun, add_generation_prompt=not begun
        )
    )
    ids: list[int] = []
    for part in rendered.split(_OPEN):
        index, closed, template_text = part.partition(_CLOSE)
        if not closed:
            index, template_text = "", part
        if index:
            ids += plain_ids(tokenizer, messages[int(index)]["content"])
        if template_text:
            ids += _ids(tokenizer, template_text, split_special_tokens=False)
    return ids


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` with control tokens taken apart into ordinary characters."""
    return _ids(tokenizer, text, split_special_tokens=True)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])
