"""The built-in world: what is right follows from the prompt and hidden properties, and cannot be had without the request."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from r1ranker.data.files.manifest import source_of
from r1ranker.data.sources.toy import TOY, World, genre_of, toy_examples, toy_rows, write_toy
from r1ranker.evaluation.baselines.orders import MostFrequentLabel, random_order_metrics
from r1ranker.tasks.catalog import TASK_NAMES
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.parsing import parse_problem


@pytest.mark.parametrize("task", TASK_NAMES)
def test_splits_share_no_request_and_positives_stand_anywhere(task: str) -> None:
    train, test = toy_examples(task, "train", 200, seed=3), toy_examples(task, "test", 200, seed=3)
    requests = [{(one.query, one.history) for one in split} for split in (train, test)]
    assert not requests[0] & requests[1]
    assert (len(train), len(test)) == (200, 80)
    places = Counter(one.candidates.index(one.positive) for one in train)
    assert len(places) == len(train[0].candidates)
    for one in (*train, *test):
        one.validate()


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_seed_draws_the_rows_and_not_the_world(task: str) -> None:
    train = toy_examples(task, "train", 200, seed=3)
    assert toy_examples(task, "train", 200, seed=3) == train
    assert toy_examples(task, "train", 200, seed=4) != train
    assert vars(World()) == vars(World())


def test_positives_follow_from_what_is_shown_and_hidden_properties() -> None:
    """An oracle that reads the prompt, and knows what is hidden, is always right."""
    world = World()
    for task in TASK_NAMES:
        for row in toy_rows("direct", "test", 60, 5, [task]):
            shown = parse_problem(task, row["problem"], row["candidates"])
            assert oracle(world, shown) == row["gt"]


def oracle(world: World, shown: RankingExample) -> str:
    """The best candidate, from the text of a request and the world."""
    texts = dict(zip(shown.candidates, shown.texts, strict=bool(shown.texts)))
    if shown.history:
        (taste,) = set(map(genre_of, shown.history))
        return max(filter(lambda one: genre_of(one) == taste, shown.candidates), key=world.quality[shown.task].get)  # type: ignore[arg-type]
    if shown.task.startswith("Passage"):
        return max(shown.candidates, key=lambda name: world.reliability[texts[name].split()[0]])
    skill = world.skill[shown.query.split()[0]]
    price = {name: float(text.split()[0]) for name, text in texts.items()}
    quality, cost = {"Router-Performance": (1, 0), "Router-Balance": (0.5, 0.5), "Router-Cost": (0.2, 0.8)}[shown.task]
    return max(skill, key=lambda name: quality * skill[name] - cost * price[name] / max(price.values()))


@pytest.mark.parametrize("seed", [1, 2, 3, 42])
def test_the_most_frequent_label_does_not_solve_it(seed: int) -> None:
    for task in TASK_NAMES:
        train, test = toy_examples(task, "train", 200, seed), toy_examples(task, "test", 200, seed)
        most_frequent = MostFrequentLabel(train)
        chance = np.mean([random_order_metrics(one, ())["mrr"] for one in test])
        assert np.mean([most_frequent(one, ())["mrr"] for one in test]) <= (chance + 1) / 2, task


def test_the_manifest_names_the_built_in_world(tmp_path: Path) -> None:
    assert source_of(tmp_path) == ""
    write_toy(str(tmp_path), 2, tasks=["Rec-Movie"])
    assert source_of(tmp_path) == TOY
    for text in ("{", "[]", '{"files": {}}', '{"source": 7}'):
        (tmp_path / "manifest.json").write_text(text)
        assert source_of(tmp_path) == ""


@pytest.mark.parametrize("task", [task for task in TASK_NAMES if task.startswith("Rec")])
def test_pools_tell_nothing_of_the_taste(task: str) -> None:
    genres = Counter(genre_of(title) for title in World().quality[task])
    assert set(genres.values()) == {8}
    for one in toy_examples(task, "train", 50, seed=1):
        assert not set(one.history) & set(one.candidates)
        assert Counter(map(genre_of, one.candidates)) == dict.fromkeys(genres, 2)


def test_each_llm_of_it_can_answer_as_many_kinds() -> None:
    world = World()
    able = Counter(name for skill in world.skill.values() for name in skill)
    assert able == dict.fromkeys(world.price, 2)
    for skill in world.skill.values():
        cheap, dear = sorted(skill, key=world.price.__getitem__)
        assert skill[cheap] < skill[dear]
    cost = [one.positive for one in toy_examples("Router-Cost", "train", 50, seed=1)]
    quality = [one.positive for one in toy_examples("Router-Performance", "train", 50, seed=1)]
    assert np.mean([world.price[name] for name in cost]) < np.mean([world.price[name] for name in quality])
