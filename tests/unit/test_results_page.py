"""docs/results.md says nothing that its full tables do not say, and is as the script writes it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import results
from results_page.page import INDEX, OLD_WORLD, page_text, put_between_marks, slug
from results_page.pictures import described, panels_of
from results_page.questions import QUESTIONS
from results_page.tables import FullTables, read_figure, read_tables

from r1ranker.errors import UserError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
FILES = sorted((DOCS / "results").glob("*.md"))
OLD_WORLD_FILES = {"built_in_world", "answers", "thinking", "model_sizes", "zero_shot", "robustness"}
FIGURE = re.compile(r"\d[\d,]*\.\d+|\d+")


def block(name: str) -> str:
    found = re.search(f"<!-- {name}: begin -->(.*?)<!-- {name}: end -->", PAGE, flags=re.DOTALL)
    assert found, name
    return found[1]


def linked(text: str) -> str:
    """The full tables that a text links, together."""
    names = re.findall(r"\(results/(\w+)\.md\)", text)
    assert names
    return "\n".join((DOCS / "results" / f"{name}.md").read_text(encoding="utf-8") for name in names)


def anchors(file: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)}


def test_the_page_is_as_the_script_writes_it_from_the_full_tables() -> None:
    assert page_text(DOCS) == PAGE, "python benchmarks/results.py --page"


@pytest.mark.parametrize("name", [one.name for one in QUESTIONS])
def test_every_cell_of_a_small_table_stands_in_a_full_table_that_it_links(name: str) -> None:
    (table,) = read_tables(block(name))
    full = {cell for one in read_tables(linked(block(name))) for row in one.rows for cell in row}
    assert table.rows
    for row in table.rows:
        assert len(row) == len(table.head)
        assert set(row[1:]) - {""} <= full, row


@pytest.mark.parametrize("name", [one.name for one in QUESTIONS])
def test_every_figure_of_an_answer_stands_in_a_full_file_that_its_block_links(name: str) -> None:
    found = re.search(rf"\n## .+\n\n(\*\*.+)\n\n<!-- {name}: begin -->", PAGE)
    assert found, name
    known = set(FIGURE.findall(linked(block(name))))
    assert set(FIGURE.findall(found[1])) <= known


@pytest.mark.parametrize("question", QUESTIONS, ids=[one.name for one in QUESTIONS])
def test_every_picture_shows_the_figures_of_the_full_tables_and_is_small(question) -> None:  # type: ignore[no-untyped-def]
    file = DOCS / "results" / f"{question.name}.svg"
    assert f"(results/{question.name}.svg)" in block(question.name)
    assert file.stat().st_size < 60_000
    picture = ElementTree.parse(file).getroot()
    shown = picture.find(".//{http://purl.org/dc/elements/1.1/}description")
    assert shown is not None
    wanted = described(panels_of(question, FullTables(DOCS / "results")))
    assert shown.text == wanted, "python benchmarks/results.py --page"
    words = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    for panel in json.loads(wanted):
        assert panel["xlabel"] in words
        for one in panel["series"]:
            named = one["at"] if panel["kind"] == "bars" else [one["label"]]
            assert set(named) <= words
            assert all(
                low <= mean <= high for low, mean, high in zip(one["low"], one["mean"], one["high"], strict=True)
            )
    assert picture.find(".//{http://purl.org/dc/elements/1.1/}date") is None


@pytest.mark.parametrize("file", [DOCS / "results.md", *FILES], ids=lambda file: file.stem)
def test_every_link_resolves(file: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_page_links_every_full_file_and_its_index_every_question() -> None:
    assert {file.stem for file in FILES} == {name for one in QUESTIONS for name in one.files()}
    (index,) = read_tables(block(INDEX))
    assert len(index.rows) == len(QUESTIONS)
    assert all(answer for _, answer, _ in index.rows)


@pytest.mark.parametrize("file", [DOCS / "results.md", *FILES], ids=lambda file: file.stem)
def test_every_command_names_a_config_that_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    experiments = re.findall(r"r1ranker experiment (\w+)", text)
    assert file.stem not in results.EXPERIMENTS or file.stem in experiments
    for name in experiments:
        assert (ROOT / "configs" / "experiments" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"--config-name (\w+)", text):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_full_file_has_a_question_an_answer_and_when_it_was_recorded(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.match(r"# .+\?\n\n\*\*.+\n", text)
    assert re.search(r"^- Recorded on \d{4}-\d\d-\d\d at commit [0-9a-f]{7}\.", text, flags=re.MULTILINE)
    old_world = "**Measured on the built-in world as it was until commit b9737af.**" in text
    assert old_world == (file.stem in OLD_WORLD_FILES)


def test_answers_about_the_old_built_in_world_say_so() -> None:
    for question in QUESTIONS:
        assert (OLD_WORLD in block(question.name)) == (question.file in OLD_WORLD_FILES), question.name


def test_a_figure_that_changes_in_a_full_table_changes_on_the_page_and_in_the_picture(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "results", docs / "results")
    (docs / "results.md").write_text(PAGE, encoding="utf-8")
    file = docs / "results" / "passages.md"
    tables = re.search("<!-- passages: begin -->(.*?)<!-- passages: end -->", file.read_text(), flags=re.DOTALL)
    assert tables
    assert "| BM25 | 40.0 [33.4, 47.5] |" in tables[1]
    results.put(file, "passages", tables[1].replace("| BM25 | 40.0 [33.4, 47.5] |", "| BM25 | 41.0 [34.4, 48.5] |"))
    assert page_text(docs) == PAGE.replace("| BM25 | 40.0 [33.4, 47.5] |", "| BM25 | 41.0 [34.4, 48.5] |")
    (question,) = (one for one in QUESTIONS if one.name == "passages")
    (panel,) = panels_of(question, FullTables(docs / "results"))
    (bars,) = panel.series
    place = bars.at.index("BM25")
    assert (bars.mean[place], bars.low[place], bars.high[place]) == (41.0, 34.4, 48.5)


def test_tables_of_a_new_experiment_begin_a_file_and_are_replaced_in_it(tmp_path: Path) -> None:
    file = tmp_path / "new.md"
    for tables in ("|  | MRR |\n| --- | --- |\n| one | 1.0 |", "|  | MRR |\n| --- | --- |\n| one | 2.0 |"):
        results.put(file, "new", tables + "\n")
        assert file.read_text() == f"# new\n\n<!-- new: begin -->\n\n{tables}\n\n<!-- new: end -->\n"
    assert FullTables(tmp_path).cell("new", "", "MRR", "one") == "2.0"
    assert FullTables(tmp_path).cell("new", "", "MRR", "two") is None


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no line <!-- one: begin -->"):
        put_between_marks("text", "one", "content")
    (tmp_path / "new.md").write_text("|  | MRR |\n| --- | --- |\n| one | 1.0 |\n")
    with pytest.raises(UserError, match=r"new\.md: no table whose head begins with '' and has 'NDCG@10'"):
        FullTables(tmp_path).find("new", "", "NDCG@10")
    with pytest.raises(UserError, match=r"a figure is wanted.*found 'none'"):
        read_figure("none")


def test_figures_are_read_with_their_intervals() -> None:
    assert read_figure("63.4 [60.6, 66.0]") == (63.4, 60.6, 66.0)
    assert read_figure("-1.8 [-3.1, -0.6]") == (-1.8, -3.1, -0.6)
    assert read_figure("1.09e-05 (0 to 3.26e-05)") == (1.09e-05, 0.0, 3.26e-05)
    assert read_figure("2,074.4") == (2074.4, 2074.4, 2074.4)
    (table,) = read_tables("| a | b \\| c |\n| --- | --- |\n| 1 | 2 |\n")
    assert (table.head, table.rows) == (("a", "b | c"), (("1", "2"),))
