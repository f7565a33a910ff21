"""Collecting thoughts: from the rollouts that a run wrote down, or by asking a trained ranker about training rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from r1ranker.data.files.text_rows import json_rows
from r1ranker.errors import UserError
from r1ranker.evaluation.options import ALL
from r1ranker.evaluation.runner import examples_by_task, resolve_tasks
from r1ranker.pretrained import load_tokenizer, read_setting
from r1ranker.progress import follow
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.required_length import required_length
from r1ranker.ranking.settings import RankerSettings
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.thoughts.bank import Thought, choose_thoughts, write_bank
from r1ranker.trainer.monitoring.rollouts import DIRECTORY


def collect_thoughts(
    source: str,
    data: str,
    output: str,
    settings: RankerSettings | None,
    engine: str,
    dtype: str,
    limit: int | None,
    dataset: str = ALL,
) -> tuple[int, Counter[str]]:
    """Write a bank of thoughts on training rows to `output`; returns how many it holds, and what was left out, and why.

    `source`: the directory of a run with rollouts, or of a trained model (with `settings`), which is then asked about the first
    `limit` training rows of each task of `data` that `dataset` names. Requests of the test rows of `data` are left out.
    """
    tasks = resolve_tasks(dataset, data)
    test = examples_by_task(data, tasks, "test")
    if settings is None:
        found: Iterator[Thought] = thoughts_of_run(source)
    else:
        found = thoughts_of_model(source, data, tasks, settings, engine, dtype, limit)
    tested = [request_of(example) for rows in test.values() for example in rows]
    kept, counts = choose_thoughts(found, tested)
    write_bank(kept, output)
    return len(kept), counts


def thoughts_of_run(directory: str) -> Iterator[Thought]:
    """Of the rollouts that are valid and rewarded in full, those of earlier steps first.

    Raises UserError where there are none, and for a line that is no rollout.
    """
    files = [
        (int(file.stem), file)
        for file in (Path(directory) / DIRECTORY).glob("*.jsonl")
        if re.fullmatch(r"\d+", file.stem)
    ]
    if not files:
        raise UserError(
            f"{directory}: no {DIRECTORY}/STEP.jsonl there; a run with trainer.rollout_data_prompts over 0 is wanted"
        )
    for step, file in sorted(files):
        for number, row in json_rows(str(file)):
            try:
                found = _thought_of(row, directory, step)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{file}: line {number}: not a rollout ({type(error).__name__}: {error})") from error
            if found is not None:
                yield found


def _thought_of(row: Mapping[str, Any], run: str, step: int) -> Thought | None:
    names = row["gts"]["candidate_text"]
    if not row["think"] or row["parts"]["task"] < 1 or row["parts"]["valid"] < 1:
        return None
    answer = parse_answer(row["output"], names, row["mode"], AnswerFormat(row["answer_style"], think=True))
    return Thought(
        row["task"],
        row["request"],
        len(names),
        answer.thought.strip(),
        float(row["score"]),
        run,
        step,
        str(row["best"]),
    )


def thoughts_of_model(
    model: str, data: str, tasks: Sequence[str], settings: RankerSettings, engine: str, dtype: str, limit: int | None
) -> Iterator[Thought]:
    """A model's first thought on each training row that it ranks right, by usable answers alone.

    Raises UserError for a model that is asked for answers at once.
    """
    if not settings.answer_format.think or settings.by_logits:
        raise UserError(f"{model}: it answers at once; one that thinks (--think) is wanted")
    settings.check()
    examples = [one for rows in examples_by_task(data, tasks, "train", limit).values() for one in rows]
    length = required_length(model, load_tokenizer(model), settings, examples, engine=engine)
    step = read_setting(model, "step")
    ranker = Ranker.from_pretrained(model, settings=settings, engine=engine, max_model_len=length, dtype=dtype)
    try:
        with closing(follow(ranker.rank_stream(examples), len(examples), Path(model).name)) as followed:
            for place, result in followed:
                example = examples[place]
                right = example.grade_of(result.ranking[0]) == max(map(example.grade_of, example.candidates))
                if right and not result.fallbacks and result.thoughts:
                    thought, reward = result.thoughts[0].strip(), example.grade_of(result.ranking[0])
                    size = len(example.candidates)
                    known = step if isinstance(step, int) else 0
                    yield Thought(
                        example.task, request_of(example), size, thought, reward, model, known, example.best_text
                    )
    finally:
        ranker.engine.close()
