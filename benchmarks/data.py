"""Building and loading training rows: rows a second and highest memory, against pandas doing the same by apply.

python benchmarks/data.py [--rows 1000000] [--peer_rows 50000]
Requests of one's own (JSON lines, 20 candidates) become iterative rows, one sub-pool of each size; then they are tokenised
and dealt. The peer reads the same file with pandas, words its rows with the same functions by DataFrame.apply and keeps all
of them, on `--peer_rows` rows, since it holds everything in memory. Each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANDIDATES = 20
POOLS = CANDIDATES - 1


def write_requests(path: Path, count: int) -> None:
    """JSON lines of `count` requests of made-up words."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(3000)]
    with path.open("w") as file:
        for number in range(count):
            candidates = [" ".join(rng.choices(words, k=4)) + f" {place}" for place in range(CANDIDATES)]
            query = " ".join(rng.choices(words, k=12)) + f" {number}"
            row = {"query": query, "candidates": candidates, "positive": rng.choice(candidates)}
            file.write(json.dumps(row) + "\n")


def build(source: str, output: str, model: str) -> int:
    """Prepare; returns the iterative rows."""
    from r1ranker.data.prepare import PrepareOptions, prepare

    prepare(PrepareOptions(source, output))
    return sum(_rows(f"{output}/iterative_ranking/{split}.parquet") for split in ("train", "test"))


def load(source: str, output: str, model: str) -> int:
    """Tokenise the training rows and deal an epoch of them."""
    from r1ranker.data.loader import PromptLoader, load_prompts
    from r1ranker.pretrained import load_tokenizer

    prompts, _ = load_prompts([f"{output}/iterative_ranking/train.parquet"], load_tokenizer(model), 10_000)
    loader = PromptLoader(prompts, 64, seed=1, shuffle=True)
    for _ in range(loader.steps_per_epoch):
        loader.next()
    return len(prompts)


def build_with_pandas(source: str, output: str, model: str) -> int:
    """The same eight files by DataFrame.apply."""
    import pandas as pd

    from r1ranker.data.files.parquet import example_to_row
    from r1ranker.data.sources.ranking_bench import CONFIGS, example_to_bench_row
    from r1ranker.data.sources.user_files import OWN
    from r1ranker.tasks.custom import default_task, ensure_registered
    from r1ranker.tasks.example import RankingExample
    from r1ranker.tasks.pools import sample_sub_pools

    ensure_registered(default_task(OWN, by_history=False))
    frame = pd.read_json(source, lines=True)
    test = set(frame.sample(frac=0.2, random_state=42).index)
    rng = random.Random(42)

    def example_of(row: Any) -> RankingExample:
        example = RankingExample(OWN, tuple(row.candidates), row.positive, query=row["query"])
        example.validate()
        return example

    examples = frame.apply(example_of, axis=1)
    for config in CONFIGS:
        pools = examples.apply(
            lambda one, config=config: (
                [one] if config == "direct" else [one.with_pool(pool) for pool in sample_sub_pools(one, rng)]
            )
        ).explode()
        for name, word in (
            (f"bench/{config}", lambda one, config=config: example_to_bench_row(one, config)),
            (f"{config}_ranking", lambda one, config=config: example_to_row(one, config, "", 0)),
        ):
            rows = pools.apply(word)
            for split, chosen in (("train", rows[~rows.index.isin(test)]), ("test", rows[rows.index.isin(test)])):
                path = Path(output) / name / f"{split}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(chosen.tolist()).to_parquet(path)
    return len(pools)


def load_with_pandas(source: str, output: str, model: str) -> int:
    """Tokenise row by row by DataFrame.apply and deal an epoch."""
    import pandas as pd

    from r1ranker.data.tokenise import encode_chat
    from r1ranker.pretrained import load_tokenizer

    tokenizer = load_tokenizer(model)
    frame = pd.read_parquet(f"{output}/iterative_ranking/train.parquet")
    frame["token_ids"] = frame["prompt"].apply(lambda messages: encode_chat(tokenizer, list(messages)))
    frame = frame[frame["token_ids"].apply(len) <= 10_000].sample(frac=1, random_state=1)
    for start in range(0, len(frame) // 64 * 64, 64):
        frame.iloc[start : start + 64].to_dict("records")
    return len(frame)


def _rows(path: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(path).metadata.num_rows)


def _measured(pipe: Any, part: Callable[..., int], arguments: tuple[str, ...]) -> None:
    began = time.perf_counter()
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    rows = part(*arguments)
    pipe.send((rows, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10))


def measure(part: Callable[..., int], *arguments: str) -> tuple[int, float, float]:
    """(rows, seconds, highest memory in MiB) of `part`, run in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, part, arguments))
    process.start()
    sender.close()
    found: tuple[int, float, float] = receiver.recv()
    process.join()
    return found


def main() -> None:
    """Print one row a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="iterative rows (%(default)s)")
    parser.add_argument("--peer_rows", type=int, default=50_000, help="of the pandas peer (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["R1RANKER_CACHE"] = f"{directory}/cache"
        model = f"{directory}/model"
        few, many = Path(directory) / "few.jsonl", Path(directory) / "many.jsonl"
        write_requests(few, -(-options.peer_rows // POOLS))
        write_requests(many, -(-options.rows // POOLS))
        parts: list[tuple[str, Callable[..., int], Path, str]] = [
            ("build", build, few, "few"),
            ("build, pandas", build_with_pandas, few, "peer"),
            ("load", load, few, "few"),
            ("load, pandas", load_with_pandas, few, "peer"),
            ("build", build, many, "many"),
            ("load", load, many, "many"),
            ("load again", load, many, "many"),
        ]
        print("| part | rows | seconds | rows a second | highest memory, MiB |")
        print("| --- | --- | --- | --- | --- |")
        for name, part, source, output in parts:
            rows, seconds, memory = measure(part, str(source), f"{directory}/{output}", model)
            print(f"| {name} | {rows:,} | {seconds:.1f} | {rows / seconds:,.0f} | {memory:,.0f} |", flush=True)
            if output == "few" and part is build:
                from r1ranker.model.init import ModelSize, init_model

                init_model(model, [f"{directory}/few/direct_ranking/train.parquet"], ModelSize(), 4000)


if __name__ == "__main__":
    main()
