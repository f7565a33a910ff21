"""Ranker: a trained model, ready to rank."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError
from r1ranker.model.loading import check_model_directory
from r1ranker.ranking.decode import RankingResult, Reply, rank_direct, rank_iterative
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import Engine, EngineSettings, Request, SamplingParams
from r1ranker.rollout.start import start_engine
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, AnswerStyle, Mode, chat_messages, render_problem

SETTINGS_FILE = "r1ranker.json"
_SAVED: dict[str, Any] = {
    "strategy": ("iterative", "direct"),
    "answer_style": ("name", "label"),
    "think": bool,
    "constrain": ("none", "candidates"),
    "max_response_length": int,
}
"""its values, or their type"""


@dataclass(frozen=True)
class RankerSettings:
    """How a model is to be asked; saved beside the weights, since it has to be asked as it was trained."""

    strategy: Mode = "iterative"
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    constrain: Literal["none", "candidates"] = "none"
    max_tokens: int = 1024
    top_p: float = 0.7
    """published; of no effect at temperature 0"""
    temperature: float = 0.0
    seed: int = 0

    @classmethod
    def of_model(cls, directory: str) -> RankerSettings:
        """Those saved with the model; the published ones where there are none."""
        file = Path(directory) / SETTINGS_FILE
        if not file.is_file():
            return cls()
        try:
            saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            for key, kinds in _SAVED.items():
                if saved[key] not in kinds if isinstance(kinds, tuple) else type(saved[key]) is not kinds:
                    raise ValueError(f"{key} is {saved[key]!r}")
            return cls(
                strategy=saved["strategy"],
                answer_format=AnswerFormat(saved["answer_style"], saved["think"]),
                constrain=saved["constrain"],
                max_tokens=saved["max_response_length"],
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{file}: not the settings of a ranker ({type(error).__name__}: {error})") from error


class Ranker:
    """Ranks candidates with a language model, directly or by elimination."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: RankerSettings) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings

    @classmethod
    def from_pretrained(
        cls,
        directory: str,
        strategy: Mode | None = None,
        constrain: Literal["none", "candidates"] | None = None,
        gpu: int = 0,
        think: bool | None = None,
        answer_style: AnswerStyle | None = None,
        engine: str = "hf",
        **changes: Any,
    ) -> Ranker:
        """The model of a directory or hub id, asked as it was trained unless the other arguments say otherwise.

        `engine` is hf, vllm or auto; vLLM holds one model a process. `changes` are further fields of RankerSettings.

        Raises UserError for a directory that holds no model or no tokenizer.
        """
        check_model_directory(directory)
        settings = RankerSettings.of_model(directory)
        if strategy is not None:
            changes["strategy"] = strategy
        if constrain is not None:
            changes["constrain"] = constrain
        asked = settings.answer_format
        style = asked.answer_style if answer_style is None else answer_style
        changes["answer_format"] = AnswerFormat(style, asked.think if think is None else think)
        from r1ranker.device import pick_device

        settings = replace(settings, **changes)
        started = start_engine(engine, directory, pick_device(gpu), EngineSettings())
        return cls(started, started.tokenizer, settings)

    def rank(
        self,
        query: str | Sequence[str],
        candidates: Sequence[str],
        task: str = "Rec-Movie",
        texts: Sequence[str] = (),
    ) -> RankingResult:
        """Rank `candidates` for a query (a text) or a history (a list of texts); `texts` may tell more of each candidate."""
        scenario = get_task(task).scenario
        wanted = "a list of texts" if scenario == "recommendation" else "a text"
        if scenario != "own" and isinstance(query, str) == (wanted == "a list of texts"):
            raise UserError(f"query: found {query!r}; {task} ranks for {wanted}")
        example = RankingExample(
            task,
            tuple(candidates),
            query=query if isinstance(query, str) else "",
            history=() if isinstance(query, str) else tuple(query),
            texts=tuple(texts),
        )
        example.validate()
        return self.rank_examples([example])[0]

    def rank_examples(
        self, examples: Sequence[RankingExample], on_done: Callable[[int], None] = lambda count: None
    ) -> list[RankingResult]:
        """Rank every example; `on_done` hears how many more are finished."""
        decode = rank_iterative if self.settings.strategy == "iterative" else rank_direct
        return decode(examples, self._ask, self.settings.answer_format, on_done)

    def _ask(self, examples: Sequence[RankingExample], mode: Mode) -> list[Reply]:
        settings = self.settings
        requests = [self._request(example, mode) for example in examples]
        params = SamplingParams(temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens)
        replies = []
        for request, (completion,) in zip(requests, self.engine.generate(requests, params), strict=True):
            ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
            text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
            replies.append(Reply(text, len(request.token_ids), len(completion.token_ids)))
        return replies

    def _request(self, example: RankingExample, mode: Mode) -> Request:
        settings = self.settings
        problem = render_problem(example, mode, settings.answer_format.answer_style)
        token_ids = encode_chat(self.tokenizer, chat_messages(problem, settings.answer_format, mode))
        constraint = None
        if settings.constrain == "candidates":
            constraint = build_constraint(self.tokenizer, example.candidates, mode, settings.answer_format)
        # the same question draws the same stream, wherever it stands in the run
        seed = zlib.crc32(problem.encode("utf-8", "surrogatepass"), settings.seed)
        return Request(token_ids, seed, constraint)
