"""Tasks of one's own: their words in a YAML file, whose request is a jinja2 template; kept beside the data they word."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1ranker.errors import UserError, suggest
from r1ranker.tasks.catalog import TASKS, Task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import sanitise_lines

if TYPE_CHECKING:
    from jinja2 import Template

TASKS_FILE = "tasks.yaml"
_FIELDS = {"name": str, "noun": str, "plural": str, "goal": str, "request": str, "cutoffs": list}
_DEFAULTS = {"noun": "item", "plural": "items", "cutoffs": [3, 5, 10]}
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


def default_task(name: str, by_history: bool, where: str = "--task") -> Task:
    """The words of a task that comes with none: a request in words, or a history."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: task: found {name!r}; a name of letters, digits, '_' and '-' is wanted")
    goal = "how likely I am to choose it next" if by_history else "how well it answers the request"
    request = (
        "Items I have chosen, oldest first:\n{% for item in history %}- {{ item }}\n{% endfor %}"
        if by_history
        else "A request:\n{{ query }}"
    )
    return Task(name, "own", "item", "items", goal, request, (3, 5, 10))


def read_task(path: str, name: str | None = None) -> Task:
    """The task of a YAML file: goal and request, and optionally name, noun, plural and cutoffs.

    request: a jinja2 template of `query` and `history`. goal: what puts a candidate ahead, completes 'by ...'.
    Raises UserError naming file and key.
    """
    values = _yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: found {type(values).__name__}; the keys {', '.join(_FIELDS)} are wanted")
    return _task(values | ({"name": name} if name else {}), path)


def _task(values: dict[str, Any], path: str) -> Task:
    for key in values:
        if key not in _FIELDS:
            raise UserError(f"{path}: unknown key {key!r}{suggest(str(key), _FIELDS)}; {', '.join(_FIELDS)} are known")
    values = _DEFAULTS | values
    for key, kind in _FIELDS.items():
        if key not in values:
            raise UserError(f"{path}: no key {key!r}; it is wanted")
        if not isinstance(values[key], kind) or not values[key]:
            raise UserError(f"{path}: {key}: found {values[key]!r}; {'a text' if kind is str else 'a list'} is wanted")
    if any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in values["cutoffs"]):
        raise UserError(f"{path}: cutoffs: found {values['cutoffs']!r}; ranks of at least 1 are wanted")
    if not _NAME.fullmatch(values["name"]):
        raise UserError(f"{path}: name: found {values['name']!r}; letters, digits, '_' and '-' are wanted")
    for key in ("noun", "plural", "goal"):
        values[key] = values[key].strip()
        if len(values[key].splitlines()) != 1:
            raise UserError(f"{path}: {key}: found {values[key]!r}; one line of text is wanted")
    render_request(values["request"], "a query", ("an item",), path)
    if not template_variables(values["request"]):
        raise UserError(f"{path}: request: uses neither query nor history; one of them is wanted")
    return Task(
        values["name"],
        "own",
        values["noun"],
        values["plural"],
        values["goal"],
        values["request"],
        tuple(values["cutoffs"]),
    )


def render_request(template: str, query: str, history: Sequence[str], where: str = "request") -> str:
    """The request in the template's words; raises UserError for a template that fails."""
    try:
        return _worded(template, query, tuple(history))
    except Exception as error:  # a template is a program of the user's
        found = str(error) or type(error).__name__
        raise UserError(f"{where}: request: {found}; a jinja2 template of query and history is wanted") from error


def query_in(template: str, request: str) -> str:
    """The query that a template of the query alone worded as `request`; empty where it cannot be told."""
    if template_variables(template) != {"query"}:
        return ""
    mark = "\ufffc"  # stands for an object in a text, and so hardly ever in a query or a template
    before, _, after = sanitise_lines(render_request(template, mark, ())).partition(mark)
    worded = request.startswith(before) and request.endswith(after) and len(request) >= len(before) + len(after)
    return request[len(before) : len(request) - len(after)] if worded and mark not in after else ""


def asked_query(example: RankingExample) -> str:
    """The query alone, without the words that a task of one's own puts around it; empty where there is none, or it cannot be told."""
    if example.query or not example.request:
        return example.query
    task = TASKS.get(example.task)
    return query_in(task.request, example.request) if task is not None and task.scenario == "own" else ""


def request_of(example: RankingExample) -> str:
    """What a request says, without its candidates: its query, else its history, an item a line, else its wording."""
    return asked_query(example) or "\n".join(example.history) or example.request or example.problem


@lru_cache(maxsize=64)
def template_variables(template: str) -> frozenset[str]:
    """Which of `query` and `history` a template speaks of."""
    from jinja2 import Environment, meta

    return frozenset(meta.find_undeclared_variables(Environment().parse(template))) & {"query", "history"}


@lru_cache(maxsize=64)  # the sub-pools of an example come one after the other
def _worded(template: str, query: str, history: tuple[str, ...]) -> str:
    return _compiled(template).render(query=query, history=list(history)).strip()


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(template)


def write_tasks(tasks: Sequence[Task], path: Path) -> None:
    """Write tasks of one's own as YAML."""
    import yaml

    entries = []
    for task in tasks:
        values = asdict(task) | {"cutoffs": list(task.cutoffs)}
        entries.append({key: values[key] for key in _FIELDS})
    path.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")


def register_tasks_of(directory: Path) -> list[str]:
    """Register the tasks that a data set brings; returns their names. Raises UserError where one is known by other words."""
    file = directory / TASKS_FILE
    if not file.is_file():
        return []
    entries = _yaml(str(file))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file}: a list of tasks is wanted")
    tasks = [_task(entry, str(file)) for entry in entries]
    for task in tasks:
        ensure_registered(task)
    return [task.name for task in tasks]


def ensure_registered(task: Task) -> None:
    """Register `task` unless it is known; raises UserError where it is known by other words."""
    if TASKS.setdefault(task.name, task) != task:
        raise UserError(f"task {task.name!r} is known by other words already; another name is wanted")


def _yaml(path: str) -> Any:
    import yaml

    try:
        read = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        json.dumps(read, ensure_ascii=False, default=str).encode()  # half a surrogate pair can be escaped in YAML
        return read
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a task in YAML is wanted") from error
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
