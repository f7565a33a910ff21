"""What of an example a model is shown: thoughts on similar requests before it, and candidates' texts that are not too long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from r1ranker.data.passages import cut_texts
from r1ranker.ranking.lengths import longest_prompts
from r1ranker.ranking.settings import RankerSettings, ShotSettings
from r1ranker.tasks.example import RankingExample
from r1ranker.thoughts.bank import read_bank
from r1ranker.thoughts.retrieval import ThoughtIndex, show_thoughts


def _index_of(shots: ShotSettings) -> ThoughtIndex | None:
    if shots.bank is None:
        return None
    return ThoughtIndex(read_bank(shots.bank), shots.similarity, shots.embedder, shots.within)


class Shown:
    """Makes of an example what a model is shown by `settings`, and counts what that took away."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: RankerSettings, room: int | None) -> None:
        """`room`: tokens of a prompt at most (None: any number). Raises UserError for a bank that cannot be read."""
        self._tokenizer, self._settings, self._room = tokenizer, settings, room
        self._index = _index_of(settings.shots)
        self._cut = self._shots = self._without_room = self._examples = 0

    def __call__(self, example: RankingExample) -> RankingExample:
        self._examples += 1
        settings = self._settings
        if settings.passage_tokens is not None:
            example, cut = cut_texts(example, self._tokenizer, settings.passage_tokens)
            self._cut += cut
        if self._index is None:
            return example
        with_shots = show_thoughts(example, self._index.find(example, settings.shots.count), settings.shots.content)
        found = len(with_shots.hints)
        while with_shots.hints and self._is_too_long(with_shots):
            with_shots = replace(with_shots, hints=with_shots.hints[:-1])
        self._shots += len(with_shots.hints)
        self._without_room += found - len(with_shots.hints)
        return with_shots

    def _is_too_long(self, example: RankingExample) -> bool:
        if self._room is None:
            return False
        (tokens,) = longest_prompts(self._tokenizer, self._settings, [example])
        return tokens > self._room

    def say(self) -> Iterator[str]:
        """Lines on what was changed."""
        if self._settings.passage_tokens is not None:
            yield f"--max_passage_tokens: {self._cut:,} texts of candidates were cut"
        if self._index is not None:
            yield (
                f"--thoughts: {self._shots:,} thoughts stand before {self._examples:,} requests; there was no room for "
                f"{self._without_room:,} more"
            )
