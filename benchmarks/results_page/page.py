"""docs/results.md: the blocks between the marks of each question, and the index."""

from __future__ import annotations

import re
from pathlib import Path

from r1ranker.errors import UserError
from r1ranker.experiments.tables import markdown_table
from results_page.layout import Column, Question, Row
from results_page.questions import QUESTIONS
from results_page.tables import FullTables

INDEX = "index"
OLD_WORLD = (
    "*Measured on the built-in world as it was until commit b9737af. There the most frequent label nearly solves it.*"
)
_SECTION = re.compile(r"^#{2,} (?P<question>.+)\n\n(?P<answer>.+)\n\n<!-- (?P<name>\w+): begin -->", re.MULTILINE)


def put_between_marks(text: str, name: str, content: str) -> str:
    """The text with `content` between `<!-- name: begin -->` and `<!-- name: end -->`.

    Raises UserError where it has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in text:
        raise UserError(f"no line {begin} in the page; it is wanted for the block of {name}")
    block = f"{begin}\n\n{content.strip()}\n\n{end}"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)


def small_table(question: Question, tables: FullTables) -> str:
    """The Markdown of a question's table, each cell as it stands in the full tables."""
    rows = [[row.label, *(cell(question, row, column, tables) for column in question.columns)] for row in question.rows]
    return markdown_table([question.corner, *(column.head for column in question.columns)], rows)


def cell(question: Question, row: Row, column: Column, tables: FullTables) -> str:
    """One cell; empty where the full table has no such row and the question may have gaps.

    Raises UserError where it may not.
    """
    names = {"row": row.name, "arm": row.arm}
    file = row.file or column.file or question.file
    wanted = column.row.format(**names)
    found = tables.cell(file, column.corner.format(**names), (column.column or column.head).format(**names), wanted)
    if found is None and not question.gaps:
        raise UserError(f"{file}.md: no row {wanted!r}; {question.name} wants it")
    return found or ""


def page_text(docs: Path) -> str:
    """docs/results.md with every block written anew from docs/results/."""
    tables = FullTables(docs / "results")
    text = (docs / "results.md").read_text(encoding="utf-8")
    for question in QUESTIONS:
        text = put_between_marks(text, question.name, _block(question, tables))
    return put_between_marks(text, INDEX, _index(text))


def _block(question: Question, tables: FullTables) -> str:
    from_where = f"Full tables: {_links(question)}." + f" {OLD_WORLD}" * question.old_world
    picture = f"![{question.shows}](results/{question.name}.svg)"
    return "\n\n".join([from_where, small_table(question, tables), picture])


def _links(question: Question) -> str:
    return ", ".join(f"[{name}](results/{name}.md)" for name in question.files())


def _index(text: str) -> str:
    """Question, the bold words that its answer begins with, and where the full tables are."""
    questions = {one.name: one for one in QUESTIONS}
    rows = []
    for section in _SECTION.finditer(text):
        question = questions.pop(section["name"], None)
        short = re.match(r"\*\*(.+?)\*\*", section["answer"])
        if question is None or short is None:
            raise UserError(f"docs/results.md: {section['question']!r} wants an answer that begins with **bold words**")
        link = f"[{section['question']}](#{slug(section['question'])})"
        rows.append([link, short[1].rstrip("."), _links(question)])
    if questions:
        raise UserError(f"docs/results.md: a heading and an answer are wanted before {', '.join(questions)}")
    return markdown_table(["question", "answer", "full tables"], rows)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
