"""The built-in facts: a question about an invented thing and five sentences about the same one, one of which answers it.

Kinds of things and all wordings are in facts.yaml. A row takes a thing of its own; the seed draws its name, its values and
the words. The test side has names that training does not have, and wordings, of questions and of sentences, of its own.
About half of the sentences, right or wrong, are plain: said in words in which one asks. The others hardly share one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.source_example import SPLITS, SourceExample, Split
from r1ranker.data.sources.toy import TEST_SHARE
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import Task
from r1ranker.tasks.example import RankingExample

FACTS = "facts"
"""what the source is called in commands"""
FACTS_TASK = Task(
    "Facts", "own", "sentence", "sentences", "how well it answers the question", "A question:\n{{ query }}", (1, 3, 5)
)
SENTENCES = 5
"""of a row"""
HELD_OUT = 2
"""wordings, the last of each list, that test rows alone have"""
_NUMBER = re.compile(r"(?:(?P<start>[a-z]+) \+ )?(?P<low>\d+)\.\.(?P<high>\d+)")


@dataclass(frozen=True)
class Attribute:
    """What can be known of a thing: how it is asked, and how it is said, in other words or in plain ones."""

    name: str
    questions: tuple[str, ...]
    sentences: tuple[str, ...]
    plain: tuple[str, ...]


@dataclass(frozen=True)
class Name:
    """A name that a thing can have."""

    text: str
    parts: Mapping[str, str]
    variant: int
    """place in the kind's variants"""


@dataclass(frozen=True)
class Kind:
    """A kind of things; the values are those of facts.yaml."""

    name: str
    names: tuple[Name, ...]
    variants: tuple[Mapping[str, Any], ...]
    references: tuple[str, ...]
    values: Mapping[str, Any]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class FactRow:
    """A question with its sentences, before it is an example."""

    kind: str
    entity: str
    asked: str
    """name of the attribute"""
    question: str
    sentences: tuple[tuple[str, str], ...]
    """(attribute, sentence) in the order shown"""


@lru_cache(maxsize=1)
def load_kinds() -> tuple[Kind, ...]:
    """The kinds of facts.yaml."""
    import yaml

    read = yaml.safe_load(Path(__file__).with_name("facts.yaml").read_text(encoding="utf-8"))
    return tuple(_kind(name, values) for name, values in read.items() if not name.startswith("_"))


def _kind(name: str, read: Mapping[str, Any]) -> Kind:
    attributes = [
        Attribute(one, tuple(of["questions"]), tuple(of["sentences"]), tuple(of["plain"]))
        for one, of in read["attributes"].items()
    ]
    return Kind(
        name,
        tuple(_names(read)),
        tuple(read["variants"]),
        tuple(read["references"]),
        read["values"],
        tuple(attributes),
    )


def _names(read: Mapping[str, Any]) -> Iterator[Name]:
    """Every name of a kind, each once."""
    seen: set[str] = set()
    used = [field for _, field, _, _ in Formatter().parse(read["name"]) if field]
    for place, variant in enumerate(read["variants"]):
        lists = read["parts"] | variant
        for chosen in product(*(lists[part] for part in used)):
            parts = dict(zip(used, chosen, strict=True))
            text = read["name"].format_map(parts)
            if text not in seen:
                seen.add(text)
                yield Name(text, parts, place)


class Values(dict[str, Any]):
    """Values by name; one that is asked for with a capital begins with one."""

    def __missing__(self, key: str) -> str:
        name = key[0].lower() + key[1:]
        if name == key:
            raise KeyError(key)
        return _capitalise(str(self[name]))


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _draw(wanted: Any, values: Mapping[str, Any], rng: random.Random) -> Any:
    """A value: one of a list, a number of a range, a word of each of several lists, or a text as it stands."""
    if isinstance(wanted, list):
        return rng.choice(wanted)
    if isinstance(wanted, dict):
        return " ".join(rng.choice(words) for words in wanted["each"])
    found = _NUMBER.fullmatch(wanted)
    if found is None:
        return wanted
    return (values[found["start"]] if found["start"] else 0) + rng.randint(int(found["low"]), int(found["high"]))


