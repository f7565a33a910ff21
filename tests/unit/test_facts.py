"""The built-in facts: one sentence of five answers, test rows have words and names of their own, and words alone do not solve it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1ranker.data.files.parquet import read_training_rows, row_to_example
from r1ranker.data.files.tally import Tally
from r1ranker.data.prepare import PrepareOptions, prepare
from r1ranker.data.sources.facts import (
    FACTS_TASK,
    HELD_OUT,
    Attribute,
    FactRow,
    Kind,
    ask,
    draw_thing,
    fact_rows,
    largest_size,
    load_kinds,
    read_facts,
    say,
)
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.source_example import SPLITS, Split
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.lexical import BM25
from r1ranker.evaluation.baselines.orders import random_order_metrics
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.custom import ensure_registered
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import ANSWER_STYLES
from r1ranker.tasks.text import canonical

KINDS = {kind.name: kind for kind in load_kinds()}
STOP_WORDS = set(
    re.findall(
        r"\w+",
        """
        a an the and or of in on at to by for from with into over under since before after about up out as not no there most
        much it its is are was were be been being has have had do does did can could get go one that which other his him
        who whom whose what when where why how many year
        """,
    )
)
ROWS: dict[Split, list[FactRow]] = {split: list(fact_rows(split, 500, seed=5)) for split in SPLITS}
BOTH = [row for split in SPLITS for row in ROWS[split]]


def is_said(text: str, wordings: Sequence[str], name: str) -> bool:
    """Whether a text can be one of the wordings, of the thing of that name."""
    for wording in wordings:
        fixed = map(re.escape, re.split(r"\{[^}]*\}", wording.replace("{name}", name)))
        if re.fullmatch("(.+)".join(fixed), text, re.IGNORECASE):
            return True
    return False


def own_wordings(of: Sequence[str], split: Split) -> tuple[Sequence[str], Sequence[str]]:
    """Those of a list that a side has, and those of the other side."""
    sides = of[:-HELD_OUT], of[-HELD_OUT:]
    return sides if split == "train" else sides[::-1]


def statements(attribute: Attribute) -> tuple[str, ...]:
    """What can be said of an attribute."""
    return attribute.sentences + attribute.plain


def stems(wording: str, kind: Kind) -> set[str]:
    """The beginnings of a wording's content words; what things of the kind are called is none."""
    words = re.findall(r"[a-z]{2,}", re.sub(r"\{(?!partner\b)[^}]*\}", " ", wording).lower())
    return {stem(word) for word in words if word not in STOP_WORDS} - set(map(stem, kind.values["noun"]))


def stem(word: str) -> str:
    return word.removesuffix("s")[:4]


def attributes_of(row: FactRow) -> dict[str, Attribute]:
    return {one.name: one for one in KINDS[row.kind].attributes}


def is_plain(row: FactRow, attribute: str, text: str) -> bool:
    return is_said(text, attributes_of(row)[attribute].plain, row.entity)


def examples(split: Split, size: int, seed: int) -> list[RankingExample]:
    return [one.example for one in read_facts(size, seed, Tally()) if one.split == split]


def test_rows_follow_from_the_seed_and_a_smaller_size_is_the_beginning_of_a_larger_one() -> None:
    assert [list(fact_rows(split, 500, seed=5)) for split in SPLITS] == list(ROWS.values())
    assert list(fact_rows("train", 500, seed=6)) != ROWS["train"]
    assert (len(ROWS["train"]), len(ROWS["test"])) == (500, 200)
    for split in SPLITS:
        fewer = list(fact_rows(split, 50, seed=5))
        assert fewer == ROWS[split][: len(fewer)]


def test_every_list_of_wordings_leaves_enough_for_training() -> None:
    for kind in KINDS.values():
        for attribute in kind.attributes:
            for of, least in ((attribute.questions, 4), (attribute.sentences, 4), (attribute.plain, 3)):
                assert len(of) >= HELD_OUT + least, (kind.name, attribute.name)
            for of in (attribute.questions, statements(attribute)):
                assert len(set(of)) == len(of), (kind.name, attribute.name)
    every = [wording for kind in KINDS.values() for one in kind.attributes for wording in statements(one)]
    assert len(set(every)) == len(every)


