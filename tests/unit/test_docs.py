"""README.md and docs/ hold together: links, commands, options and settings exist, and every page is linked.

A check gives a list of `file:line: finding`. The worked example of docs/concepts.md is computed anew in test_concepts.py.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer

from r1ranker.cli import app
from r1ranker.errors import UserError
from r1ranker.experiments.spec import load_experiment
from r1ranker.trainer.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "sh", "console")
FENCE = re.compile(r"^\s*(?:```|~~~)\s*(\w*)")
LINK = re.compile(r"\]\(<?([^()<>\s]+)>?(?:\s+\"[^\"]*\")?\)|\b(?:src|href)=\"([^\"]+)\"")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SETTING = re.compile(r"\+*([a-z_0-9]+(?:\.[\w-]+)*)=.*", re.DOTALL)
DOTTED = re.compile(r"([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:=\S*)?")
PLACEHOLDER = "key"
"""`key=value` stands for any setting"""
FREE = "data.task_weights"
"""a section whose keys are names of the user's"""


def starts(root: Path) -> tuple[Path, Path]:
    """Where a reader comes in: on a code host and on the site."""
    return root / "README.md", root / "docs" / "index.md"


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def lines_of(page: Path) -> Iterator[tuple[int, str | None, str]]:
    """(number, language of the block that it is in or None, text) of each line; the fences are left out."""
    language: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        else:
            yield number, language, line


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, language, line in lines_of(page) if language is None)


def links_of(page: Path) -> Iterator[tuple[int, str]]:
    """(line, target) of the links and pictures to files of the project, and to headings of the page itself."""
    for number, line in prose_of(page):
        for target in (one or other for one, other in LINK.findall(SPAN.sub("", line))):
            if not re.match(r"[a-z]+:", target):
                yield number, target


def anchors_of(page: Path) -> list[str]:
    """The anchors of a page's headings, as code hosts make them and mkdocs.yml has them made."""
    found = (re.match(r"#{1,6} +(.+?) *#*$", line) for _, line in prose_of(page))
    texts = (re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]) for heading in found if heading)
    return [re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in texts]


