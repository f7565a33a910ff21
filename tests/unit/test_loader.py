"""Dealing tokenised rows: weights, curriculum, order, what is kept on disk and what in memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.data import token_cache
from r1ranker.data.files.parquet import example_to_row, read_training_rows, reword_row, training_schema, write_rows
from r1ranker.data.loader import PromptLoader, load_prompts, subsample_by_task
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.prompt_store import INDEX_FILE, ROWS_FILE, Prompt
from r1ranker.data.sources.toy import toy_examples
from r1ranker.data.tokenise import encode_chat, encode_chats
from r1ranker.errors import UserError
from r1ranker.pretrained import load_tokenizer
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.trainer.config.load import load_config


def prompts(sizes: dict[str, int], pool: int = 2) -> list[Prompt]:
    """`sizes` rows of each task; the pools are from 2 to `pool` + 1 candidates large, in turn."""
    rows = []
    for task, count in sizes.items():
        for number in range(count):
            names = [f"n{place}" for place in range(2 + number % pool)]
            truth = {"candidate_text": names, "gt": names[0]}
            rows.append(
                Prompt([len(rows)], "iterative_ranking", truth, {"task_name": task}, "iterative", AnswerFormat())
            )
    return rows


def deal(loader: PromptLoader, epochs: int) -> list[list[Prompt]]:
    return [[prompt for _ in range(loader.steps_per_epoch) for prompt in loader.next()] for _ in range(epochs)]


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.75]),
    st.integers(0, 3),
    st.booleans(),
)
def test_weights_are_exact_over_the_epochs(first: int, second: int, weight: float, seed: int, shuffle: bool) -> None:
    rows = prompts({"A": first, "B": second})
    loader = PromptLoader(rows, 1, seed, shuffle, {"A": weight})
    epochs = deal(loader, 6)
    share = round(first * weight)
    for epoch in epochs:
        assert Counter(prompt.task for prompt in epoch) == Counter({"A": share, "B": second})
    dealt = Counter(prompt.token_ids[0] for epoch in epochs for prompt in epoch)
    of_a = [dealt[number] for number in range(first)]
    assert max(of_a) - min(of_a) <= 1  # no row is dealt more than once oftener than another
    assert all(dealt[number] == 6 for number in range(first, first + second))
    again = PromptLoader(rows, 1, seed, shuffle, {"A": weight})
    deal(again, 2)
    resumed = PromptLoader(rows, 1, seed, shuffle, {"A": weight})
    resumed.load_state_dict(json.loads(json.dumps(again.state_dict())))
    assert deal(resumed, 1)[0] == epochs[2]


def test_a_task_may_be_left_out_and_an_unknown_one_is_refused() -> None:
    rows = prompts({"Rec-Movie": 4, "Rec-Game": 4})
    assert {prompt.task for prompt in deal(PromptLoader(rows, 2, 1, True, {"Rec-Game": 0}), 1)[0]} == {"Rec-Movie"}
    with pytest.raises(UserError, match=r"no rows of 'Rec-Gama' \(did you mean 'Rec-Game'\?\)"):
        PromptLoader(rows, 2, 1, True, {"Rec-Gama": 1})
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="Rec-Game: found"):
            PromptLoader(rows, 2, 1, True, {"Rec-Game": wrong})
    with pytest.raises(UserError, match="train_batch_size: 2 prompts"):
        PromptLoader(rows, 2, 1, True, {"Rec-Game": 0, "Rec-Movie": 0})


def test_the_first_epoch_of_a_curriculum_goes_from_small_pools_to_large_ones() -> None:
    rows = prompts({"A": 60}, pool=6)
    loader = PromptLoader(rows, 5, 1, True, curriculum="pool_size")
    first, second = deal(loader, 2)
    sizes = [len(prompt.candidates) for prompt in first]
    assert sizes == sorted(sizes)
    assert len({prompt.token_ids[0] for prompt in first}) == 60
    within = [[prompt.token_ids[0] for prompt in first if len(prompt.candidates) == size] for size in set(sizes)]
    assert any(numbers != sorted(numbers) for numbers in within)  # shuffled within a size
    later = [len(prompt.candidates) for prompt in second]
    assert later != sorted(later)


@pytest.mark.parametrize(
    ("rows", "batch", "seed", "options", "message"),
    [
        (12, 2, 1, {}, "rows an epoch: found 12, but 10"),
        (10, 4, 1, {}, "data.train_batch_size: found 4, but 2"),
        (10, 2, 2, {}, "data.seed: found 2, but 1"),
        (10, 2, 1, {"curriculum": "pool_size"}, "data.curriculum: found pool_size, but None"),
        (10, 2, 1, {"task_weights": {"A": 1.0}}, "data.task_weights: found {'A': 1.0}, but {}"),
    ],
)
def test_a_position_in_another_order_is_refused(rows: int, batch: int, seed: int, options: dict, message: str) -> None:
    state = PromptLoader(prompts({"A": 10}), 2, 1, True).state_dict()
    with pytest.raises(UserError, match=message):
        PromptLoader(prompts({"A": rows}), batch, seed, True, **options).load_state_dict(state)


def test_settings_of_the_order_are_overrides() -> None:
    given = ["data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=x"]
    config = load_config(
        "quickstart", [*given, "data.task_weights={Rec-Movie: 2, Own_Task: 0.5}", "data.curriculum=pool_size"]
    )
    assert config.data.task_weights == {"Rec-Movie": 2.0, "Own_Task": 0.5}
    assert load_config("quickstart", [*given, "data.task_weights.Rec-Game=3"]).data.task_weights == {"Rec-Game": 3.0}
    with pytest.raises(UserError, match=r"data.curriculum: found 'size'"):
        load_config("quickstart", [*given, "data.curriculum=size"])
    with pytest.raises(UserError, match=r"data.task_weights.Rec-Game: found 'often'; a number is wanted"):
        load_config("quickstart", [*given, "data.task_weights.Rec-Game=often"])


def test_many_conversations_at_once_give_the_tokens_of_each_alone(toy: Path, tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    rows = [row["prompt"] for row in read_training_rows([str(toy / "iterative_ranking" / "test.parquet")])][:60]
    rows += [[{"role": "user", "content": "no more than <|im_end|> this"}], [*rows[0], {"role": "user", "content": ""}]]
    assert encode_chats(tokenizer, rows) == [encode_chat(tokenizer, row) for row in rows]


def test_what_is_read_from_disk_is_what_was_prepared(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    files = [str(toy / f"{mode}_ranking" / "test.parquet") for mode in ("direct", "iterative")]
    for answer_style, think in ((None, None), ("label", True)):
        store, _ = load_prompts(files, tokenizer, 10_000, True, answer_style, think, str(tmp_path))
        rows = list(read_training_rows(files))
        assert len(store) == len(rows)
        for number in [0, 1, 15, 16, 17, len(rows) // 2, len(rows) - 1]:
            row, prompt = rows[number], store[number]
            if answer_style:
                row = reword_row(row, AnswerFormat("label", think=True))
            assert prompt.token_ids == encode_chat(tokenizer, row["prompt"])
            assert prompt.ground_truth == row["reward_model"]["ground_truth"]
            assert prompt.extra_info == row["extra_info"]
            assert prompt.data_source == row["data_source"]
        assert [prompt.token_ids for prompt in store[3:5]] == [store[3].token_ids, store[4].token_ids]
        assert [prompt.task for prompt in store] == [store.task_names[code] for code in store.task_codes]
        assert [len(prompt.candidates) for prompt in store] == store.pool_sizes.tolist()
        spread = subsample_by_task(store, 18)
        assert Counter(prompt.task for prompt in spread) == dict.fromkeys(store.task_names, 2)


def test_rows_are_tokenised_once_for_each_content_tokenizer_and_wording(
    toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    made = []
    write = token_cache._write
    monkeypatch.setattr(token_cache, "_write", lambda *args: (made.append(args), write(*args))[1])
    file = tmp_path / "rows.parquet"
    examples = toy_examples("Rec-Movie", "train", 30, seed=1)

    def load(count: int, expected: int, **options: object) -> None:
        write_rows((example_to_row(one, "direct", "train", 0) for one in examples[:count]), str(file))
        store, _ = load_prompts([str(file)], tokenizer, 10_000, cache_dir=str(tmp_path / "cache"), **options)  # type: ignore[arg-type]
        assert len(store) == count
        assert len(made) == expected

    load(20, 1)
    load(20, 1)
    load(20, 2, think=False)
    load(21, 3)
    load(20, 3)
    tokenizer.add_tokens(["Harbour"])
    load(20, 4)
    for entry in (tmp_path / "cache").iterdir():  # cut short: made anew
        for name in (ROWS_FILE, INDEX_FILE):
            (entry / name).write_bytes((entry / name).read_bytes()[:40])
    load(20, 5)
    tokenizer.chat_template = "{{ eos_token }}" + tokenizer.chat_template
    load(20, 6)
    tokenizer.eos_token = "Harbour"  # the template's words change with it
    load(20, 7)
    assert sorted(path.suffix for path in (tmp_path / "cache").rglob("*")) == sorted([*[""] * 6, *[".arrow"] * 12])


FILL = """
import os, sys, traceback
from r1ranker.data.loader import load_prompts
from r1ranker.pretrained import load_tokenizer
started = []
for _ in range(2):  # four processes, which have nothing in common but what they imported
    if (process := os.fork()) == 0:
        started.clear()
    else:
        started.append(process)
