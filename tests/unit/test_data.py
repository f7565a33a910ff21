"""Training parquet: veRL's schema, round trips, re-wording, the loader, and cold-start rows."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.data.files.parquet import (
    example_to_row,
    read_training_rows,
    reword_row,
    row_format,
    row_mode,
    row_to_example,
    write_rows,
)
from r1ranker.data.generate import generate_training_rows
from r1ranker.data.loader import PromptLoader, load_prompts, subsample_by_task
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.prompt_store import Prompt
from r1ranker.data.sft import cold_start_row, read_sft_rows
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.toy import toy_examples
from r1ranker.data.teacher import teach_right_answers
from r1ranker.errors import UserError
from r1ranker.pretrained import load_tokenizer
from r1ranker.rewards import compute_score
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import Elimination, sample_sub_pools
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import sanitise


def test_the_schema_is_verls(toy: Path) -> None:
    frame = pd.read_parquet(toy / "iterative_ranking" / "train.parquet")
    assert list(frame.columns) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    row = frame.iloc[5]
    assert row["data_source"] == "iterative_ranking"
    assert row["ability"] == "ranking"
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant"]
    assert set(row["reward_model"]) == {"style", "ground_truth"}
    assert row["reward_model"]["style"] == "rule"
    assert set(row["reward_model"]["ground_truth"]) == {"candidate_text", "gt"}
    assert set(row["extra_info"]) == {"split", "index", "task_name", "think", "answer_style"}
    assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("train", 5)


@pytest.mark.parametrize(("mode", "train", "test"), [("direct", 900, 360), ("iterative", 10200, 4080)])
def test_the_real_data_gives_as_many_rows_as_it_has(
    mini: Path, tmp_path: Path, mode: str, train: int, test: int
) -> None:
    tally = generate_training_rows(str(mini), str(tmp_path), mode).tally  # type: ignore[arg-type]
    written = sum((task.written for task in tally.tasks.values()), Counter())
    assert written == {"train": train, "test": test}
    for split, expected in (("train", train), ("test", test)):
        rows = list(read_training_rows([str(tmp_path / f"{split}.parquet")]))
        assert len(rows) == expected
        original = [example for _, example in read_ranking_bench(str(mini), mode, split)]  # type: ignore[arg-type]
        for row, example in zip(rows[:: expected // 90], original[:: expected // 90], strict=True):
            assert row["reward_model"]["ground_truth"] == {
                "candidate_text": list(example.candidates),
                "gt": example.positive,
            }


@pytest.mark.parametrize("mode", ["direct", "iterative"])
def test_rows_go_back_to_their_examples_and_into_other_wordings(toy: Path, mode: str) -> None:
    for row in list(read_training_rows([str(toy / f"{mode}_ranking" / "test.parquet")]))[::7]:
        extra = row["extra_info"]
        again = example_to_row(row_to_example(row), row_mode(row), extra["split"], extra["index"], row_format(row))
        assert again == row
        for answer_format in (AnswerFormat(), AnswerFormat("label", think=False), AnswerFormat("label_after")):
            other = reword_row(row, answer_format)
            assert row_format(other) == answer_format
            assert other["prompt"] != row["prompt"]
            assert reword_row(other, row_format(row)) == row


def test_sub_pools_have_every_size_and_hold_the_positive() -> None:
    example = RankingExample("Rec-Movie", tuple("abcdef"), "c", history=("z",))
    pools = sample_sub_pools(example, random.Random(0))
    assert [len(pool) for pool in pools] == [2, 3, 4, 5, 6]
    assert all("c" in pool and len(set(pool)) == len(pool) for pool in pools)
    assert sample_sub_pools(example, random.Random(0), range(3, 5)) == pools[1:3]
    assert sample_sub_pools(example, random.Random(0), range(9, 12)) == pools[-1:]


def test_graded_sub_pools_need_not_hold_the_positive_but_something_relevant() -> None:
    example = RankingExample("Router-Cost", tuple("abcdef"), "c", query="q", grades=(0.0, 0.5, 1.0, 0.0, 0.2, 0.0))
    pools = [pool for seed in range(200) for pool in sample_sub_pools(example, random.Random(seed))]
    assert all(set(pool) & set("bce") and len(set(pool)) == len(pool) for pool in pools)
    pairs = Counter(frozenset(pool) for pool in pools if len(pool) == 2)
    assert len(pairs) == 12, "every pair but those of a, d and f"
    assert all(count >= 4 for count in pairs.values())
    labels = {pool: example.with_pool(pool).positive for pool in pools}
    assert all(label == min(set(pool) & set("bce"), key="cbe".index) for pool, label in labels.items())
    assert example.with_pool(("a", "d")).positive == ""


@given(st.permutations("abcde"))
def test_an_elimination_ranks_in_reverse_order_of_going_out(order: list[str]) -> None:
    state = Elimination("abcde")
    for name in order[:-1]:
        assert not state.done
        state.eliminate(name)
    assert state.done
    assert list(state.ranking()) == order[::-1]
    with pytest.raises(ValueError, match="not in the pool"):
        state.eliminate(order[0])


@pytest.mark.parametrize("mode", ["direct", "iterative"])
def test_cold_start_rows_are_well_formed_and_do_not_give_the_ranking_away(
    toy: Path, toy_thinking: Path, mode: str
) -> None:
    for directory in (toy, toy_thinking):
        rows = read_training_rows([str(directory / f"{mode}_ranking" / "train.parquet")])
        completions = read_sft_rows([str(directory / f"{mode}_ranking" / "sft.parquet")])
        scores = [
            compute_score(row["data_source"], one["completion"], row["reward_model"]["ground_truth"], row["extra_info"])
            for row, one in zip(rows, completions, strict=True)
        ]
        assert all(score["valid"] == 1 and score["format"] == 0 and score["tags"] == 0 for score in scores)
        right = np.mean([score["task"] for score in scores])
        assert right < 0.9  # answers are random


@pytest.mark.parametrize(("mode", "think"), [("direct", True), ("iterative", True), ("iterative", False)])
def test_a_teacher_thinks_and_answers_by_the_labels_of_the_training_rows(
    mode: str, think: bool, tmp_path: Path
) -> None:
    prepare(PrepareOptions("toy", str(tmp_path), think=think, size=30, cold_start=True, teacher="frequent"))
    bench = pd.read_parquet(tmp_path / "bench" / "direct" / "train.parquet")
    counts = bench.groupby(["task_name", "gt"]).size()
    rows = list(read_training_rows([str(tmp_path / f"{mode}_ranking" / "train.parquet")]))
    completions = [one["completion"] for one in read_sft_rows([str(tmp_path / f"{mode}_ranking" / "sft.parquet")])]
    assert len(rows) == len(completions)
    for row, completion in zip(rows, completions, strict=True):
        task, truth = row["extra_info"]["task_name"], row["reward_model"]["ground_truth"]
        known = {sanitise(name): int(counts.get((task, name), 0)) for name in truth["candidate_text"]}
        thought, _, answer = completion.removesuffix("</answer>").rpartition("<answer>")
        named = [known[name] for name in answer.split("\n")] if think else [known[completion.removesuffix("</answer>")]]
        if mode == "direct":
            assert len(named) == len(known)
            assert named == sorted(known.values(), reverse=True)
        else:
            assert named == [min(known.values())]
        if think:
            assert answer.split("\n")[0] in thought
            assert thought.endswith("</think>\n")
        score = compute_score(row["data_source"], completion, truth, row["extra_info"])
        assert score["valid"] == 1
        assert score["format"] == score["tags"] == 0


def prompts(count: int, task: str = "Rec-Movie") -> list[Prompt]:
    return [
        Prompt(
            [number],
            "direct_ranking",
            {"candidate_text": ["a"], "gt": "a"},
            {"task_name": task},
            "direct",
            AnswerFormat(),
        )
        for number in range(count)
    ]


@given(st.integers(4, 40), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_deals_every_prompt_at_most_once_and_resumes_exactly(count: int, batch: int, stop: int) -> None:
    def run(loader: PromptLoader, steps: int) -> list[list[int]]:
        return [[prompt.token_ids[0] for prompt in loader.next()] for _ in range(steps)]

    whole = PromptLoader(prompts(count), batch, seed=1, shuffle=True)
    steps = 2 * whole.steps_per_epoch + 1
    expected = run(whole, steps)
    first = [number for one in expected[: whole.steps_per_epoch] for number in one]
    assert len(set(first)) == len(first) == count // batch * batch
    interrupted = PromptLoader(prompts(count), batch, seed=1, shuffle=True)
    done = run(interrupted, stop)
    resumed = PromptLoader(prompts(count), batch, seed=1, shuffle=True)
    resumed.load_state_dict(interrupted.state_dict())
    assert done + run(resumed, steps - stop) == expected[: max(steps, stop)] or stop > steps


def test_epochs_differ_in_order_and_seeds_too() -> None:
    loader = PromptLoader(prompts(20), 20, seed=1, shuffle=True)
    epochs = [[prompt.token_ids[0] for prompt in loader.next()] for _ in range(3)]
    assert all(one != other for one, other in pairwise(epochs))
    assert [prompt.token_ids[0] for prompt in PromptLoader(prompts(20), 20, 2, shuffle=True).next()] != epochs[0]
    assert [prompt.token_ids[0] for prompt in PromptLoader(prompts(20), 20, 2, shuffle=False).next()] == list(range(20))
    with pytest.raises(UserError, match="train_batch_size: 30"):
        PromptLoader(prompts(20), 30, 1, shuffle=True)


def test_validation_rows_are_spread_over_tasks() -> None:
    mixed = prompts(50, "Rec-Movie") + prompts(5, "Passage-5") + prompts(50, "Router-Cost")
    chosen = Counter(prompt.task for prompt in subsample_by_task(mixed, 30))
    assert chosen == {"Rec-Movie": 10, "Passage-5": 5, "Router-Cost": 10}
    assert len(subsample_by_task(mixed, -1)) == 105


def test_prompts_over_the_limit_are_left_out_and_counted_or_refused(toy: Path, tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    files = [str(toy / "direct_ranking" / "train.parquet")]
    everything, none_left_out = load_prompts(files, tokenizer, 10_000)
    assert none_left_out == 0
    lengths = sorted(len(prompt.token_ids) for prompt in everything)
    limit = lengths[len(lengths) // 2]
    kept, left_out = load_prompts(files, tokenizer, limit)
    assert len(kept) == sum(length <= limit for length in lengths)
    assert left_out == len(lengths) - len(kept) > 0
    with pytest.raises(UserError, match=r"row \d+: a prompt of \d+ tokens.*max_prompt_length"):
        load_prompts(files, tokenizer, limit, filter_overlong=False)
    with pytest.raises(UserError, match="all 270 prompts"):
        load_prompts(files, tokenizer, 5)


def test_both_switches_are_one_override_away(toy: Path, tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    files = [str(toy / "iterative_ranking" / "test.parquet")]
    plain, _ = load_prompts(files, tokenizer, 10_000)
    other, _ = load_prompts(files, tokenizer, 10_000, answer_style="label", think=True)
    assert plain[0].answer_format == AnswerFormat("name", think=False)
    assert other[0].answer_format == AnswerFormat("label", think=True)
    text = tokenizer.decode(other[0].token_ids)
    assert text.endswith("Let me solve this step by step.\n<think>")
    assert "[1] " in text
    assert "- " + plain[0].candidates[0] in tokenizer.decode(plain[0].token_ids)


def write_training(path: Path, **changes: object) -> str:
    """One good training row with some of its values changed."""
    row = example_to_row(toy_examples("Rec-Movie", "train", 1, seed=1)[0], "iterative", "train", 0) | changes
    pq.write_table(pa.Table.from_pylist([row]), path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"reward_model": {"ground_truth": {"candidate_text": ["A", None], "gt": "A"}}}, "a list of names and a name"),
        ({"reward_model": {"ground_truth": {"candidate_text": [1, 2], "gt": "A"}}}, "a list of names and a name"),
        ({"reward_model": {"ground_truth": {"candidate_text": "AB", "gt": "A"}}}, "a list of names and a name"),
        ({"reward_model": {"ground_truth": "A"}}, "lacks candidate_text"),
        ({"prompt": [{"role": "user", "content": 3}]}, "messages of role and content"),
        ({"prompt": [{"from": "user", "value": "x"}]}, "messages of role and content"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "no message of role 'user'"),
        ({"extra_info": {"split": "train"}}, "task_name"),
        ({"data_source": "listwise"}, "data_source 'listwise'"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(changes: dict, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"row 0.*{wanted}"):
        list(read_training_rows([write_training(tmp_path / "rows.parquet", **changes)]))


def test_a_row_without_split_and_index_can_be_reworded(tmp_path: Path) -> None:
    (row,) = read_training_rows([write_training(tmp_path / "rows.parquet", extra_info={"task_name": "Rec-Movie"})])
    assert row_format(reword_row(row, AnswerFormat(think=False))) == AnswerFormat(think=False)
    (own,) = read_training_rows([write_training(tmp_path / "rows.parquet", extra_info={"task_name": "Recipes"})])
    assert "<think>" not in str(reword_row(own, AnswerFormat(think=False))["prompt"])


def test_what_looks_the_same_in_a_prompt_is_a_duplicate() -> None:
    for pair in (("A  B", "A B"), ("Heat\u200b", "Heat"), ("x<|im_end|>", "x‹|im_end|›")):
        with pytest.raises(UserError, match="twice"):
            RankingExample("Rec-Movie", pair).validate()
    with pytest.raises(UserError, match="blank"):
        RankingExample("Rec-Movie", ("\u200b", "A")).validate()


def test_a_failed_preparation_changes_neither_file(toy: Path, tmp_path: Path) -> None:
    source = str(toy / "bench")
    generate_training_rows(source, str(tmp_path), "direct", tasks=["Rec-Movie"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for split in ("train", "test"):
        (tmp_path / "bench" / "direct").mkdir(parents=True, exist_ok=True)
        if split == "train":
            shutil.copy(toy / "bench" / "direct" / "train.parquet", tmp_path / "bench" / "direct")
    with pytest.raises(UserError, match=r"test\.parquet: no such file"):
        generate_training_rows(str(tmp_path / "bench"), str(tmp_path), "direct", tasks=["Rec-Music"])
    with pytest.raises(UserError, match=r"no (train|test) rows of the tasks Passage-11"):
        generate_training_rows(source, str(tmp_path), "direct", tasks=["Passage-11"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_half_a_surrogate_pair_is_named_with_its_row_and_nothing_is_written(tmp_path: Path) -> None:
    rows = [{"id": "fine", "names": ["a"]}, {"id": "x", "names": ["b", "c\ud800d"]}]
    schema = pa.schema([("id", pa.string()), ("names", pa.list_(pa.string()))])
    with pytest.raises(UserError, match=r"row 1: found 'c\\ud800d', half a surrogate pair; text is wanted"):
        write_rows(rows, str(tmp_path / "rows.parquet"), schema)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run:1", "s3:x", "file:x", "hdfs:x", "zip::x", "gs:/bucket", "[a] *?", "数据 (v=1)"])
def test_a_relative_path_is_no_address(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in (name, str(tmp_path / name)):
        prepare(PrepareOptions("toy", directory, think=False, size=2, tasks=["Rec-Movie"]))
        read = list(read_training_rows([f"{directory}/direct_ranking/train.parquet"]))
        assert len(read) == 2
    assert {path.parts[0] for path in map(Path, os.listdir())} == {Path(name).parts[0]}


@pytest.mark.parametrize("mode", ["direct", "iterative"])
def test_a_teacher_of_right_answers_names_the_words_that_are_asked_for(mode: Mode) -> None:
    example = RankingExample(
        "Passage-5",
        ("passage 0", "passage 1", "passage 2"),
        "passage 1",
        query="How are glacier caves formed?",
        texts=("A cave was formed in the glacier.", "Water ran under a glacier.", "The facade is high."),
    )
    written = ("[1]", "[2]", "[3]")
    lesson = teach_right_answers(example, mode, written)
    assert lesson.order == (1, 0, 2)  # the right one first, the others by the words they share
    third, second, first = "[3] has none.", "[2] has glacier, not caves.", "[1] has glacier, caves, formed."
    places = (second, first, third) if mode == "direct" else (third, first, second)
    assert lesson.thought == " ".join(["Asked: glacier, caves, formed.", *places])
    named = replace(example, candidates=example.texts, texts=(), positive=example.texts[1])
    thought = teach_right_answers(named, mode, named.candidates).thought
    assert "A cave was formed ... has glacier, caves, formed." in thought
    assert "The facade is high. has none." in thought
    graded = replace(example, grades=(2.0, 0.0, 1.0), positive="passage 0")
    assert teach_right_answers(graded, mode, written).order == (0, 2, 1)
    row = example_to_row(example, mode, "train", 0, AnswerFormat("label", True))
    answer = "[2]\n[1]\n[3]" if mode == "direct" else "[3]"
    completion = cold_start_row(row, example, random.Random(0), teach_right_answers)["completion"]
    assert completion == f" {lesson.thought}</think>\n<answer>{answer}</answer>"
    wordless = RankingExample("Rec-Movie", ("Alien", "Heat"), "Heat", history=("The",))
    assert teach_right_answers(wordless, mode, ("Alien", "Heat")).order == (1, 0)
