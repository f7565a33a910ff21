"""Ranker: a trained model, ready to rank."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from r1ranker.data.tokenise import encode_chat
from r1ranker.errors import UserError, check_at_least
from r1ranker.pretrained import SETTINGS_FILE, check_model_directory
from r1ranker.ranking.conversation import EliminationSettings, Question, RankingResult, Reply, converse, list_texts
from r1ranker.ranking.lengths import find_longest_prompt, trained_prompt_length
from r1ranker.ranking.schedule import run_conversations
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import (
    USUAL_LENGTH,
    Completion,
    Engine,
    EngineSettings,
    Request,
    SamplingParams,
    check_length,
)
from r1ranker.rollout.start import find_engine, start_engine
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import ANSWER_STYLES, AnswerStyle
from r1ranker.tasks.prompts import AnswerFormat, Mode, chat_messages, render_problem

_SAVED: dict[str, Any] = {
    "strategy": ("iterative", "direct"),
    "answer_style": ANSWER_STYLES,
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
    """of an answer"""
    top_p: float = 0.7
    """published; of no effect at temperature 0"""
    temperature: float = 0.0
    """0: greedy, but where several answers a round are wanted, or a second try"""
    seed: int = 0
    elimination: EliminationSettings = field(default_factory=EliminationSettings)

    @classmethod
    def from_pretrained(cls, directory: str) -> RankerSettings:
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


def check_ranges(seed: int, elimination: EliminationSettings) -> None:
    """Raise UserError, naming the option, for a seed or for settings of an elimination that are out of range."""
    check_at_least("--seed", seed, 0)
    check_at_least("--eliminate", elimination.eliminate, 1)
    check_at_least("--votes", elimination.votes, 1)
    check_at_least("--top_k", elimination.top_k, 0)


def check_lengths(max_tokens: int | None, max_model_len: int | None) -> None:
    """Raise UserError, naming the option, for a length below 1."""
    for name, value in (("--max_tokens", max_tokens), ("--max_model_len", max_model_len)):
        if value is not None:
            check_at_least(name, value, 1)


class Ranker:
    """Ranks candidates with a language model, directly or by elimination."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: RankerSettings) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings

    @classmethod
    def settings_of(
        cls,
        directory: str,
        strategy: Mode | None = None,
        constrain: Literal["none", "candidates"] | None = None,
        think: bool | None = None,
        answer_style: AnswerStyle | None = None,
        max_tokens: int | None = None,
        **changes: Any,
    ) -> RankerSettings:
        """The settings saved with a model, with what is not None in their place; `changes` are fields of RankerSettings."""
        settings = RankerSettings.from_pretrained(directory)
        asked = settings.answer_format
        style = asked.answer_style if answer_style is None else answer_style
        changes["answer_format"] = AnswerFormat(style, asked.think if think is None else think)
        given = {"strategy": strategy, "constrain": constrain, "max_tokens": max_tokens}
        changes |= {name: value for name, value in given.items() if value is not None}
        return replace(settings, **changes)

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
        settings: RankerSettings | None = None,
        max_model_len: int | None = None,
        dtype: str = "auto",
        **changes: Any,
    ) -> Ranker:
        """The model of a directory or hub id, asked as it was trained unless the other arguments say otherwise.

        `engine` is hf, vllm or auto; vLLM holds one model a process at a time. `settings` stand for all of the other
        arguments but these; `dtype` is auto, float32 or bfloat16, of what is computed; `changes` are further fields of RankerSettings.

        `max_model_len`: tokens of a prompt and its answer that the engine holds, no more than the model has positions for.
        None: with hf as many as those; with vllm 4,096, or more where the model was trained with longer ones.

        Raises UserError for a directory that holds no model or no tokenizer.
        """
        check_model_directory(directory)
        if settings is None:
            settings = cls.settings_of(directory, strategy, constrain, think, answer_style, **changes)
        from r1ranker.device import pick_device

        if max_model_len is None and find_engine(engine) == "vllm":
            max_model_len = max(USUAL_LENGTH, trained_prompt_length(directory) + settings.max_tokens)
        asked = EngineSettings(max_model_len, dtype=dtype, constrained=settings.constrain != "none")
        started = start_engine(engine, directory, pick_device(gpu), asked)
        return cls(started, started.tokenizer, settings)

    def rank(
        self,
        query: str | Sequence[str],
        candidates: Sequence[str],
        task: str = "Rec-Movie",
        texts: Sequence[str] = (),
    ) -> RankingResult:
        """Rank `candidates` for a query (a text) or a history (a list of texts); `texts` may tell more of each candidate.

        Raises UserError for a text or anything else where a list of texts is wanted, and for candidates that look the same.
        """
        scenario = get_task(task).scenario
        wanted = "a list of texts" if scenario == "recommendation" else "a text"
        if scenario != "own" and isinstance(query, str) == (wanted == "a list of texts"):
            raise UserError(f"query: found {query!r}; {task} ranks for {wanted}")
        example = RankingExample(
            task,
            list_texts("candidates", candidates),
            query=query if isinstance(query, str) else "",
            history=() if isinstance(query, str) else list_texts("query", query),
            texts=list_texts("texts", texts),
        )
        example.validate()
        return self.rank_many([example])[0]

    def rank_many(self, examples: Iterable[RankingExample]) -> list[RankingResult]:
        """Rank every example, all at once; in their order. Raises UserError where the engine does not hold the longest prompt."""
        examples = list(examples)
        for example in examples:
            for name in ("candidates", "history", "texts"):
                list_texts(name, getattr(example, name))
        longest = find_longest_prompt(self.tokenizer, self.settings, examples)
        check_length(longest, self.settings.max_tokens, self.engine.max_model_len)
        results = dict(self.rank_stream(examples))
        return [results[place] for place in range(len(results))]

    def rank_stream(
        self, examples: Iterable[RankingExample], lockstep: bool = False
    ) -> Iterator[tuple[int, RankingResult]]:
        """(place, result) of each example as soon as it is ranked; a query waits for no other one's answer.

        `lockstep` holds the queries in step, for comparison.
        """
        settings = self.settings
        conversations = (
            converse(example, settings.strategy, settings.answer_format, settings.elimination) for example in examples
        )
        return run_conversations(conversations, self.engine.session(), self._to_request, self._to_replies, lockstep)

    def _to_request(self, question: Question) -> tuple[Request, SamplingParams]:
        settings, example = self.settings, question.example
        problem = render_problem(example, question.mode, settings.answer_format.answer_style)
        token_ids = encode_chat(self.tokenizer, chat_messages(problem, settings.answer_format, question.mode))
        constraint = None
        if settings.constrain == "candidates":
            constraint = build_constraint(self.tokenizer, example.candidates, question.mode, settings.answer_format)
        # the same question draws the same stream, wherever it stands in the run
        seed = zlib.crc32(problem.encode("utf-8", "surrogatepass"), settings.seed + question.is_retry)
        several = question.samples > 1 or question.is_retry
        temperature = settings.temperature or (1.0 if several else 0.0)
        free = constraint is None or settings.answer_format.think  # a name may well repeat itself
        params = SamplingParams(
            question.samples, temperature, settings.top_p, max_tokens=settings.max_tokens, end_loops=free
        )
        return Request(token_ids, seed, constraint), params

    def _to_replies(self, question: Question, request: Request, completions: Sequence[Completion]) -> list[Reply]:
        replies = []
        for number, completion in enumerate(completions):
            ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
            text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
            first = number == 0
            replies.append(
                Reply(
                    text,
                    len(request.token_ids) * first,
                    len(completion.token_ids),
                    completion.cached_tokens * first,
                )
            )
        return replies
