"""Build a passage-ranking task from WikiQA's published files: a question, one sentence that answers it and some that do not.

python examples/data_preprocess/dataset/wikiqa.py --source DIR [--test_split test] [--output data/wikiqa.jsonl]
r1ranker prepare --from data/wikiqa.jsonl --template examples/own_data/wikiqa.yaml --output data/wikiqa
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

try:
    from typer import Option

    from r1ranker.atomic import atomic_path
    from r1ranker.cli.run import run_command
    from r1ranker.data.files.text_rows import text_lines
    from r1ranker.errors import UserError, check_at_least
    from r1ranker.tasks.text import canonical, one_line
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)

SPLITS = ("train", "dev", "test")


def build(
    source: Annotated[
        str, Option(help="directory with WikiQA-train.txt, -dev.txt and -test.txt, each perhaps with .gz")
    ],
    output: Annotated[str, Option(help="JSON lines to write")] = "data/wikiqa.jsonl",
    test_split: Annotated[
        str, Option(help="the questions to evaluate: test, or dev while settings are chosen")
    ] = "test",
    sentences: Annotated[int, Option(help="of a test question; those with fewer are left out")] = 5,
    train_sentences: Annotated[int, Option(help="of a training question at most")] = 5,
    pools: Annotated[int, Option(help="rows of a training question at most, each with other wrong sentences")] = 4,
    characters: Annotated[int, Option(help="of a sentence; longer ones are left out")] = 400,
    seed: int = 42,
) -> None:
    """Write rows that `r1ranker prepare --from` reads; questions without right and wrong sentences are left out."""
    check_at_least("--sentences", sentences, 2)
    check_at_least("--train_sentences", train_sentences, 2)
    check_at_least("--pools", pools, 1)
    check_at_least("--characters", characters, 1)
    if test_split not in SPLITS[1:]:
        raise UserError(f"--test_split: found {test_split!r}; dev or test is wanted")
    rows = []
    for split, published, most, times in (
        ("train", "train", train_sentences, pools),
        ("test", test_split, sentences, 1),
    ):
        kept = list(_kept(_find(source, published), 2 if split == "train" else sentences, characters))
        for question, right, wrong in kept:
            rng = random.Random(f"{seed} {question}")
            drawn = {frozenset(rng.sample(wrong, min(most - 1, len(wrong)))): None for _ in range(times)}
            for others in drawn:
                pool = [right, *sorted(others)]
                rng.shuffle(pool)
                rows.append({"id": question, "split": split, "query": question, "candidates": pool, "positive": right})
        if not kept:
            raise UserError(f"{_find(source, published)}: no question has a right sentence and enough wrong ones")
        print(f"{published}: {len(kept)} questions")
    with atomic_path(output) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {output}")


def _find(source: str, split: str) -> Path:
    for name in (f"WikiQA-{split}.txt", f"WikiQA-{split}.txt.gz"):
        if (Path(source) / name).is_file():
            return Path(source) / name
    raise UserError(f"--source {source}: no file WikiQA-{split}.txt; WikiQA's question, sentence, label are wanted")


def _kept(file: Path, least: int, characters: int) -> Iterator[tuple[str, str, list[str]]]:
    """(question, the first sentence that answers it, those that do not)."""
    by_question: dict[str, dict[str, tuple[str, bool]]] = {}
    for number, line in text_lines(str(file)):
        cells = [one_line(cell) for cell in line.split("\t")]
        if len(cells) != 3 or cells[2] not in ("0", "1") or not canonical(cells[1]):
            raise UserError(f"{file}: line {number}: question, sentence and 0 or 1 are wanted, with tabs between")
        if len(cells[1]) <= characters:
            # sentences that look the same are one, as `prepare` has it
            by_question.setdefault(cells[0], {}).setdefault(canonical(cells[1]), (cells[1], cells[2] == "1"))
    for question, sentences in by_question.items():
        right = [text for text, is_right in sentences.values() if is_right]
        wrong = [text for text, is_right in sentences.values() if not is_right]
        if right and len(wrong) >= least - 1:
            yield question, right[0], wrong


if __name__ == "__main__":
    run_command(build)
