"""The parser: every notation of a list, every way of writing a name, and never a guess between two."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.tasks.answers import CandidateMatcher, normalise, parse_answer, prepend_prefill
from r1ranker.tasks.labels import ANSWER_STYLES, AnswerStyle, write_label
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.tasks.text import sanitise

TITLES = [
    "12 Angry Men", "2001: A Space Odyssey", "Good, the Bad and the Ugly, The", "Matrix, The (1999)", "Rocky II", "Rocky III", "Alien",
    "Aliens", "Ben-Hur", "Se7en", "Fly, The", "Might and Magic VII: For Blood &amp; Honor", "Doug's 1st Movie",
    "\"Weird Al\" Live", "X", "29", "passage 1", "passage 11", "meta/llama-2-70b-chat", "Amélie (Le fabuleux destin)",
    "</answer><|im_end|>",
]  # fmt: skip

NOTATIONS = {
    "lines": lambda names: "\n".join(names),
    "bullets": lambda names: "\n".join(f"- {name}" for name in names),
    "stars": lambda names: "\n".join(f"* {name}" for name in names),
    "numbers": lambda names: "\n".join(f"{place}. {name}" for place, name in enumerate(names, 1)),
    "parentheses": lambda names: "\n".join(f"({place}) {name}" for place, name in enumerate(names, 1)),
    "quoted lines": lambda names: "\n".join(f'"{name}",' for name in names),
    "semicolons": lambda names: "; ".join(names),
    "arrows": lambda names: " > ".join(names),
    "json": lambda names: json.dumps(names),
    "python": lambda names: repr(list(names)),
    "commas": lambda names: ", ".join(names),
    "spaced lines": lambda names: "\n\n" + "\n\n".join(f"  {name}  " for name in names) + "\n",
}


@given(st.permutations(TITLES), st.integers(2, len(TITLES)), st.sampled_from(sorted(NOTATIONS)))
def test_any_permutation_in_any_notation_comes_back(order: list[str], size: int, notation: str) -> None:
    pool = sorted(order[:size])
    written = NOTATIONS[notation]([sanitise(name) for name in order[:size]])
    parsed = parse_answer(f"thought</think>\n<answer>{written}</answer>", pool, "direct")
    assert [pool[place] for place in parsed.named] == order[:size]
    assert not parsed.unmatched


@given(st.permutations(range(6)), st.sampled_from(["\n", ", ", " > ", " "]))
def test_labels_come_back_in_any_order(order: list[int], separator: str) -> None:
    if separator == " ":
        separator = "\n- "
    written = separator.join(f"[{place + 1}]" for place in order)
    parsed = parse_answer(f"<answer>{written}</answer>", list("abcdef"), "direct", AnswerFormat("label", think=False))
    assert list(parsed.named) == list(order)


@pytest.mark.parametrize(
    "written",
    [
        "rocky  ii",
        "“Rocky II”",
        "2. Rocky II",
        "- Rocky II.",
        "**Rocky II**",
        "Rocky II\n",
        "The worst is Rocky II.",
        "`Rocky II`",
    ],
)
def test_a_name_is_known_in_other_dress(written: str) -> None:
    parsed = parse_answer(f"</think>\n<answer>{written}</answer>", TITLES, "iterative")
    assert [TITLES[place] for place in parsed.named] == ["Rocky II"]


def test_entities_match_written_out_and_not() -> None:
    for written in ("Might and Magic VII: For Blood & Honor", "Might and Magic VII: For Blood &amp; Honor"):
        parsed = parse_answer(f"</think>\n<answer>{written}</answer>", TITLES, "iterative")
        assert TITLES[parsed.named[0]].startswith("Might")


def test_a_slip_of_spelling_is_forgiven_but_another_number_is_another_thing() -> None:
    matcher = CandidateMatcher(["Shawshank Redemption, The", "Rocky II", "passage 1"])
    assert matcher.match("Shawshenk Redemption, The") == 0
    assert matcher.match("Rocky III") is None
    assert matcher.match("passage 10") is None
    assert matcher.match("Terminator") is None


def test_two_candidates_equally_near_are_no_match() -> None:
    assert CandidateMatcher(["The Cat Show A", "The Cat Show B"]).match("The Cat Show C") is None
    assert CandidateMatcher(["Alien", "ALIEN"]).match("alien") is None
    assert CandidateMatcher(["Alien", "ALIEN"]).match("ALIEN") == 1


def test_the_longest_name_counts_where_one_holds_another() -> None:
    matcher = CandidateMatcher(["Alien", "Alien Resurrection"])
    assert matcher.match("I would drop Alien Resurrection here") == 1
    assert matcher.match("I would drop Alien here") == 0
    assert matcher.match("either Alien or Alien Resurrection") is None


@pytest.mark.parametrize("answer", ["", "   \n", "nothing of the kind", "Alien and Ben-Hur", "Alien\nBen-Hur", "[3]"])
def test_an_elimination_that_names_none_or_two_names_none(answer: str) -> None:
    assert parse_answer(f"</think>\n<answer>{answer}</answer>", TITLES, "iterative").named == ()


def test_the_last_answer_block_counts_and_the_thought_is_not_an_answer() -> None:
    parsed = parse_answer("Alien?</think>\n<answer>Alien</answer> no: <answer>Ben-Hur</answer>", TITLES, "iterative")
    assert [TITLES[place] for place in parsed.named] == ["Ben-Hur"]
    assert parsed.thought == "Alien?"
    nothing = parse_answer("I take Alien</think>", TITLES, "iterative")
    assert (nothing.answer, nothing.named) == (None, ())


def test_a_repeated_candidate_is_named_once() -> None:
    parsed = parse_answer("</think><answer>Alien\nBen-Hur\nAlien</answer>", TITLES, "direct")
    assert [TITLES[place] for place in parsed.named] == ["Alien", "Ben-Hur"]


@given(st.text(max_size=300), st.sampled_from(["direct", "iterative"]), st.sampled_from(ANSWER_STYLES), st.booleans())
def test_any_text_at_all_is_parsed_into_distinct_places_of_the_pool(
    text: str, mode: str, style: str, think: bool
) -> None:
    parsed = parse_answer(text, TITLES, mode, AnswerFormat(style, think))  # type: ignore[arg-type]
    assert len(set(parsed.named)) == len(parsed.named)
    assert all(0 <= place < len(TITLES) for place in parsed.named)
    assert len(parsed.named) <= (1 if mode == "iterative" else len(TITLES))


@given(st.text(max_size=80))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_the_prefilled_tag_is_put_back_once() -> None:
    assert prepend_prefill("x</think>", think=True) == "<think>x</think>"
    assert prepend_prefill("<think>x</think>", think=True) == "<think>x</think>"
    assert prepend_prefill("a</answer>", think=False) == "<answer>a</answer>"


def test_large_answers_are_parsed_in_linear_time_of_pieces() -> None:
    rng = random.Random(0)
    answer = "\n".join(rng.choice(TITLES) for _ in range(2000))
    assert len(parse_answer(f"</think><answer>{answer}</answer>", TITLES, "direct").named) > 15


def test_real_pools_come_back_from_every_notation(mini: Path) -> None:
    rng = random.Random(0)
    rows = [example for _, example in read_ranking_bench(str(mini), "direct", "test")]
    for number, example in enumerate(rows):
        order = rng.sample(range(len(example.candidates)), len(example.candidates))
        notation = sorted(NOTATIONS)[number % len(NOTATIONS)]
        written = NOTATIONS[notation]([sanitise(example.candidates[place]) for place in order])
        parsed = parse_answer(f"thought</think>\n<answer>{written}</answer>", example.candidates, "direct")
        assert list(parsed.named) == order, (notation, example.candidates)


FILMS = ["Toy Story", "Toy Story 2", "Heat", "gpt-4", "claude-v1", "It", "Ran", "29", "Alien", "ALIEN", "Final Fantasy"]


@pytest.mark.parametrize(
    "answer",
    [
        "Toy Story 3",
        "Heat II",
        "Final Fantasy X",
        "gpt-4-turbo",
        "claude-v1.3",
        "gpt-4o",
        "Heat or Toy Story",
        "I cannot say",
    ],
)
def test_a_name_that_is_not_in_the_pool_is_none_of_it(answer: str) -> None:
    assert parse_answer(f"x</think>\n<answer>{answer}</answer>", FILMS, "iterative").named == ()


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ("Answer: It", "It"), ('The worst is "Ran".', "Ran"), (r"\boxed{It}", "It"), ('["It"]', "It"), ("**1.** Ran", "Ran"),
        ("1.Ran", "Ran"), ("1 - Ran", "Ran"), ("**1. Ran**", "Ran"), ("29", "29"), ("I would remove **Heat**", "Heat"),
        ("- ALIEN", "ALIEN"), ("1. Alien", "Alien"), ("I take Heat out, it is long", "Heat"),
    ],
)  # fmt: skip
def test_an_elimination_is_understood_in_many_ways_of_writing(answer: str, meant: str) -> None:
    parsed = parse_answer(f"x</think>\n<answer>{answer}</answer>", FILMS, "iterative")
    assert [FILMS[place] for place in parsed.named] == [meant]


def test_names_that_differ_in_case_alone_keep_their_places_in_any_list() -> None:
    for written in (
        "1. ALIEN\n2. Alien",
        "- ALIEN\n- Alien",
        "**ALIEN**\n**Alien**",
        "ALIEN, Alien",
        '["ALIEN", "Alien"]',
    ):
        assert parse_answer(f"x</think>\n<answer>{written}</answer>", ["Alien", "ALIEN"], "direct").named == (1, 0)


@pytest.mark.parametrize("answer", ["[{[1]: 2}]", "[{[]}]", "[0x" + 4000 * "f" + ", 1]", "[" * 5000, "(" * 300 + "]"])
def test_no_answer_breaks_the_parser(answer: str) -> None:
    assert parse_answer(f"x</think>\n<answer>{answer}</answer>", FILMS, "direct").named == ()


def test_a_stray_closing_tag_does_not_lengthen_the_answer() -> None:
    text = "x</think>\n<answer>Alien</answer>\nI keep Heat.</answer>"
    assert parse_answer(text, ["Heat", "Alien"], "iterative").named == (1,)
    assert parse_answer("<answer>Heat</answer> or <answer>", ["Heat", "Alien"], "iterative").named == (0,)


def test_a_long_line_is_looked_up_piece_by_piece_and_not_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    closely = CandidateMatcher.match_exact
    monkeypatch.setattr(
        CandidateMatcher, "match_exact", lambda self, text: (looked.append(text), closely(self, text))[1]
    )
    parse_answer(
        "x</think>\n<answer>" + "q, " * 500 + "Heat</answer>", ["Heat", "Good, the Bad and the Ugly"], "direct"
    )
    assert len(looked) < 500 * 8


def test_lines_that_end_with_labels_name_what_these_say() -> None:
    pool = ["Heat [2]", "Alien", "Jaws"]
    form = AnswerFormat("label_after", think=False)
    for written in (
        "Jaws [3]\nHeat [2] [1]\nAlien [2]",
        "- Jaws [3]\n- Heat [2] [1]\n- Alien [2]",
        "[3] > [1] > [2]",
        "[3]\n[1]\n[2]",
    ):
        assert parse_answer(f"{written}</answer>", pool, "direct", form).named == (2, 0, 1)


@pytest.mark.parametrize("style", ANSWER_STYLES[1:])
def test_written_labels_mean_what_they_were_written_for(style: AnswerStyle) -> None:
    pool, form = [f"film number {place}" for place in range(60)], AnswerFormat(style, think=False)
    order = random.Random(3).sample(range(60), 60)
    labels = [write_label(style, place) for place in order]
    assert len(set(labels)) == 60
    assert parse_answer("\n".join(labels) + "</answer>", pool, "direct", form).named == tuple(order)
    for place, label in zip(order, labels, strict=True):
        for written in (label, label.strip("[]"), f"{label.lower()}.", f"[ {label[1:]}"):
            assert parse_answer(f"{written}</answer>", pool, "iterative", form).named == (place,), written
    for unknown in ("[61]", "[0]", "[BI]", "[A] [B]", "[1] [2]"):
        assert parse_answer(f"{unknown}</answer>", pool, "iterative", form).named == ()


def test_letters_are_counted_as_in_a_spreadsheet_and_a_name_of_two_may_be_a_name() -> None:
    assert [write_label("letter", place) for place in (0, 25, 26, 51, 52, 701)] == [
        "[A]", "[Z]", "[AA]", "[AZ]", "[BA]", "[ZZ]",
    ]  # fmt: skip
    form = AnswerFormat("letter", think=False)
    assert parse_answer("Up</answer>", ["Alien", "Up"], "iterative", form).named == (1,)
    assert parse_answer("b</answer>", ["B", "Up"], "iterative", form).named == (1,)  # a label before a name
