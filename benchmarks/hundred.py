"""What a hundred candidates cost by each strategy, in calls, tokens and seconds, and the MRR that each reaches.

python benchmarks/hundred.py [--output DIR] [--direct-steps 300] [--iterative-steps 900] [--queries 100]
The world is the built-in one's passages: a query names a topic, and the passage on it by the most reliable source is right. A pool
has 100 of the 400 passages. A DRanker and an IRanker learn it from a random start, on pools of 20 and some of 100.
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from r1ranker.data.files.parquet import example_to_row, write_rows
from r1ranker.data.sources.toy import REMARKS, SOURCES, TOPICS, World
from r1ranker.evaluation.table import wide_console
from r1ranker.model.init import init_model
from r1ranker.ranking.metrics import mean_with_interval
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import MODES, EliminationSettings, WindowSettings
from r1ranker.reranking.rank import COSTS
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.fit import fit

POOL = 100
FORM = AnswerFormat("name", think=False)
SETTINGS: dict[str, dict[str, Any]] = {
    "iterative": {"strategy": "iterative"},
    "iterative, 5 out a round": {"strategy": "iterative", "elimination": EliminationSettings(eliminate=5)},
    "tournament of 20, top 10, by logits": {
        "strategy": "tournament",
        "elimination": EliminationSettings(top_k=10),
        "windows": WindowSettings(inside="logits"),
    },
    "windows 20/10, direct": {"strategy": "windows", "mode": "direct"},
    "windows 20/10, by logits": {"strategy": "windows", "mode": "direct", "windows": WindowSettings(inside="logits")},
    "direct": {"strategy": "direct"},
    "logits": {"strategy": "logits", "mode": "direct"},
}


def request(world: World, number: int, size: int, rng: random.Random) -> RankingExample:
    """A query with `size` passages: one or none of each source on its topic, two at least in all, and others."""
    topic = rng.choice(TOPICS)
    on_topic = [f"{source} on {topic}: {rng.choice(REMARKS)}" for source in SOURCES]
    rest = [
        f"{source} on {other}: {remark}"
        for source, other, remark in product(SOURCES, TOPICS, REMARKS)
        if other != topic
    ]
    pool = rng.sample(on_topic, 2)
    pool += rng.sample([passage for passage in (*on_topic, *rest) if passage not in pool], size - 2)
    rng.shuffle(pool)
    best = max(set(pool) & set(on_topic), key=lambda passage: world.reliability[passage.partition(" on ")[0]])
    return RankingExample("Passage-9", tuple(pool), best, query=f"{topic}, question {number}")


def write_training_rows(directory: Path, rows: int) -> dict[Mode, str]:
    """Training parquet of both modes: most pools have 20 passages, the others 100."""
    world, rng = World(), random.Random("training")
    files: dict[Mode, str] = {}
    for mode in MODES:
        examples = [request(world, number, POOL if number % 32 == 0 else 20, rng) for number in range(rows)]
        files[mode] = str(directory / f"{mode}.parquet")
        write_rows([example_to_row(one, mode, "train", n, FORM) for n, one in enumerate(examples)], files[mode])
    return files


def train(output: Path, steps: dict[Mode, int], rows: int) -> dict[Mode, str]:
    """mode -> the trained ranker."""
    output.mkdir(parents=True, exist_ok=True)
    files = write_training_rows(output, rows)
    base = str(output / "base")
    if not Path(base).exists():
        init_model(base, list(files.values()), title_tokens=True, title_words=True)
    actors: dict[Mode, str] = {}
    for mode in MODES:
        given = [
            f"data.train_files={files[mode]}", f"actor_rollout_ref.model.path={base}", f"trainer.default_local_dir={output / mode}",
            f"trainer.total_training_steps={steps[mode]}", "trainer.val_before_train=false", "trainer.total_epochs=1000",
            "data.max_prompt_length=2000", "data.max_response_length=1000",
        ]  # fmt: skip
        if mode == "direct":
            # every first choice of a pool is a group, rewarded where it is the best
            given += [
                "algorithm.adv_estimator=maxrl", "actor_rollout_ref.rollout.every_answer=true",
                "custom_reward_function.name=compute_score_first", "actor_rollout_ref.actor.optim.lr=2e-3",
            ]  # fmt: skip
        actors[mode] = fit(load_config(f"small_{mode}", given))
    return actors


def measure(actors: dict[Mode, str], examples: list[RankingExample]) -> Table:
    """A row a strategy."""
    table = Table(title=f"{len(examples)} queries of {POOL} passages")
    for column in (
        "strategy",
        "MRR",
        "calls",
        "one after the other",
        "prompt tokens",
        "cached",
        "response tokens",
        "s a query",
    ):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for name, how in SETTINGS.items():
        mode = how.get("mode", "direct" if how["strategy"] == "direct" else "iterative")
        given = {key: value for key, value in how.items() if key != "mode"}
        ranker = Ranker.from_pretrained(actors[mode], constrain="candidates", trained=mode, max_tokens=1000, **given)
        began = time.perf_counter()
        results = list(ranker.rank_many(examples))
        seconds = time.perf_counter() - began
        places = [one.ranking.index(example.positive) for one, example in zip(results, examples, strict=True)]
        mrr = mean_with_interval([100 / (place + 1) for place in places])
        costs = [sum(getattr(one, key) for one in results) / len(results) for key in COSTS]
        shown = f"{mrr['mean']:.1f} [{mrr['low']:.1f}, {mrr['high']:.1f}]"
        table.add_row(name, shown, *(f"{cost:,.1f}" for cost in costs), f"{seconds / len(examples):.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", default="checkpoints/hundred")
    parser.add_argument("--direct-steps", type=int, default=300, help="of the DRanker's training")
    parser.add_argument("--iterative-steps", type=int, default=900, help="of the IRanker's")
    parser.add_argument("--rows", type=int, default=4000, help="to train on, of each ranker")
    parser.add_argument("--queries", type=int, default=100)
    given = parser.parse_args()
    steps: dict[Mode, int] = {"direct": given.direct_steps, "iterative": given.iterative_steps}
    actors = train(Path(given.output), steps, given.rows)
    world, rng = World(), random.Random("test")
    wide_console().print(
        measure(actors, [request(world, -number, POOL, rng) for number in range(1, given.queries + 1)])
    )


if __name__ == "__main__":
    main()