code = 1
try:
    tokenizer = load_tokenizer(sys.argv[2])
    for number in range(30):
        count = len(load_prompts([sys.argv[1]], tokenizer, 10_000, cache_dir=f"{sys.argv[3]}/{number}")[0])
        os.write(1, f"{count}\\n".encode())
    code = 0
except BaseException:
    traceback.print_exc()
for process in started:
    code |= os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
os._exit(code)
"""


def test_processes_that_fill_one_cache_at_once_do_not_disturb_each_other(
    toy: Path, tiny_model: str, tmp_path: Path
) -> None:
    file = str(toy / "direct_ranking" / "test.parquet")
    command = [sys.executable, "-c", FILL, file, tiny_model, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4 * 30
    assert len(set(done.stdout.split())) == 1
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".arrow"}
    assert len(list(tmp_path.glob("*/*"))) == len(list(tmp_path.glob("*/.*"))) + 30 == 30


def test_a_file_that_is_not_its_manifests_is_noticed_though_its_tokens_are_cached(
    tiny_model: str, tmp_path: Path
) -> None:
    files = {}
    for seed in (1, 2):
        prepare(PrepareOptions("toy", str(tmp_path / str(seed)), size=3, seed=seed, tasks=["Rec-Movie"]))
        files[seed] = tmp_path / str(seed) / "direct_ranking" / "train.parquet"
    tokenizer = load_tokenizer(tiny_model)
    load_prompts([str(files[1])], tokenizer, 10_000, cache_dir=str(tmp_path / "cache"))
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(UserError, match=r"manifest.json"):
        load_prompts([str(files[2])], tokenizer, 10_000, cache_dir=str(tmp_path / "cache"))


def test_a_row_that_cannot_be_used_leaves_nothing_in_the_cache(tiny_model: str, tmp_path: Path) -> None:
    good = example_to_row(toy_examples("Rec-Movie", "train", 1, seed=1)[0], "direct", "train", 0)
    write_rows([*[good] * 2000, good | {"ability": None}], str(tmp_path / "rows.parquet"), training_schema())
    with pytest.raises(UserError, match=r"rows.parquet: row 2000: ability is null"):
        load_prompts(
            [str(tmp_path / "rows.parquet")], load_tokenizer(tiny_model), 999, cache_dir=str(tmp_path / "cache")
        )
    assert not list(tmp_path.glob("cache/*"))


def held(files: list[str], model: str, cache: Path) -> tuple[int, int]:
    """(rows, bytes that Python and Arrow hold) after the files were loaded and an epoch of them dealt."""
    tokenizer = load_tokenizer(model)
    load_prompts(files, tokenizer, 10_000, cache_dir=str(cache))
    gc.collect()
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    store, _ = load_prompts(files, tokenizer, 10_000, cache_dir=str(cache))
    loader = PromptLoader(store, 8, 1, True)
    for _ in range(loader.steps_per_epoch):
        loader.next()
    gc.collect()
    found = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    return len(store), found


def test_the_loader_holds_little_of_a_row_whatever_its_length(tiny_model: str, tmp_path: Path) -> None:
    counts = []
    for size in (10, 160):
        prepare(PrepareOptions("toy", str(tmp_path / str(size)), size=size, tasks=["Rec-Movie"]))
        file = str(tmp_path / str(size) / "iterative_ranking" / "train.parquet")
        counts.append(held([file], tiny_model, tmp_path / "cache"))
    (few, little), (many, more) = counts
    assert many == 16 * few
    assert (more - little) / (many - few) < 60  # bytes a row; its tokens alone are some 300


def test_neighbours_in_an_epoch_differ_from_neighbours_in_the_file(toy: Path, tiny_model: str) -> None:
    store, _ = load_prompts([str(toy / "iterative_ranking" / "train.parquet")], load_tokenizer(tiny_model), 10_000)
    dealt = deal(PromptLoader(store, 4, 3, True), 1)[0]
    numbers = [prompt.extra_info["index"] for prompt in dealt]
    assert len(set(numbers)) == len(numbers) == len(store) // 4 * 4
    assert sum(abs(one - other) == 1 for one, other in pairwise(numbers)) < len(numbers) / 20