def commands_of(page: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every command in shell blocks and code spans."""
    pending, begun = "", 0
    for number, language, line in lines_of(page):
        if language is None:
            for span in SPAN.findall(line):
                with contextlib.suppress(ValueError):  # code that is no command
                    yield from ((number, words) for words in split_commands(span))
        if language not in SHELLS:
            continue
        begun = begun if pending else number
        pending += line
        if pending.endswith(("\\", "|")):
            pending = pending.removesuffix("\\")
            continue
        try:
            found = list(split_commands(pending))
        except ValueError:  # a quotation that goes on
            pending += "\n"
            continue
        pending = ""
        yield from ((begun, words) for words in found)


def split_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a pipeline, without the variables set before it."""
    words: list[str] = []
    for word in [*shlex.split(text, comments=True), "|"]:
        if word not in ("|", "&&", "||", ";"):
            words.append(word)
            continue
        while words and re.match(r"[A-Z_0-9]+=", words[0]):
            words.pop(0)
        if words:
            yield words
        words = []


def r1ranker_commands(root: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(file:line, command, the words after it) of `r1ranker COMMAND` and of the scripts that stand for one."""
    scripts = {"eval/eval.py": "eval", "scripts/Ranking_FM.sh": "train"}
    for page in pages(root):
        for number, words in commands_of(page):
            where = f"{page.relative_to(root)}:{number}"
            if words[0] == "r1ranker" and len(words) > 1:
                yield where, words[1], words[2:]
            elif words[0] in ("bash", "python") and len(words) > 1 and words[1] in scripts:
                yield where, scripts[words[1]], words[2:]


def settings() -> set[str]:
    """Every key of a training configuration, sections among them."""

    def walk(values: dict[str, Any], prefix: str) -> Iterator[str]:
        for key, value in values.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return set(walk(asdict(Config()), ""))


def broken_links(root: Path) -> list[str]:
    found = []
    for page in pages(root):
        for number, target in links_of(page):
            where, (path, _, anchor) = f"{page.relative_to(root)}:{number}", target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                found.append(f"{where}: {target}: no such file")
            elif anchor and (file.suffix != ".md" or anchor not in anchors_of(file)):
                found.append(f"{where}: {target}: no such heading")
            elif page.is_relative_to(root / "docs") and not file.is_relative_to(root / "docs"):
                found.append(f"{where}: {target}: not in docs/, so not on the site; name it in `code`")
    return found


def unreachable_pages(root: Path) -> list[str]:
    found = []
    for start in starts(root):
        seen, waiting = {start}, [start]
        while waiting:
            page = waiting.pop()
            targets = {(page.parent / target.partition("#")[0]).resolve() for _, target in links_of(page)}
            new = {target for target in targets if target.suffix == ".md" and target.is_file()} - seen
            seen |= new
            waiting += new
        missing = [page for page in pages(root) if page not in seen and page not in starts(root)]
        found += [f"{page.relative_to(root)}:1: no way there from {start.name}" for page in missing]
    return found


def missing_scripts(root: Path) -> list[str]:
    return [
        f"{page.relative_to(root)}:{number}: {words[1]}: no such file"
        for page in pages(root)
        for number, words in commands_of(page)
        if words[0] in ("bash", "python", "source") and len(words) > 1
        if re.match(r"(?:\.ci|scripts|examples|eval|benchmarks)/", words[1]) and not (ROOT / words[1]).is_file()
    ]  # fmt: skip


def unknown_options(root: Path) -> list[str]:
    group: Any = typer.main.get_command(app)
    found = []
    for where, name, words in r1ranker_commands(root):
        if name not in group.commands and not name.startswith("-"):
            found.append(f"{where}: r1ranker {name}: no such command")
            continue
        command, given = (group, [name]) if name.startswith("-") else (group.commands[name], words)
        own = getattr(command, "commands", {})  # of a command that has commands of its own
        if own and words:
            command = own.get(words[0], command)
        known = {"--help", *(option for one in command.params for option in (*one.opts, *one.secondary_opts))}
        spelled = {option.replace("_", "-") for option in known}
        for word in given:
            option = word.partition("=")[0].replace("_", "-")
            if word.startswith("--") and option not in spelled:
                found.append(f"{where}: r1ranker {name} {option}: no such option")
    return found


def unknown_settings(root: Path) -> list[str]:
    """Of training commands."""
    known, found = settings(), []
    for where, name, words in r1ranker_commands(root):
        for setting in map(SETTING.fullmatch, words if name == "train" else ()):
            if setting and setting[1] not in known | {PLACEHOLDER} and setting[1].rpartition(".")[0] != FREE:
                found.append(f"{where}: {setting[1]}: no such setting")
    return found


def unknown_settings_in_text(root: Path) -> list[str]:
    """Also of those without their first parts, as in `rollout.n`. The page on veRL names veRL's own."""
    known, found = settings(), []
    ends = {key.split(".", count)[-1] for key in known for count in range(key.count(".") + 1)}
    sections = {key.split(".")[place] for key in known for place in range(key.count("."))}
    for page in (page for page in pages(root) if page.name != "verl.md"):
        for number, line in prose_of(page):
            for key in (span[1] for span in map(DOTTED.fullmatch, SPAN.findall(line)) if span):
                if key.split(".")[0] not in sections or key.endswith((".py", ".sh", ".md")) or key in ends:
                    continue
                if key.rpartition(".")[0] != FREE and not is_of_an_experiment(key):
                    found.append(f"{page.relative_to(root)}:{number}: {key}: no such setting")
    return found


def is_of_an_experiment(key: str) -> bool:
    """Whether it is a key of an experiment's file, such as data.source."""
    try:
        load_experiment("direct_iterative", [f"{key}=null"])
    except UserError as error:
        return "not in" not in str(error)
    return True


def unknown_experiments(root: Path) -> list[str]:
    found = []
    for where, name, words in r1ranker_commands(root):
        if name == "experiment" and words and not words[0].isupper():
            try:
                load_experiment(words[0], [word for word in words[1:] if SETTING.fullmatch(word)])
            except UserError as error:
                found.append(f"{where}: {error}")
    return found


def shown_otherwise(root: Path) -> list[str]:
    """Pages of which the site makes other blocks than a code host: its Markdown wants a blank line before a list."""
    markdown, reader = pytest.importorskip("markdown"), pytest.importorskip("markdown_it")
    config = pytest.importorskip("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"))
    site = markdown.Markdown(extensions=config.markdown_extensions, extension_configs=config.mdx_configs)
    host = reader.MarkdownIt("commonmark").enable("table")
    found = []
    for page in pages(root)[1:]:
        text = page.read_text(encoding="utf-8")
        here, there = (
            Counter(re.findall(r"<(li|[ou]l|td|h[1-6]|pre|img)\b", html))
            for html in (host.render(text), site.reset().convert(text))
        )
        tags = [tag for tag in sorted(here | there) if here[tag] != there[tag]]
        found += [f"{page.relative_to(root)}:1: {here[tag]} <{tag}>, on the site {there[tag]}" for tag in tags]
    return found


CHECKS = (
    broken_links, unreachable_pages, missing_scripts, unknown_options, unknown_settings, unknown_settings_in_text,
    unknown_experiments, shown_otherwise,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_docs_have_no(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


def test_the_docs_show_every_command_and_experiment() -> None:
    shown = list(r1ranker_commands(ROOT))
    group: Any = typer.main.get_command(app)
    assert set(group.commands) - {name for _, name, _ in shown} <= {"init-model", "sft"}
    experiments = {words[0] for _, name, words in shown if name == "experiment" and words}
    assert {file.stem for file in (ROOT / "configs" / "experiments").glob("*.yaml")} <= experiments
    assert sum(bool(SETTING.fullmatch(word)) for _, name, words in shown if name == "train" for word in words) > 10


@pytest.mark.parametrize(
    ("check", "text", "finding"),
    [
        (broken_links, "[x](nowhere.md)", "nowhere.md: no such file"),
        (broken_links, "[x](index.md#nowhere)", "index.md#nowhere: no such heading"),
        (broken_links, "[x](../README.md)", "../README.md: not in docs/"),
        (unreachable_pages, "", "no way there from README.md"),
        (missing_scripts, "```bash\nbash scripts/nowhere.sh\n```", "scripts/nowhere.sh: no such file"),
        (unknown_options, "`r1ranker nothing`", "r1ranker nothing: no such command"),
        (unknown_options, "```bash\nr1ranker eval \\\n  --nothing 3\n```", "r1ranker eval --nothing: no such option"),
        (unknown_options, "`python eval/eval.py --no_thing`", "r1ranker eval --no-thing: no such option"),
        (unknown_settings, "```bash\nA=1 r1ranker train data.nothing=3\n```", "data.nothing: no such setting"),
        (unknown_settings_in_text, "`rollout.nothing=1`", "rollout.nothing: no such setting"),
        (unknown_experiments, "```bash\nr1ranker experiment answers nothing=1\n```", "nothing"),
        (shown_otherwise, "A list:\n- one\n- two", "2 <li>, on the site 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, check: Callable[[Path], list[str]], text: str, finding: str
) -> None:
    (tmp_path / "docs").mkdir()
    for name, content in (("README.md", "# Read\n"), ("docs/index.md", "# Start\n"), ("docs/bad.md", text)):
        (tmp_path / name).write_text(content, encoding="utf-8")
    found = check(tmp_path)
    assert any(re.match(r"docs/bad\.md:[12]: ", line) and finding in line for line in found), found
    (tmp_path / "docs" / "bad.md").write_text("# Good\n\n`data.seed`\n", encoding="utf-8")
    assert check is unreachable_pages or check(tmp_path) == []