def test_a_plain_sentence_is_said_in_the_words_of_its_questions() -> None:
    """It has two words of at least two of them, or the only one of a question."""
    for kind in KINDS.values():
        for attribute in kind.attributes:
            questions = [found for question in attribute.questions if (found := stems(question, kind))]
            for wording in attribute.plain:
                shared = [(stems(wording, kind) & question, question) for question in questions]
                assert sum(len(found) >= min(2, len(question)) for found, question in shared) >= 2, wording
                assert len(set().union(*(found for found, _ in shared))) >= 2, wording
                assert 8 <= len(wording.split()) <= 22, wording


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_sentences_are_plain_whether_right_or_wrong(split: Split) -> None:
    plain = Counter[tuple[bool, bool]]()
    for row in ROWS[split]:
        for name, text in row.sentences:
            plain[name == row.asked, is_plain(row, name, text)] += 1
    for right in (True, False):
        assert plain[right, True] / (plain[right, True] + plain[right, False]) == pytest.approx(0.5, abs=0.08)


def test_the_sides_have_wordings_of_their_own() -> None:
    for split in SPLITS:
        for row in ROWS[split]:
            known = attributes_of(row)
            said = [(row.question, [known[row.asked].questions])]
            said += [(text, [known[name].sentences, known[name].plain]) for name, text in row.sentences]
            for text, lists in said:
                sides = [own_wordings(of, split) for of in lists]
                assert sum(is_said(text, own, row.entity) for own, _ in sides) == 1, text
                assert not any(is_said(text, other, row.entity) for _, other in sides), text


def test_no_training_text_names_a_thing_that_test_rows_ask_for() -> None:
    names = {split: {row.entity.lower() for row in ROWS[split]} for split in SPLITS}
    assert not names["train"] & names["test"]
    assert len(names["train"]) == 500
    texts = "\n".join(text for row in ROWS["train"] for text in (row.question, *(text for _, text in row.sentences)))
    assert not [name for name in names["test"] if re.search(rf"\b{re.escape(name)}\b", texts.lower())]
    assert all(row.entity.lower() in row.question.lower() for row in BOTH)


def test_of_five_sentences_that_differ_the_one_about_what_is_asked_is_right() -> None:
    sourced = list(read_facts(500, 5, Tally()))
    assert len(sourced) == len(BOTH)
    for one, row in zip(sourced, BOTH, strict=True):
        one.example.validate()
        assert one.key == row.entity
        assert len(one.example.candidates) == 5
        for form in (canonical, normalise):
            assert len(set(map(form, one.example.candidates))) == 5
        asked = statements(attributes_of(row)[row.asked])
        assert [is_said(text, asked, row.entity) for text in one.example.candidates] == [
            text == one.example.positive for text in one.example.candidates
        ]


