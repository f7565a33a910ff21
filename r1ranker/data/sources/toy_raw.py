"""The built-in world as raw sources: the files that the nine tasks are built from, with what makes the real ones difficult.

Long and short histories, equal timestamps, rows out of order, items without a title, titles twice or with HTML entities,
equal merits, queries of a task that is left out, passages over the limit or twice, queries on both sides of a split.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS
from r1ranker.data.sources.routing import LLMS

PASSAGES = pa.schema(
    [
        ("query", pa.string()),
        ("query_id", pa.int64()),
        ("passages", pa.struct([("is_selected", pa.list_(pa.int64())), ("passage_text", pa.list_(pa.string()))])),
    ]
)
ITEMS = 90
LONGEST_HISTORY = 30


def write_toy_raw(directory: str, users: int = 40, queries: int = 40, seed: int = 42) -> None:
    """Write atomic files, router_data.csv.gz with llm_descriptions.json, and passage parquet to `directory`."""
    rng = random.Random(f"{seed} raw")
    for name in RECBOLE_DATA_SETS.values():
        _write_atomic(Path(directory) / "rec", name, users, rng)
    _write_router(Path(directory) / "router", queries, rng)
    _write_passages(Path(directory) / "passage", queries, rng)


def _write_atomic(directory: Path, name: str, users: int, rng: random.Random) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    titles = [f"{name} {'&amp; friends ' if number % 7 == 0 else ''}part {number}" for number in range(ITEMS)]
    titles[1] = ""
    titles[3] = titles[2].upper()  # the same to a reader
    titles[4] = "<div>" * 50
    with (directory / f"{name}.item").open("w", encoding="utf-8") as file:
        file.write("item_id:token\ttitle:token_seq\tclass:token_seq\n")
        file.writelines(f"{number}\t{title}\tkind\n" for number, title in enumerate(titles))
    rows: list[tuple[int, int, int]] = []
    for user in range(users):
        length = 5 if user % 10 == 0 else rng.randint(25, LONGEST_HISTORY)
        items = rng.sample(range(ITEMS), length)
        if user % 10 == 2:  # took the same as the one before
            items = [item for other, item, _ in rows if other == user - 1]
        equal = user % 4 == 0
        rows += [(user, item, 1000 + (place // 2 if equal else place)) for place, item in enumerate(items)]
    rng.shuffle(rows)
    with (directory / f"{name}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        file.writelines(f"u{user}\t{item}\t{rng.randint(1, 5)}\t{time}\n" for user, item, time in rows)


def _write_router(directory: Path, queries: int, rng: random.Random) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with gzip.open(directory / "router_data.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task_id", "query", "llm", "effect", "cost"])
        for number in range(queries):
            task = "multi_news" if number % 8 == 7 else "quiz"
            query = f'Which of the two, "a, b" or\nthe other, is number {number if number % 9 else 0}?'
            for place, llm in enumerate(LLMS):
                writer.writerow([task, query, llm, rng.randint(0, 2) / 2, (place // 2) / 10])
    described = {name: {"provider": name.split("-")[0], "price": place // 2} for place, name in enumerate(LLMS)}
    (directory / "llm_descriptions.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def _write_passages(directory: Path, queries: int, rng: random.Random) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for split, first in (("train", 0), ("test", 10 * queries)):
        rows = []
        for number in range(queries):
            size = (5, 7, 9, 4)[number % 4]
            texts = [f"Text {place} on question {first + number}: {rng.random():.6f}" for place in range(size)]
            selected = [int(place == number % size) for place in range(size)]
            query = f"question {first + number}"
            if number % 10 == 3:
                texts[0] = "long " * 600
            if number % 10 == 4:
                texts[1] = texts[0]
            if number % 10 == 5:
                selected = [1, 1, *[0] * (size - 2)]
            if number == 8:
                query = "a question of both sides"
            rows.append(
                {
                    "query": query,
                    "query_id": first + number,
                    "passages": {"is_selected": selected, "passage_text": texts},
                }
            )
        pq.write_table(pa.Table.from_pylist(rows, schema=PASSAGES), directory / f"{split}-00000-of-00001.parquet")
