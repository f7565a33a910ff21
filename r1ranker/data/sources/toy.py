"""The built-in data: a small invented world in which the right ranking follows from hidden properties of the candidates.

Films, albums and games have a hidden quality, LLMs a hidden skill for each kind of query beside their shown price, and
passages come from sources of hidden reliability. A model has to find these out from rewards. The world depends on
WORLD_SEED alone; a seed draws the rows. Layout and task names are Ranking-bench's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from r1ranker.data.files.dataset_writer import About, DataSetWriter
from r1ranker.data.sources.ranking_bench import CONFIGS, bench_row, bench_schema
from r1ranker.data.sources.sourced import SPLITS, Split
from r1ranker.tasks.catalog import TASK_NAMES, get_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import sub_pools
from r1ranker.tasks.prompts import Mode

WORLD_SEED = 7
ITEMS = 40
"""films, albums and games, each"""
CANDIDATES = 10
"""of a recommendation"""
HISTORY = 4
TEST_SHARE = 0.4
"""test rows to training rows"""

_NOUNS = {
    "Rec-Movie": ("Harbour", "Station", "Island", "Mirror", "Witness", "Orchard", "Verdict", "Stranger"),
    "Rec-Music": ("Serenade", "Echoes", "Rhythm", "Ballads", "Sessions", "Nocturne", "Anthems", "Chorus"),
    "Rec-Game": ("Quest", "Arena", "Racer", "Kingdom", "Puzzle", "Tactics", "Frontier", "Dungeon"),
}
_ADJECTIVES = ("Silent", "Golden", "Broken", "Distant", "Crimson")
_LLMS = (
    "aurora-8b", "basalt-70b", "cobalt-mini", "delta-pro", "ember-13b",
    "fjord-large", "garnet-7b", "helix-34b", "indigo-base", "juniper-chat",
)  # fmt: skip
_KINDS = ("algebra", "poetry", "programming", "history")
_SOURCES = (
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
_TOPICS = ("amber", "bamboo", "copper", "dunes", "eclipses", "falcons", "glaciers", "harps", "inks", "jade")
_REMARKS = ("it is found in the north", "it is known since long ago", "there are many kinds", "its use is disputed")


class World:
    """The hidden properties, the same for every seed of rows."""

    def __init__(self) -> None:
        rng = random.Random(WORLD_SEED)
        self.quality: dict[str, dict[str, float]] = {}
        for task, nouns in _NOUNS.items():
            titles = [f"{adjective} {noun}" for adjective, noun in product(_ADJECTIVES, nouns)][:ITEMS]
            ranks = rng.sample(range(len(titles)), len(titles))
            self.quality[task] = dict(zip(titles, map(float, ranks), strict=True))
        self.price = {name: round(0.5 * (place + 1) + rng.random() * 0.4, 2) for place, name in enumerate(_LLMS)}
        self.skill = {kind: {name: round(rng.random(), 3) for name in _LLMS} for kind in _KINDS}
        self.reliability = dict(zip(_SOURCES, rng.sample(range(len(_SOURCES)), len(_SOURCES)), strict=True))

    def recommendation(self, task: str, number: int, rng: random.Random) -> RankingExample:
        """A user with what they liked so far; the positive is the candidate of highest quality."""
        titles = list(self.quality[task])
        history = tuple(rng.sample(titles, HISTORY))
        pool = rng.sample([title for title in titles if title not in history], CANDIDATES)
        return RankingExample(task, tuple(pool), max(pool, key=self.quality[task].__getitem__), history=history)

    def routing(self, task: str, number: int, rng: random.Random) -> RankingExample:
        """A query of some kind; the positive maximises a * skill - b * price, both scaled to 0..1."""
        kind = rng.choice(_KINDS)
        quality, cost = {"Router-Performance": (1.0, 0.0), "Router-Balance": (0.5, 0.5), "Router-Cost": (0.2, 0.8)}[
            task
        ]
        dearest = max(self.price.values())

        def merit(name: str) -> tuple[float, float]:
            return quality * self.skill[kind][name] - cost * self.price[name] / dearest, -self.price[name]

        pool = tuple(rng.sample(_LLMS, len(_LLMS)))
        texts = tuple(f"{self.price[name]} dollars" for name in pool)
        query = f"{kind} question {number}"
        return RankingExample(task, pool, max(pool, key=merit), query=query, texts=texts)

    def passage(self, task: str, number: int, rng: random.Random) -> RankingExample:
        """Passages on a topic; the positive comes from the most reliable source among them."""
        topic = rng.choice(_TOPICS)
        sources = rng.sample(_SOURCES, int(task.rpartition("-")[2]))
        pool = tuple(f"passage {place}" for place in range(len(sources)))
        texts = tuple(f"{source} on {topic}: {rng.choice(_REMARKS)}" for source in sources)
        best = max(range(len(sources)), key=lambda place: self.reliability[sources[place]])
        return RankingExample(task, pool, pool[best], query=f"{topic}, question {number}", texts=texts)


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
            pools = [example.candidates] if config == "direct" else sub_pools(example, rng)
            for pool in pools:
                yield bench_row(example.with_pool(pool), config)


def write_toy(directory: str, size: int = 100, seed: int = 42, tasks: Sequence[str] = TASK_NAMES) -> None:
    """Write {direct,iterative}/{train,test}.parquet, their card and their manifest to `directory`."""
    about = About("The built-in world", ["invented by this project, MIT licence"], seed)
    with DataSetWriter(Path(directory), about) as out:
        for config, split in product(CONFIGS, SPLITS):
            with out.file(f"{config}/{split}.parquet", bench_schema()) as file:
                for row in toy_rows(config, split, size, seed, tasks):
                    file.add(row)
                    out.tally.of(row["task_name"]).written[f"{config} {split}"] += 1