@pytest.mark.parametrize("split", SPLITS)
def test_positives_places_and_what_is_asked_are_even(split: Split) -> None:
    rows = ROWS[split]
    places = Counter([name for name, _ in row.sentences].index(row.asked) for row in rows)
    assert places == dict.fromkeys(range(5), len(rows) // 5)
    asked = Counter((row.kind, row.asked) for row in rows)
    assert len(asked) == sum(len(kind.attributes) for kind in KINDS.values())
    assert max(asked.values()) - min(asked.values()) <= 2


def said(kind: str, number: int) -> Iterator[tuple[str, bool]]:
    """Every wording of a kind, said of two of its names, and whether it is a question."""
    names = KINDS[kind].names
    rng = random.Random(number)
    for name in (names[0], names[-1]):
        values = draw_thing(KINDS[kind], name, rng)
        for attribute in KINDS[kind].attributes:
            yield from ((ask(wording, values, rng), True) for wording in attribute.questions)
            yield from ((say(wording, KINDS[kind], values, rng), False) for wording in statements(attribute))


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_can_be_said_of_every_variant(kind: str) -> None:
    for number in range(20):
        for text, asks in said(kind, number):
            form = r"[A-Za-z][^{}\[\]<>|]*\?" if asks else r"\"?[A-Z][^{}\[\]<>|]*\."
            assert re.fullmatch(form, text), text
            assert not re.search(r"\s\s|'s's|\b(?:it|s?he|they)'| a [aeio]|\bNone\b", text), text


def test_what_begins_with_a_capital_begins_the_sentence() -> None:
    for kind in KINDS.values():
        for attribute in kind.attributes:
            for wording in (*attribute.questions, *statements(attribute)):
                assert not re.search(r".\{[A-Z]", wording), wording


def test_a_scientist_is_she_or_he_throughout() -> None:
    women = {name.text for name in KINDS["scientist"].names if name.variant == 0}
    hers = 0
    for row in BOTH:
        if row.kind != "scientist":
            continue
        words = Counter(re.findall(r"\w+", " ".join((row.question, *(text for _, text in row.sentences))).lower()))
        own, other = ["she", "her", "husband"], ["he", "his", "him", "wife"]
        if row.entity not in women:
            own, other = other, own
        assert not any(words[word] for word in other), row
        hers += sum(words[word] for word in own)
    assert hers


def test_values_do_not_contradict_each_other() -> None:
    found = 0
    for row in BOTH:
        years = {name: re.findall(r"\b1[789]\d\d\b", text) for name, text in row.sentences}
        for before, after in (("launch", "loss"), ("birth", "chair"), ("start", "abroad"), ("formed", "split")):
            if years.get(before) and years.get(after):
                found += 1
                assert int(years[before][0]) < int(years[after][0]), row
    assert found > 20


def test_a_ship_lasts_longer_than_its_captain_commands_it() -> None:
    sentences = [wording for kind in KINDS.values() for one in kind.attributes for wording in statements(one)]
    durations = [wording for wording in sentences if re.search(r"\bfor \w+ years\b", wording)]
    assert durations == ["{captain} gave orders from {its} quarterdeck for twelve years."]
    ship = KINDS["ship"]
    things = [draw_thing(ship, name, random.Random(name.text)) for name in ship.names[:500]]
    assert min(thing["loss"] - thing["launch"] for thing in things) > 12


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shared_words_find_most_of_the_plain_answers_and_no_others(seed: int) -> None:
    rows = list(zip(fact_rows("test", 500, seed), examples("test", 500, seed), strict=True))
    assert len(rows) == 200
    chance = np.mean([random_order_metrics(one, ())["mrr"] for _, one in rows])
    assert chance == pytest.approx(0.4567, abs=1e-4)
    bm25 = BM25()
    found: dict[bool, list[float]] = {True: [], False: []}
    for row, one in rows:
        found[is_plain(row, row.asked, one.positive)].append(bm25(one, ())["mrr"])
    assert 0.7 < np.mean(found[True]) < 0.9
    assert np.mean(found[False]) < 0.52


def test_a_size_that_the_names_do_not_suffice_for_is_one_line(tmp_path: Path) -> None:
    most = largest_size()
    assert most > 10_000
    assert len({row.entity for split in SPLITS for row in fact_rows(split, most, 1)}) == most + round(0.4 * most)
    with pytest.raises(UserError, match=rf"^--size: found {most + 1}; at most {most} are wanted"):
        prepare(PrepareOptions("facts", str(tmp_path / "out"), size=most + 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tasks": ["Rec-Movie"]}, "--task"),
        ({"test_share": 0.3}, "--test-share"),
        ({"shuffle": True}, "--shuffle"),
        ({"candidates": 4}, "--candidates"),
        ({"cold_start": True, "teacher": "frequent"}, "--teacher frequent"),
    ],
)
def test_options_that_facts_have_no_use_for_are_refused(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: of no use with the built-in facts; "):
        prepare(PrepareOptions("facts", str(tmp_path / "out"), **options))


@pytest.mark.parametrize("style", ANSWER_STYLES)
def test_prepare_writes_both_kinds_of_rows_with_their_words(tmp_path: Path, style: str) -> None:
    prepare(PrepareOptions("facts", str(tmp_path), answer_style=style, think=False, size=10, pool_sizes="3-4", seed=5))
    for split, count in (("train", 10), ("test", 4)):
        expected = examples(split, 10, 5)
        for mode, sizes in (("direct", [5] * count), ("iterative", [3, 4] * count)):
            file = tmp_path / f"{mode}_ranking" / f"{split}.parquet"
            rows = [row_to_example(row) for row in read_training_rows([str(file)])]
            assert [len(row.candidates) for row in rows] == sizes
            shown = {(row.request, row.positive) for row in rows}
            assert shown == {(f"A question:\n{one.query}", one.positive) for one in expected}
        bench = [one for _, one in read_ranking_bench(str(tmp_path / "bench"), "direct", split)]
        assert [(one.candidates, one.positive) for one in bench] == [(one.candidates, one.positive) for one in expected]
    assert "A question:" in (tmp_path / "bench" / "tasks.yaml").read_text()
    ensure_registered(FACTS_TASK)  # those of tasks.yaml are the same words
