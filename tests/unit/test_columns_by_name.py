"""A column means what the header calls it, wherever it stands; and quotes mean what whoever wrote the file meant by them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from r1ranker.data.files.tab_separated import split_rows
from r1ranker.data.files.tally import TaskTally
from r1ranker.data.sources.recommendation import (
    RecommendationSettings,
    read_interactions,
    read_recommendation,
    read_titles,
)
from r1ranker.errors import UserError


def titles_of(directory: Path, text: str) -> dict[str, str]:
    (directory / "a.item").write_text(text, encoding="utf-8", newline="")
    return read_titles(str(directory / "a.item"), TaskTally())


@pytest.mark.parametrize(
    "header",
    [
        "item_id:token\tprice:float\tsales_type:token\tsales_rank:float\tcategories:token_seq\ttitle:token\tbrand:token",
        "item_id:token\tcategories:token_seq\ttitle:token \tprice:float\t    sales_type:token\tbrand:token",
        "item_id:token\trelease_year:token\tmovie_title:token_seq\tclass:token_seq",
        "type:token\titem_id:token\tname:token_seq\tgenre:token_seq",
        "app_name:token\turl:token_seq\titem_id:token",
        "\titem_id:token\ttitle_entities:token_seq\tcategory_name:token\ttitle:token_seq",  # written with pandas' index
        "subtitle:token\ttitle_original:token\tbook_title:token_seq\titem_id:token",
        "original_title:token\tname:token\ttitle:token\titem_id:token",
        "item_id\tyear\ttitle",
        "ITEM_ID:token\tYear:float\t Title : token_seq ",
        "\ufeff\"year:float\"\t\"title:token_seq\"\t\"item_id:token\"",
    ],
)  # fmt: skip
def test_a_title_comes_from_the_column_that_is_called_so(tmp_path: Path, header: str) -> None:
    names = [name.strip('"\ufeff ').lower().partition(":")[0].strip() for name in header.split("\t")]
    wanted = next(i for i in (*["title", "movie_title", "book_title", "name", "app_name"],) if i in names)
    cells = ["7" if name == "item_id" else "The One" if name == wanted else f"not {name}" for name in names]
    assert titles_of(tmp_path, header + "\n" + "\t".join(cells) + "\n") == {"7": "The One"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "item_id:token\tprice:float\tbrand:token",
            r"no column 'title'; found 'item_id:token, price:float, brand:token'; a header such as item_id:token<tab>title:token_seq is wanted \(a column that ends in title, or one called name, serves as well\)",
        ),
        ("item_id:token\tbrand_name:token", "no column 'title'; found 'item_id:token, brand_name:token'"),
        ("item_id:token\tfirst_title:token\tother_title:token", "no column 'title'; found first_title and other_title"),
        ("item_id:token\ttitle:token\ttitle:token_seq", "column 'title' stands there twice"),
        ("item_id:token\tTitle:token\ttitle:token", "column 'title' stands there twice"),
        ("item_id:token\titem_id:token\ttitle:token", "column 'item_id' stands there twice"),
        ("business_id:token\ttitle:token", "no column 'item_id'.*; found 'business_id:token, title:token'"),
        ("1\tHeat", "no column 'item_id'"),
        ("item_id:token,title:token", "no column 'item_id'; columns are separated by commas, tabs are wanted"),
        ("item_id:token title:token", "no column 'item_id'; columns are separated by spaces, tabs are wanted"),
    ],
)  # fmt: skip
def test_a_title_that_no_header_names_is_asked_for(tmp_path: Path, header: str, message: str) -> None:
    row = "\t".join(["1"] * len(header.split("\t")))
    with pytest.raises(UserError, match=rf"a.item: line 1: {message}"):
        titles_of(tmp_path, f"{header}\n{row}\n")


def test_interactions_are_read_by_name_in_any_order(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "rating:float": [5, 4, 3],
            "Timestamp:float ": [30.0, 10.0, 20.0],
            "item_id:token": ["a", "b", "c"],
            "review:token_seq": ['said "hi"', "two\nlines", "a\ttab"],
            "user_id:token": ["u", "u", "v"],
        }
    )
    rows.to_csv(tmp_path / "a.inter", sep="\t")
    read = read_interactions(str(tmp_path / "a.inter"))
    assert read.users == ["u", "v"]
    assert read.items == ["a", "b", "c"]
    assert read.user_codes.tolist() == [0, 0, 1]
    assert read.timestamps.tolist() == [30.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id:token\titem_id:token\trating:float\tprice:float", "no column 'timestamp'"),
        ("user_id:token\titem_id:token\trating:float\ttimes:float", r"no column 'timestamp' \(did you mean 'times'\?\)"),
        ("user_id:token\titem_id:token\ttimestamp:float\ttimestamp:float", "column 'timestamp' stands there twice"),
        ("uid:token\titem_id:token\trating:float\ttimestamp:float", "no column 'user_id'"),
    ],
)  # fmt: skip
def test_an_order_that_no_header_names_is_asked_for(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "a.inter").write_text(header + "\n1\t2\t3\t4\n")
    with pytest.raises(UserError, match=rf"a.inter: line 1: {message}"):
        read_interactions(str(tmp_path / "a.inter"))


def test_ids_that_pandas_made_numbers_of_are_named(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id:token": [1, None, 3], "title:token": ["A", "B", "C"]}).dropna()
    items.to_csv(tmp_path / "a.item", sep="\t", index=False)  # 1.0 and 3.0
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\nu\t3\t2\n")
    files = str(tmp_path / "a.inter"), str(tmp_path / "a.item")
    with pytest.raises(UserError, match=r"a.inter: item_id: none is among .*; found '1' and '1.0'; the same ids"):
        list(read_recommendation("Rec-Movie", *files, RecommendationSettings(), TaskTally()))


@pytest.mark.parametrize("missing", [float("nan"), None, "", " ", "nan", "None", "<NA>", "NULL"])
def test_an_item_without_a_title_is_counted(tmp_path: Path, missing: object) -> None:
    items = pd.DataFrame({"price:float": [1, 2], "item_id:token": [1, 2], "title:token_seq": ["Heat", missing]})
    tally = TaskTally()
    items.to_csv(tmp_path / "a.item", sep="\t", index=False)
    assert read_titles(str(tmp_path / "a.item"), tally) == {"1": "Heat"}
    assert tally.left_out["items without a title"] == 1


TEXTS = [
    '"Weird Al" Yankovic: Live', '12" Remix', '"Heroes', 'Low"', '"', '"a" "b"', '1" Foam ""Deluxe"" Pad', "O'Brien", '""x',
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_nobody_quoted_keeps_its_texts(tmp_path: Path, text: str) -> None:
    """Wherever the column stands, and whatever the title of a later row, whose quote could close this one's."""
    for header, row in (
        ("item_id\ttitle\tx", f"1\t{text}\ty"),
        ("item_id\ttitle", f"1\t{text}"),
        ("title\titem_id", f"{text}\t1"),
    ):
        assert titles_of(tmp_path, f"{header}\n{row}\n") == {"1": text}
    for other in TEXTS:
        found = titles_of(tmp_path, f"item_id\ttitle\n1\t{text}\n2\tx\n3\t{other}\n")
        assert found == {"1": text, "2": "x", "3": other}


