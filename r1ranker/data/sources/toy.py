"""The built-in data: a small invented world in which the right ranking follows from hidden properties of the candidates.

Films, albums and games have a shown genre and a hidden quality, LLMs a shown price and a hidden skill for each kind of query,
and passages come from sources of hidden reliability. A model has to find these out from rewards. What is right depends on the
request: on the taste that a history shows, on the kind of a query. So the most frequent label does not solve it.
The world depends on WORLD_SEED alone; a seed draws the rows. Layout and task names are Ranking-bench's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from r1ranker.data.files.dataset_writer import DataSetInfo, DataSetWriter
from r1ranker.data.sources.ranking_bench import CONFIGS, bench_schema, example_to_bench_row
from r1ranker.data.sources.source_example import SPLITS, Split
from r1ranker.tasks.catalog import TASK_NAMES, get_task
from r1ranker.tasks.example import RankingExample, number_passages
from r1ranker.tasks.pools import sample_sub_pools
from r1ranker.tasks.prompts import Mode

TOY = "toy"
"""what the source is called, in commands and in the manifest"""
WORLD_SEED = 7
OF_GENRE = 2
"""candidates of each genre in a recommendation"""
HISTORY = (3, 5)
"""from how many to how many items in a history, all of the user's taste"""
MAX_SIZE = 20_000
"""training rows a task: with the test rows, well below the 43,680 histories that there are"""
TEST_SHARE = 0.4
"""test rows to training rows"""

_NOUNS = {
    "Rec-Movie": ("Harbour", "Station", "Island", "Mirror", "Witness", "Orchard", "Verdict", "Stranger"),
    "Rec-Music": ("Serenade", "Echoes", "Rhythm", "Ballads", "Sessions", "Nocturne", "Anthems", "Chorus"),
    "Rec-Game": ("Quest", "Arena", "Racer", "Kingdom", "Puzzle", "Tactics", "Frontier", "Dungeon"),
}
_GENRES = ("Silent", "Golden", "Broken", "Distant", "Crimson")
"""the first word of a title says its genre"""
_CHEAP = ("aurora-8b", "basalt-70b", "cobalt-mini", "delta-pro", "ember-13b")
_DEAR = ("fjord-large", "garnet-7b", "helix-34b", "indigo-base", "juniper-chat")
_LLMS = (*_CHEAP, *_DEAR)
_KINDS = (
    "algebra", "poetry", "programming", "history", "biology", "law", "cooking", "travel", "medicine", "chess",
)  # fmt: skip
_OBJECTIVES = {"Router-Performance": (1.0, 0.0), "Router-Balance": (0.5, 0.5), "Router-Cost": (0.2, 0.8)}
"""task -> weights of skill and of price in an LLM's merit"""
SOURCES = (
    "Almanac",
    "Blog",
    "Chronicle",
    "Digest",
    "Encyclopedia",
    "Forum",
    "Gazette",
    "Herald",
    "Journal",
    "Leaflet",
)
TOPICS = ("amber", "bamboo", "copper", "dunes", "eclipses", "falcons", "glaciers", "harps", "inks", "jade")
REMARKS = ("it is found in the north", "it is known since long ago", "there are many kinds", "its use is disputed")