def draw_thing(kind: Kind, name: Name, rng: random.Random) -> Values:
    """All that is known of a thing; no two of its values that are drawn from lists are the same."""
    values = Values(name.parts, name=name.text)
    variant = {key: value for key, value in kind.variants[name.variant].items() if key not in name.parts}
    for key, wanted in (variant | dict(kind.values)).items():
        value = _draw(wanted, values, rng)
        while not isinstance(wanted, str) and value in values.values():
            value = _draw(wanted, values, rng)
        values[key] = value
    return values


def say(wording: str, kind: Kind, values: Values, rng: random.Random) -> str:
    """A sentence in which the thing is called in one of its ways."""
    reference = rng.choice(kind.references)
    called = reference.format_map(values)
    possessive = values["his"] if reference == "{he}" else called + ("'" if called.endswith("s") else "'s")
    return wording.format_map(Values(values, it=called, its=possessive))


def ask(wording: str, values: Values, rng: random.Random) -> str:
    """A question as one writes it, or all in small letters as one types it."""
    question = wording.format_map(values)
    return question.lower() if rng.random() < 0.5 else _capitalise(question)


def wordings(of: Sequence[str], split: Split) -> Sequence[str]:
    """The wordings of a list that a side of the split has."""
    return of[:-HELD_OUT] if split == "train" else of[-HELD_OUT:]


def count_test_rows(size: int) -> int:
    """How many test rows go with `size` training rows."""
    return max(1, round(size * TEST_SHARE))


def largest_size() -> int:
    """How many training rows the names suffice for."""
    kinds = load_kinds()
    return int(len(kinds) * (min(len(kind.names) for kind in kinds) - len(SPLITS)) / (1 + TEST_SHARE))


def check_size(size: int) -> None:
    """Raise UserError for more rows than there are names for."""
    if size > (most := largest_size()):
        raise UserError(f"--size: found {size}; at most {most} are wanted, for which the names of the facts suffice")


def fact_rows(split: Split, size: int, seed: int) -> Iterator[FactRow]:
    """`size` training rows, or the test rows that go with them; raises UserError for more than there are names for.

    Kinds come in turn; attributes and the places of the right sentence come each as often, in an order of the seed.
    A coin says of each sentence, the right one or not, whether it is plain.
    The rows of a smaller size are the first ones of a larger size.
    """
    check_size(size)
    kinds = load_kinds()
    names = {kind.name: random.Random(f"{seed} {kind.name}").sample(kind.names, len(kind.names)) for kind in kinds}
    for number in range(size if split == "train" else count_test_rows(size)):
        kind, turn = kinds[number % len(kinds)], number // len(kinds)
        rng = random.Random(f"{seed} {split} {number}")
        name = names[kind.name][turn if split == "train" else -1 - turn]
        asked = _in_turn(kind.attributes, turn, f"{seed} {split} {kind.name}")
        place = _in_turn(range(SENTENCES), number, f"{seed} {split} places")
        shown = rng.sample([one for one in kind.attributes if one != asked], SENTENCES - 1)
        shown.insert(place, asked)
        values = draw_thing(kind, name, rng)
        question = ask(rng.choice(wordings(asked.questions, split)), values, rng)
        chosen = [rng.choice(wordings(rng.choice((one.sentences, one.plain)), split)) for one in shown]
        said = [(one.name, say(wording, kind, values, rng)) for one, wording in zip(shown, chosen, strict=True)]
        yield FactRow(kind.name, name.text, asked.name, question, tuple(said))


def _in_turn(items: Sequence[Any], number: int, seed: str) -> Any:
    """The `number`th of items that come round and round, each round in another order."""
    turn, place = divmod(number, len(items))
    return random.Random(f"{seed} {turn}").sample(items, len(items))[place]


def read_facts(size: int, seed: int, tally: Tally) -> Iterator[SourceExample]:
    """The examples of both sides: `size` training rows, and TEST_SHARE times as many test rows."""
    counts = tally.for_task(FACTS_TASK.name)
    for split in SPLITS:
        for row in fact_rows(split, size, seed):
            counts.read["questions"] += 1
            sentences = tuple(text for _, text in row.sentences)
            example = RankingExample(FACTS_TASK.name, sentences, dict(row.sentences)[row.asked], query=row.question)
            yield SourceExample(row.entity, example, split)