def test_a_quote_that_is_never_closed_takes_no_row_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{number}\tTitle {number}\tx" for number in range(3000)]
    lines[5] = '5\t"Unfinished\tx'
    lines[2000] = '2000\tMusic for 7"\tx'
    lines[2500:2502] = ['2500\t"Unfinished, too\tx', '2501\tMusic for 12"\tx']
    found = titles_of(tmp_path, "item_id\ttitle\tkind\n" + "\n".join(lines) + "\n")
    assert len(found) == 3000
    assert (found["5"], found["2000"]) == ('"Unfinished', 'Music for 7"')
    said = capsys.readouterr().err
    assert "a quote is opened on line 7 and closed on line 2002; each line is read as a row" in said
    assert said.count("\n") == 1


words = st.text(
    st.sampled_from("ab\"\t\n',; ") | st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12
)


@given(
    st.lists(st.tuples(words, words, words), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example([('The "Best" of', "a\tb", "c\nd\n\ne")], csv.QUOTE_MINIMAL)
@example([('"', '""', "\n"), ("\t", '"\t', '\t"')], csv.QUOTE_MINIMAL)
def test_what_pandas_writes_comes_back(rows: list[tuple[str, str, str]], quoting: int) -> None:
    """But for a row whose every line is a whole row by itself: nothing in it tells who wrote it."""
    frame = pd.DataFrame(rows, columns=["a:token", 'b "quoted"', "c"])
    for row in rows:
        alone = pd.DataFrame([row]).to_csv(sep="\t", index=False, header=False, quoting=quoting)  # type: ignore[call-overload]
        assume(alone.count("\n") == 1 or any(line.count("\t") != 2 for line in alone.splitlines()))
    written = frame.to_csv(sep="\t", index=False, quoting=quoting)  # type: ignore[call-overload]
    lines = [line + "\n" for line in written.split("\n")[:-1]]
    back = [row for _, row in split_rows("a", iter(enumerate(lines, 1)), 10**6)]
    assert back == [list(frame.columns), *map(list, rows)]
    again = pd.read_csv(io.StringIO(written), sep="\t", dtype=str, keep_default_na=False)
    assert [list(again.columns), *again.to_numpy().tolist()] == back