class World:
    """The hidden properties, the same for every seed of rows."""

    def __init__(self) -> None:
        rng = random.Random(WORLD_SEED)
        self.quality: dict[str, dict[str, int]] = {}
        """task -> title -> rank, the highest is the best"""
        for task, nouns in _NOUNS.items():
            titles = [f"{genre} {noun}" for genre, noun in product(_GENRES, nouns)]
            self.quality[task] = dict(zip(titles, rng.sample(range(len(titles)), len(titles)), strict=True))
        self.price = {name: round(0.5 * (place + 1) + rng.random() * 0.4, 2) for place, name in enumerate(_LLMS)}
        self.skill: dict[str, dict[str, float]] = {}
        """kind of query -> the LLMs that can answer it, a cheap one and a dear one, which answers better"""
        for first in range(0, len(_KINDS), len(_CHEAP)):  # each LLM has the same number of kinds
            kinds = _KINDS[first : first + len(_CHEAP)]
            for kind, cheap, dear in zip(kinds, _shuffled(_CHEAP, rng), _shuffled(_DEAR, rng), strict=True):
                self.skill[kind] = {cheap: round(rng.uniform(0.2, 0.9), 2), dear: 1.0}
        self.reliability = dict(zip(SOURCES, rng.sample(range(len(SOURCES)), len(SOURCES)), strict=True))

    def recommendation(self, task: str, number: int, rng: random.Random) -> RankingExample:
        """A user whose history shows a taste; the positive is the best of the two candidates of that genre."""
        quality, taste = self.quality[task], rng.choice(_GENRES)
        history = rng.sample([title for title in quality if genre_of(title) == taste], rng.randint(*HISTORY))
        left = [title for title in quality if title not in history]
        pool: list[str] = []
        for genre in _GENRES:
            pool += rng.sample([title for title in left if genre_of(title) == genre], OF_GENRE)
        best = max((title for title in pool if genre_of(title) == taste), key=quality.__getitem__)
        return RankingExample(task, tuple(_shuffled(pool, rng)), best, history=tuple(history))

    def routing(self, task: str, number: int, rng: random.Random) -> RankingExample:
        """A query of some kind; of the LLMs that can answer it the positive maximises a * skill - b * price, scaled to 0..1."""
        kind = rng.choice(_KINDS)
        skill, dearest = self.skill[kind], max(self.price.values())
        quality, cost = _OBJECTIVES[task]

        def merit(name: str) -> float:
            return quality * skill[name] - cost * self.price[name] / dearest

        pool = tuple(_shuffled(_LLMS, rng))
        texts = tuple(f"{self.price[name]} dollars" for name in pool)
        query = f"{kind} question {number}"
        return RankingExample(task, pool, max(skill, key=merit), query=query, texts=texts)

    def passage(self, task: str, number: int, rng: random.Random) -> RankingExample:
        """Passages on a topic; the positive comes from the most reliable source among them."""
        topic = rng.choice(TOPICS)
        sources = rng.sample(SOURCES, int(task.rpartition("-")[2]))
        pool = number_passages(len(sources))
        texts = tuple(f"{source} on {topic}: {rng.choice(REMARKS)}" for source in sources)
        best = max(range(len(sources)), key=lambda place: self.reliability[sources[place]])
        return RankingExample(task, pool, pool[best], query=f"{topic}, question {number}", texts=texts)


def genre_of(title: str) -> str:
    """The genre that a title names."""
    return title.partition(" ")[0]


def _shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(names, len(names))


def toy_examples(task: str, split: Split, size: int, seed: int) -> list[RankingExample]:
    """`size` training rows, or TEST_SHARE times as many test rows, of a task; no request is in both."""
    world = World()
    draw: Callable[[str, int, random.Random], RankingExample] = {
        "recommendation": world.recommendation,
        "routing": world.routing,
        "passage": world.passage,
    }[get_task(task).scenario]
    rng = random.Random(f"{seed} {task}")
    examples: dict[tuple[str, tuple[str, ...]], RankingExample] = {}
    held_out = max(1, round(size * TEST_SHARE))
    while len(examples) < size + held_out:
        example = draw(task, len(examples), rng)
        examples.setdefault((example.query, example.history), example)
    rows = list(examples.values())
    return rows[:size] if split == "train" else rows[size:]


def toy_rows(
    config: Mode, split: Split, size: int, seed: int, tasks: Sequence[str] = TASK_NAMES
) -> Iterator[dict[str, Any]]:
    """Rows in Ranking-bench's layout; iterative ones hold one sub-pool of each size."""
    rng = random.Random(f"{seed} {split} pools")
    for task in tasks:
        for example in toy_examples(task, split, size, seed):
            pools = [example.candidates] if config == "direct" else sample_sub_pools(example, rng)
            for pool in pools:
                yield example_to_bench_row(example.with_pool(pool), config)


def write_toy(directory: str, size: int = 100, seed: int = 42, tasks: Sequence[str] = TASK_NAMES) -> None:
    """Write {direct,iterative}/{train,test}.parquet, their card and their manifest to `directory`."""
    about = DataSetInfo("The built-in world", ["invented by this project, MIT licence"], seed, source=TOY)
    with DataSetWriter(Path(directory), about) as out:
        for config, split in product(CONFIGS, SPLITS):
            with out.file(f"{config}/{split}.parquet", bench_schema()) as file:
                for row in toy_rows(config, split, size, seed, tasks):
                    file.add(row)
                    out.tally.for_task(row["task_name"]).written[f"{config} {split}"] += 1
