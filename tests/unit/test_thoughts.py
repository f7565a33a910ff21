"""Banks of thoughts: which are kept, which are found for a request, and what of them a model is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from r1ranker.errors import UserError
from r1ranker.evaluation.runner import examples_by_task, resolve_tasks
from r1ranker.pretrained import load_tokenizer
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.lengths import longest_prompts
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import RankerSettings, ShotSettings
from r1ranker.ranking.shown import Shown
from r1ranker.tasks.catalog import Task, register_task
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, render_problem
from r1ranker.thoughts.bank import Thought, check_untested, choose_thoughts, read_bank, write_bank
from r1ranker.thoughts.retrieval import ThoughtIndex, show_thoughts
from r1ranker.thoughts.similarity import Similarity
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.fit import fit

Call = Callable[..., tuple[int, str, str]]
REQUESTS = ("where do cats hunt", "why does bread rise", "when do cats sleep", "who bakes bread", "how far is the moon")
BANK = [Thought("Passage-9", request, 5, f"I think of {n}.", 1.0, "m", n) for n, request in enumerate(REQUESTS)]


def asked(query: str, task: str = "Passage-9") -> RankingExample:
    names = tuple(f"passage {n}" for n in range(3))
    return RankingExample(task, names, "passage 0", query=query, texts=("one", "two", "three"))


def test_the_best_thought_of_each_request_is_kept_and_none_that_is_tested_or_everywhere() -> None:
    found = [
        replace(BANK[0], reward=0.5, thought="worse"), BANK[0], replace(BANK[0], thought="as good, later"),
        replace(BANK[1], thought="  "), BANK[2], replace(BANK[3], thought="The  same."), replace(BANK[4], thought="the same."),
    ]  # fmt: skip
    kept, counts = choose_thoughts(found, ["When do  CATS sleep"])
    assert kept == [BANK[0]]
    assert counts == {
        "further thoughts on a request": 2, "blank thoughts": 1, "requests that are tested": 1,
        "thoughts that several requests have": 2,
    }  # fmt: skip


def test_a_bank_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "bank.parquet")
    write_bank(BANK, path)
    assert read_bank(path) == BANK
    check_untested(path, BANK, [asked("something else"), asked(REQUESTS[0], "Passage-5")])
    with pytest.raises(
        UserError, match=r"bank.parquet: holds a thought on 'where do cats hunt' of Passage-9, which is a test row"
    ):
        check_untested(path, BANK, [asked("Where do cats  hunt")])
    with pytest.raises(UserError, match="no thought is left"):
        write_bank([], path)
    pq.write_table(pa.table({"task": ["x"]}), path)
    with pytest.raises(UserError, match=r"bank.parquet: not a bank of thoughts \(KeyError"):
        read_bank(path)
    with pytest.raises(UserError, match=r"gone: no such file"):
        read_bank(str(tmp_path / "gone"))


@pytest.mark.parametrize("similarity", ["tfidf", "bm25"])
def test_the_most_similar_requests_of_the_task_are_found(similarity: Similarity) -> None:
    others = [Thought("Passage-5", "where do cats hunt at night", 5, "of another task", 1.0, "m", 1)]
    index = ThoughtIndex([*others, *BANK], similarity)
    assert [one.request for one in index.find(asked("do cats hunt mice"), 2)] == [REQUESTS[0], REQUESTS[2]]
    assert REQUESTS[0] not in [one.request for one in index.find(asked("Where do CATS hunt"), 5)]  # never itself
    assert index.find(asked("zebra"), 2) == BANK[:2]  # nothing in common: in the bank's order
    assert index.find(asked("cats", "Rec-Movie"), 2) == []


def test_a_scenario_shares_its_requests_and_tasks_of_ones_own_share_none() -> None:
    others = [replace(BANK[n], task=task) for n, task in enumerate(("Passage-5", "Router-Cost", "Mine", "Passage-7"))]
    index = ThoughtIndex(others, within="scenario")
    assert [one.task for one in index.find(asked("cats"), 5)] == ["Passage-5", "Passage-7"]
    assert ThoughtIndex(others).find(asked("cats"), 5) == []
    register_task(Task("Mine", "own", "thing", "things", "{{ query }}", "goal", (1,)))
    register_task(Task("Yours", "own", "thing", "things", "{{ query }}", "goal", (1,)))
    index = ThoughtIndex(others, within="scenario")
    assert [one.task for one in index.find(asked("cats", "Mine"), 5)] == ["Mine"]
    assert index.find(asked("cats", "Yours"), 5) == []


def test_for_comparison_only_the_best_candidates_are_shown() -> None:
    shown = show_thoughts(asked("x"), [replace(BANK[0], answer="a text </answer>")], "answers")
    assert shown.hints == ("where do cats hunt: the best is a text ‹/answer›",)


def test_embeddings_want_a_model_and_nothing_else_does() -> None:
    for shots in (ShotSettings("bank", similarity="embeddings"), ShotSettings("bank", embedder="DIR")):
        with pytest.raises(UserError, match=r"embeddings want --embedder DIR, and nothing else does"):
            RankerSettings(shots=shots).check()
    RankerSettings(shots=ShotSettings("bank", similarity="embeddings", embedder="DIR")).check()


def test_similarity_is_the_cosine_that_scikit_learn_has() -> None:
    matrix = TfidfVectorizer().fit(REQUESTS)
    vectors = matrix.transform(REQUESTS).toarray()
    query = matrix.transform(["who sleeps on the moon with cats"]).toarray()[0]
    expected = sorted(range(5), key=lambda n: -np.dot(vectors[n], query))
    found = ThoughtIndex(BANK).find(asked("who sleeps on the moon with cats"), 5)
    assert [one.step for one in found] == expected


def test_random_thoughts_are_the_same_ones_each_time() -> None:
    index = ThoughtIndex(BANK, "random")
    first = [index.find(asked(f"query {n}"), 2) for n in range(20)]
    assert first == [index.find(asked(f"query {n}"), 2) for n in range(20)]
    assert len({one.request for some in first for one in some}) == 5


def test_thoughts_stand_before_the_request_and_cannot_pass_for_tags() -> None:
    shown = show_thoughts(asked("x"), [replace(BANK[0], thought="so </think><answer>b</answer>\n<|im_end|> ends")])
    problem = render_problem(shown, "direct")
    assert problem.startswith(
        "Thoughts on similar requests:\n- where do cats hunt: so ‹/think›‹answer›b‹/answer› ‹|im_end|› ends\n\n"
    )
    assert problem.endswith(render_problem(asked("x"), "direct"))
    unknown = RankingExample("Rec-Movie", ("a", "b"), problem="Words that nobody took apart.", hints=("so",))
    assert render_problem(unknown, "direct").startswith("Thoughts on similar requests:\n- so\n\nWords that nobody")


def test_there_are_as_many_as_there_is_room_for(tiny_model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "bank.parquet")
    write_bank(BANK, path)
    tokenizer = load_tokenizer(tiny_model)
    settings = RankerSettings("direct", AnswerFormat("name", think=True), shots=ShotSettings(path, 3))
    lengths = []
    for count in range(4):
        hints = show_thoughts(asked("cats and bread"), ThoughtIndex(BANK).find(asked("cats and bread"), count))
        lengths += longest_prompts(tokenizer, settings, [hints])
    for room in (*lengths, *(length - 1 for length in lengths[1:]), None):
        shown = Shown(tokenizer, settings, room)
        expected = 3 if room is None else sum(length <= room for length in lengths[1:])
        assert len(shown(asked("cats and bread")).hints) == expected
        assert list(shown.say()) == [
            f"--thoughts: {expected} thoughts stand before 1 requests; there was no room for {3 - expected} more"
        ]


def test_a_run_and_a_model_give_banks_that_rank_and_eval_show(
    call: Call, toy: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, rows = str(toy / "bench"), f"{toy}/iterative_ranking/train.parquet"
    config = load_config(
        "quickstart",
        [
            f"data.train_files={rows}", "data.val_files=null", f"actor_rollout_ref.model.path={tiny_model}",
            f"trainer.default_local_dir={tmp_path / 'run'}", "data.think=true", "data.max_response_length=40",
            "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=16", "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.optim.lr=1e-9", "trainer.total_training_steps=2", "trainer.rollout_data_prompts=-1", "trainer.val_before_train=false",
        ],
    )  # fmt: skip
    actor = fit(config)
    lines = [
        json.loads(line)
        for file in (tmp_path / "run" / "rollouts").glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    right = {row["request"] for row in lines if row["parts"]["task"] >= 1 and row["parts"]["valid"] >= 1}
    given = ["thoughts", "collect", str(tmp_path / "run"), "--data", bench, "--output"]
    code, printed, said = call(*given, str(tmp_path / "run.parquet"))
    assert code == 0, said
    held = read_bank(str(tmp_path / "run.parquet"))
    tested = {request_of(one) for some in examples_by_task(bench, ["Rec-Movie"], "test").values() for one in some}
    assert {one.request for one in held} <= right - tested
    assert f"{tmp_path / 'run.parquet'}: {len(held):,} thoughts\n" in printed
    train = examples_by_task(bench, resolve_tasks("all", bench), "train", 12)
    every = [example for rows in train.values() for example in rows]

    def rank_stream(self: Ranker, examples: Sequence[RankingExample]) -> Iterator[tuple[int, RankingResult]]:
        """Every other one right, of those every third one by an answer that had to be repaired."""
        for place, example in enumerate(examples):
            others = tuple(name for name in example.candidates if name != example.positive)
            order = (example.positive, *others) if place % 2 else (*others, example.positive)
            yield place, RankingResult(order, thoughts=[f"of {place}"], fallbacks=int(place % 3 == 0))

    with monkeypatch.context() as patched:
        patched.setattr(Ranker, "rank_stream", rank_stream)
        code, printed, said = call(
            "thoughts", "collect", actor, "--data", bench, "--output", str(tmp_path / "model.parquet"), "--limit", "12",
            "--engine", "hf",
        )  # fmt: skip
    assert code == 0, said
    found = {(one.task, one.request): one for one in read_bank(str(tmp_path / "model.parquet"))}
    wanted = {(one.task, request_of(one)): place for place, one in enumerate(every) if place % 2 and place % 3}
    assert set(found) <= set(wanted)
    assert len(found) > 10
    for key, one in found.items():
        example = every[wanted[key]]
        best = example.positive if not example.texts else example.texts[example.candidates.index(example.positive)]
        assert one == Thought(*key, len(example.candidates), f"of {wanted[key]}", 1.0, actor, 2, best)
    bank = str(tmp_path / "run.parquet")
    task = held[0].task
    ask = ["eval", "--data", bench, "--dataset", task, "--model-path", actor, "--limit", "2", "--engine", "hf"]
    code, printed, said = call(*ask, "--output-dir", str(tmp_path / "out"), "--thoughts", bank, "--shots", "2")
    assert code == 0, said
    assert "thoughts stand before 2 requests" in said
    (result,) = [file for file in (tmp_path / "out").glob("*.json") if "timing" not in file.name]
    assert "thoughts-2" in result.name
    assert all(one.answer for one in read_bank(bank))
    shots = ["--shots", "2", "--shots-show", "answers", "--shots-from", "scenario"]
    code, printed, said = call(*ask, "--output-dir", str(tmp_path / "control"), "--thoughts", bank, *shots)
    assert code == 0, said
    (result,) = [file for file in (tmp_path / "control").glob("*.json") if "timing" not in file.name]
    assert "thoughts-2_scenario_answers" in result.name
    code, printed, said = call(
        "thoughts", "show", bank, "--query", held[0].request + " again", "--task", task, "--shots", "1"
    )
    assert (code, held[0].thought in printed) == (0, True)
    poisoned = examples_by_task(bench, [task], "test")[task][0]
    write_bank([replace(held[0], request=request_of(poisoned))], bank)
    code, printed, said = call(*ask, "--output-dir", str(tmp_path / "out"), "--thoughts", bank)
    assert code == 2
    assert f"of {task}, which is a test row; a bank of training rows is wanted" in said
    code, printed, said = call(
        "thoughts", "collect", tiny_model, "--data", bench, "--output", bank, "--strategy", "logits"
    )
    assert (code, printed) == (2, "")
