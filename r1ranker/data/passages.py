"""Cutting long passages, so that more of them stand in a prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from r1ranker.tasks.example import RankingExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_texts(example: RankingExample, tokenizer: PreTrainedTokenizerBase, most: int) -> tuple[RankingExample, int]:
    """An example with candidates' texts of at most `most` tokens each, and how many of them were cut. Names stay whole: answers
    are made of them."""
    texts = tuple(cut_text(text, tokenizer, most) for text in example.texts)
    cut = sum(after != before for before, after in zip(example.texts, texts, strict=True))
    return replace(example, texts=texts) if cut else example, cut


@lru_cache(maxsize=2**15)  # a passage comes again with every query that it is found for
def cut_text(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> str:
    """The first words of a text that have at most `most` tokens; a word that has more by itself is cut inside."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(spans) <= most:
        return text
    end = spans[most][0]
    head = text[:end]
    if not text[end : end + 1].isspace() and not head[-1:].isspace():
        head = head.rsplit(None, 1)[0] if len(head.split()) > 1 else head
    return head.rstrip()
