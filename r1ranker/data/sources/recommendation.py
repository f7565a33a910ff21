"""Recommendation from RecBole's atomic files: who took which item when (.inter), and what the items are called (.item)."""

from __future__ import annotations

import html
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from r1ranker.data.files.tally import TaskTally
from r1ranker.data.files.text_rows import MISSING, TextTable, parse_finite
from r1ranker.data.sources.source_example import SourceExample
from r1ranker.errors import UserError, check_at_least
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import one_line

LONGEST_TITLE = 200
"""characters; longer ones are fragments of web pages"""
_ITEM_HEADER = "item_id:token<tab>title:token_seq"
_INTER_HEADER = "user_id:token<tab>item_id:token<tab>rating:float<tab>timestamp:float"
_NAMES = ("name", "item_name", "movie_name", "app_name")
"""what RecBole's data sets call a title else"""
RECBOLE_DATA_SETS = {"Rec-Movie": "ml-1m", "Rec-Music": "Amazon_CDs_and_Vinyl", "Rec-Game": "Amazon_Video_Games"}
"""task -> the name of its RecBole data set, where no other is named"""


@dataclass(frozen=True)
class RecommendationSettings:
    """How users become examples; the published values."""

    history: int = 20
    """items shown; the one after them is the positive"""
    candidates: int = 20
    """the positive and others that the user never took"""
    users: int = 657
    """drawn from those with enough history; 0: all of them"""
    seed: int = 42
    positions: int = 1
    """requests of a user at most, spread over what it took"""
    pools: int = 1
    """of a request, each with other candidates; for training rows"""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--history", self.history, 1),
            ("--candidates", self.candidates, 2),
            ("--users", self.users, 0),
            ("--positions", self.positions, 1),
            ("--pools", self.pools, 1),
        ):
            check_at_least(name, value, least)

    def targets(self, length: int) -> list[int]:
        """Places of the positives in a user's sequence of more than `history` items; the `history` items before each are shown.

        Evenly spread from the first that there can be: neighbouring ones would have all but one item of their histories
        in common. The first is the only one where a single position is asked for.
        """
        room = length - self.history
        count = min(self.positions, room)
        return [self.history + place * room // count for place in range(count)]


@dataclass
class Interactions:
    """Who took what, in what order: users and items by code."""

    users: list[str]
    items: list[str]
    user_codes: np.ndarray
    item_codes: np.ndarray
    timestamps: np.ndarray


def read_recommendation(
    task: str, inter: str, item: str, settings: RecommendationSettings, tally: TaskTally
) -> Iterator[SourceExample]:
    """Examples of the users drawn: `history` items in a row, the next one as positive, others that the user never
    took; one such example at each of `positions` places of the user's sequence, with `pools` - 1 more of other candidates.

    Items come in order of the timestamp column (else position), equal ones as in the file. Titles are
    told apart by what a reader sees: a user's second item of a title is left out, and no pool holds a title twice.
    Raises UserError naming file and line for whatever cannot be read, and where no user has enough items.
    """
    titles = read_titles(item, tally)
    read = read_interactions(inter)
    if titles and titles.keys().isdisjoint(read.items):
        raise UserError(
            f"{inter}: item_id: none is among those of {item} that have a title; found {read.items[0]!r} and "
            f"{next(iter(titles))!r}; the same ids are wanted in both"
        )
    tally.read["interactions"] += len(read.user_codes)
    form_of = {name: normalise(title) for name, title in titles.items()}
    title_of = {form: titles[name] for name, form in reversed(form_of.items())}
    if len(title_of) < settings.candidates + settings.history:
        raise UserError(f"{item}: {len(title_of)} titles; at least {settings.candidates + settings.history} are wanted")
    order = np.lexsort((np.arange(len(read.user_codes)), read.timestamps, read.user_codes))
    bounds = np.flatnonzero(np.diff(read.user_codes[order], prepend=-1, append=-1))
    taken: dict[str, list[str]] = {}
    tied: set[str] = set()
    for start, end in pairwise(bounds):
        rows = order[start:end]
        user = read.users[int(read.user_codes[rows[0]])]
        forms = [form_of.get(read.items[int(code)]) for code in read.item_codes[rows]]
        tally.left_out["interactions with an item that has no title"] += forms.count(None)
        known = [form for form in forms if form is not None]
        first = list(dict.fromkeys(known))
        tally.left_out["interactions with a title the user had before"] += len(known) - len(first)
        tally.read["users"] += 1
        if len(first) <= settings.history:
            tally.left_out[f"users with {settings.history} titles or fewer"] += 1
            continue
        taken[user] = first
        times = read.timestamps[rows][: settings.targets(len(first))[-1] + 1]
        if len(set(times.tolist())) < len(times):
            tied.add(user)
    if not taken:
        raise UserError(f"{inter}: no user has more than {settings.history} titles; a smaller history is wanted")
    chosen = _draw(taken, settings, tally)
    tally.noted["users whose order rests on equal timestamps"] += len(tied.intersection(chosen))
    catalogue = sorted(title_of)
    for user in chosen:
        for target in settings.targets(len(taken[user])):
            example, *more = (
                _example(task, user, taken[user], target, catalogue, title_of, settings, number)
                for number in range(settings.pools)
            )
            yield SourceExample(user, example, variants=tuple(more))


def _draw(taken: dict[str, list[str]], settings: RecommendationSettings, tally: TaskTally) -> list[str]:
    """The users drawn; one whose first history and positive another one has already is left out, so that neither gives the other away."""
    requests: set[tuple[str, ...]] = set()
    usable = []
    for user in sorted(taken):
        request = tuple(taken[user][: settings.history + 1])
        if request in requests:
            tally.left_out["users with the same history and next item as another"] += 1
            continue
        requests.add(request)
        usable.append(user)
    if not settings.users or len(usable) <= settings.users:
        return usable
    tally.left_out[f"users beyond the {settings.users} drawn"] += len(usable) - settings.users
    return sorted(random.Random(settings.seed).sample(usable, settings.users))


def _example(
    task: str,
    user: str,
    taken: list[str],
    target: int,
    catalogue: list[str],
    title_of: dict[str, str],
    settings: RecommendationSettings,
    number: int,
) -> RankingExample:
    # what a user gets does not depend on who else there is, and the first request's first pool not on how many others follow
    place = f" {target}" if target > settings.history else ""
    place += f" pool {number}" if number else ""
    rng = random.Random(f"{settings.seed} {task} {user}{place}")
    known = set(taken)
    others: dict[str, None] = {}
    if len(catalogue) - len(known) < settings.candidates - 1:
        raise UserError(f"{task}: user {user!r} knows all but {len(catalogue) - len(known)} of the titles")
    while len(others) < settings.candidates - 1:
        form = catalogue[rng.randrange(len(catalogue))]
        if form not in known:
            others[form] = None
    positive = taken[target]
    pool = [positive, *others]
    rng.shuffle(pool)
    return RankingExample(
        task,
        tuple(title_of[form] for form in pool),
        title_of[positive],
        history=tuple(title_of[form] for form in taken[target - settings.history : target]),
    )


def read_titles(path: str, tally: TaskTally) -> dict[str, str]:
    """Item -> title of a .item file, from the column that `_title_place` finds; raises UserError naming file and line."""
    table = _atomic(path)
    (place,) = table.column_indices(["item_id"], _ITEM_HEADER)
    title_place = _title_place(table)
    titles: dict[str, str] = {}
    for line, row in table:
        name = row[place]
        if not name:
            raise UserError(f"{path}: line {line}: item_id is empty; an id is wanted")
        if name in titles:
            raise UserError(f"{path}: line {line}: item {name!r} stands there twice")
        tally.read["items"] += 1
        title = one_line(html.unescape(row[title_place]))
        if not title or not normalise(title) or title.lower() in MISSING:
            tally.left_out["items without a title"] += 1
        elif len(title) > LONGEST_TITLE:
            tally.left_out[f"items whose title is longer than {LONGEST_TITLE} characters"] += 1
        else:
            titles[name] = title
    return titles


def _title_place(table: TextTable) -> int:
    """The column `title`; else the one that ends in it, such as movie_title; else the one of `_NAMES`."""
    found = ["title"] if "title" in table.columns else []
    found = found or [name for name in table.columns if name.endswith("title") and not name.endswith("subtitle")]
    found = found or [name for name in table.columns if name in _NAMES]
    if len(found) != 1:
        several = f"found {' and '.join(found)}" if found else f"found {table.header}"
        raise UserError(
            f"{table.path}: line 1: no column 'title'; {several}; a header such as {_ITEM_HEADER} is wanted"
            " (a column that ends in title, or one called name, serves as well)"
        )
    table.once(found[0])
    return table.columns.index(found[0])


def read_interactions(path: str) -> Interactions:
    """The rows of a .inter file; raises UserError naming file and line."""
    table = _atomic(path)
    order = next((name for name in ("timestamp", "position") if name in table.columns), "timestamp")
    places = table.column_indices(["user_id", "item_id", order], _INTER_HEADER)
    user_place, item_place, order_place = places
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, times = array("q"), array("q"), array("d")
    for line, row in table:
        for name, place in (("user_id", user_place), ("item_id", item_place)):
            if not row[place]:
                raise UserError(f"{path}: line {line}: {name} is empty; an id is wanted")
        user.append(users.setdefault(row[user_place], len(users)))
        item.append(items.setdefault(row[item_place], len(items)))
        times.append(parse_finite(row[order_place], f"{path}: line {line}: {order}"))
    return Interactions(list(users), list(items), np.array(user), np.array(item), np.array(times))


def _atomic(path: str) -> TextTable:
    """A RecBole file: tabs, a header of name:type. Columns go by their names, in any order and in any case."""
    table = TextTable(path, "\t", quoted=False)
    table.columns = [name.split(":")[0].strip().casefold() for name in table.columns]
    return table
