"""Ranker: a trained model, ready to rank."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from r1ranker.data.tokenise import decode_response, encode_chat
from r1ranker.data.turns import drop_thought, encode_next_turn
from r1ranker.errors import UserError, check_at_least, note
from r1ranker.pretrained import check_model_directory
from r1ranker.ranking.branches import WEIGHED, WeighingRequest, branches_of, weighing_request
from r1ranker.ranking.conversation import Conversation, Question, RankingResult, Reply, list_texts
from r1ranker.ranking.lengths import check_pool, is_short, part_to_fit, trained_prompt_length
from r1ranker.ranking.schedule import Asker, run_conversations
from r1ranker.ranking.settings import MODES, RankerSettings, Rounds, Strategy
from r1ranker.ranking.shown import Shown
from r1ranker.ranking.strategies import converse
from r1ranker.rollout.constraint import PoolConstraint, build_constraint
from r1ranker.rollout.context import find_limit
from r1ranker.rollout.engine import (
    USUAL_LENGTH,
    Completion,
    Engine,
    EngineSettings,
    Request,
    SamplingParams,
)
from r1ranker.rollout.start import find_engine, start_engine
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import AnswerStyle
from r1ranker.tasks.prompts import AnswerFormat, Mode, chat_messages, next_round, render_problem


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
        strategy: Strategy | None = None,
        constrain: Literal["none", "candidates"] | None = None,
        think: bool | None = None,
        answer_style: AnswerStyle | None = None,
        max_tokens: int | None = None,
        trained: Mode | None = None,
        rounds: Rounds | None = None,
        **changes: Any,
    ) -> RankerSettings:
        """The settings saved with a model, with what is not None in their place; `changes` are fields of RankerSettings."""
        settings = RankerSettings.from_pretrained(directory)
        asked = settings.answer_format
        style = asked.answer_style if answer_style is None else answer_style
        changes["answer_format"] = AnswerFormat(style, asked.think if think is None else think)
        given = {
            "strategy": strategy, "constrain": constrain, "max_tokens": max_tokens, "trained": trained, "rounds": rounds
        }  # fmt: skip
        if rounds is not None and rounds != settings.rounds:
            note(f"{directory}: trained with {settings.rounds} rounds, and asked with --rounds {rounds}")
        if strategy in MODES:
            given["trained"] = strategy
        changes |= {name: value for name, value in given.items() if value is not None}
        return replace(settings, **changes)

    @classmethod
    def from_pretrained(
        cls,
        directory: str,
        strategy: Strategy | None = None,
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
        elif max_model_len is None:
            max_model_len, _ = find_limit(directory)
        asked = EngineSettings(max_model_len, dtype=dtype, constrained=settings.is_constrained)
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
        return next(self.rank_many([example]))

    def rank_many(self, examples: Iterable[RankingExample]) -> Iterator[RankingResult]:
        """The result of every example, in their order, each as soon as it and those before it are ranked.

        Examples are taken as there is room for them, a thousand before their results at most. A pool that is too long for the engine
        is ranked in windows, which is said.
        Raises UserError where the engine does not hold two candidates of an example, as that one is taken.
        """
        found: dict[int, RankingResult] = {}
        wanted = 0
        for place, result in self.rank_stream(self._checked(examples)):
            found[place] = result
            if result.parted:
                note(
                    f"a pool of {len(result.ranking):,} candidates is too long for the {self.engine.max_model_len:,} tokens that the "
                    f"engine holds; it is ranked in parts of {result.parted:,}"
                )
            while wanted in found:
                yield found.pop(wanted)
                wanted += 1

    def _checked(self, examples: Iterable[RankingExample]) -> Iterator[RankingExample]:
        for example in examples:
            for name in ("candidates", "history", "texts"):
                list_texts(name, getattr(example, name))
            yield example

    def rank_stream(
        self, examples: Iterable[RankingExample], lockstep: bool = False
    ) -> Iterator[tuple[int, RankingResult]]:
        """(place, result) of each example as soon as it is ranked; a query waits for no other one's answer.

        `lockstep` holds the queries in step, for comparison.
        """
        self.settings.check()
        conversations = map(self.conversation, examples)
        return run_conversations(conversations, self.engine.session(), self._to_request, self._to_replies, lockstep)

    @property
    def _room(self) -> int | None:
        """Tokens of a prompt that the engine holds beside an answer."""
        holds = self.engine.max_model_len
        return None if holds is None else holds - self.settings.max_tokens

    @cached_property
    def _shown(self) -> Shown:
        return Shown(self.tokenizer, self.settings, self._room)

    @property
    def asker(self) -> Asker:
        """How its questions are put to the engine."""
        return Asker(self._to_request, self._to_replies)

    def conversation(self, example: RankingExample, progress: RankingResult | None = None) -> Conversation:
        """The conversation that ranks an example; in windows where it is too long for the engine.

        `progress` is filled on the way where the pool is ranked in one part.
        """
        room, settings = self._room, self.settings
        example = self._shown(example)
        fitted = (
            settings if is_short(example, settings, room) else part_to_fit(self.tokenizer, settings, example, room)[0]
        )
        if fitted.parts_pools:
            check_pool(self.tokenizer, fitted, example)
        result = yield from converse(example, fitted, progress, room)
        if fitted is not settings:
            result.parted = fitted.windows.size
        return result

    def _to_request(self, question: Question) -> tuple[Request, SamplingParams]:
        settings, example = self.settings, question.example
        problem = render_problem(example, question.mode, settings.answer_format.answer_style)
        messages = chat_messages(problem, settings.answer_format, question.mode)
        if question.so_far:
            token_ids = self._go_on(question, messages)
            problem = f"{problem} {question.out}"
        else:
            token_ids = encode_chat(self.tokenizer, messages)
        if question.begun is not None:
            weighing = weighing_request(self.tokenizer, token_ids, question, settings.answer_format)
            return replace(weighing, is_continued=settings.rounds == "conversation"), WEIGHED
        constraint = None
        if settings.constrain == "candidates":
            constraint = self._constraint(question).without(question.out)
        # the same question draws the same stream, wherever it stands in the run
        seed = zlib.crc32(problem.encode("utf-8", "surrogatepass"), settings.seed + question.is_retry)
        several = question.samples > 1 or question.is_retry
        temperature = settings.temperature or (1.0 if several else 0.0)
        free = constraint is None or settings.answer_format.think  # a name may well repeat itself
        params = SamplingParams(
            question.samples, temperature, settings.top_p, max_tokens=settings.max_tokens, end_loops=free
        )
        return Request(token_ids, seed, constraint, question.mode == "iterative"), params

    def _go_on(self, question: Question, messages: Sequence[dict[str, str]]) -> list[int]:
        """The conversation with the turns that follow what was said last."""
        style = self.settings.answer_format.answer_style
        roles, begun = tuple(message["role"] for message in messages), messages[-1]["content"]
        token_ids, last = list(question.so_far), question.out[-max(1, question.named) :]
        for place in last:
            if question.named:
                token_ids += self._constraint(question).final_ids[place]
            said = next_round(question.example, place, style)
            token_ids = encode_next_turn(self.tokenizer, roles, token_ids, said, begun)
        return token_ids

    def _constraint(self, question: Question) -> PoolConstraint:
        """Of all the candidates that are shown."""
        return build_constraint(self.tokenizer, question.example.candidates, question.mode, self.settings.answer_format)

    def _to_replies(self, question: Question, request: Request, completions: Sequence[Completion]) -> list[Reply]:
        if isinstance(request, WeighingRequest):
            (weighed,) = completions
            prompt_ids = tuple(request.token_ids[: len(request.token_ids) - len(request.paths.begun)])
            branches = branches_of(request.paths, weighed)
            return [Reply("", len(request.token_ids), 1, weighed.cached_tokens, branches, prompt_ids)]
        replies = []
        for number, completion in enumerate(completions):
            text = decode_response(self.tokenizer, completion.token_ids, completion.finish_reason == "stop")
            first, said = number == 0, completion.token_ids
            if not self.settings.keep_thoughts:
                said = drop_thought(self.tokenizer, said)
            replies.append(
                Reply(
                    text,
                    len(request.token_ids) * first,
                    len(completion.token_ids),
                    completion.cached_tokens * first,
                    token_ids=(*request.token_ids, *said) if question.mode == "iterative" else (),
                )
            )
        return replies
