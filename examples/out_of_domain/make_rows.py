"""Writes arithmetic.jsonl and instructions.jsonl, the rows of the two tasks here; always the same ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
NOUNS = ("river", "teacher", "window", "garden", "ship", "winter", "bread", "music", "mountain", "letter")


def arithmetic(draw: random.Random, count: int = 100) -> Iterator[dict[str, object]]:
    """Questions with four options, the right one at any place."""
    for _ in range(count):
        first, second, sign = draw.randint(2, 20), draw.randint(2, 20), draw.choice("+-*")
        right = {"+": first + second, "-": first - second, "*": first * second}[sign]
        wrong = draw.sample([right + step for step in (-10, -3, -2, -1, 1, 2, 3, 10)], 3)
        options = [str(right), *map(str, wrong)]
        draw.shuffle(options)
        yield {
            "question": f"What is {first} {sign} {second}?",
            "options": options,
            "gold": options.index(str(right)),
        }


def instructions() -> Iterator[dict[str, str]]:
    """Five kinds of instruction about each noun."""
    for noun in NOUNS:
        for instruction, rule, value in (
            (f"Write the word {noun} in capital letters, and nothing else.", "capitals", noun),
            (f"Describe a {noun} in exactly three words.", "words", "3"),
            (f"Write one sentence about a {noun}. End it with the word DONE.", "ends with", "DONE"),
            (f"Is a {noun} an animal? Answer yes or no, in one word.", "one of", "yes|no"),
            (f"Write one sentence about a {noun} without the word the.", "without", "the"),
        ):
            yield {"instruction": instruction, "rule": rule, "value": value}


def main() -> None:
    """Write both files."""
    for name, rows in (("arithmetic", arithmetic(random.Random(0))), ("instructions", instructions())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (HERE / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
