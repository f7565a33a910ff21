"""Names of result files: short where they are alone, and with what tells them apart where they are not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1ranker.errors import UserError, note
from r1ranker.evaluation.identity import About, about_of, digest_of, is_same, lengthening_names, run_tag

RESULT, JOURNAL = ".json", ".part.jsonl"
"""how the names of a result file and of its journal end"""
MOST_BYTES = 180
"""of a name: files are written beside their place, under a longer one"""
_UNKNOWN: About = {}
"""of a file that is there and does not say what it is of"""


@dataclass(frozen=True)
class Unnamed:
    """A result that wants a name."""

    about: About
    head: str
    """before the model, such as the task"""
    tail: str
    """after it, such as the strategy"""

    def name(self, place: int, apart: str = "") -> str:
        """With the model's name of that place in `lengthening_names`."""
        parts = [self.head, _longer(self.about["model"], place), self.tail, *filter(None, [apart])]
        name = "_".join(part.replace("/", "-") for part in parts)
        encoded = name.encode("utf-8", "surrogatepass")
        if len(encoded) <= MOST_BYTES:
            return name
        return f"{encoded[:MOST_BYTES].decode('utf-8', 'ignore')}-{digest_of(self.about)}"

    def names(self, rivals: Sequence[About]) -> Iterator[str]:
        """Names that set it apart from `rivals`, the shortest first; the last one holds a digest of all that it is of."""
        models = [about["model"] for about in (self.about, *rivals) if "model" in about]
        places = range(max(len(lengthening_names(model, "-")) for model in models))
        for key in ("", "data", "engine"):
            depths = range(len(lengthening_names(str(self.about.get(key)), "-"))) if key else (0,)
            for depth in depths:
                apart = f"{key}-{_longer(str(self.about[key]), depth)}" if key and self.about.get(key) else ""
                for place in places:
                    if all(self._differs(rival, place, key, depth) for rival in rivals):
                        yield self.name(place, apart)
        yield self.name(0, digest_of(self.about))

    def _differs(self, rival: About, place: int, key: str, depth: int) -> bool:
        """Whether a name tells a rival apart: by the model, or by `key` where the model is the same."""
        if "model" not in rival:
            return False
        if _longer(rival["model"], place) != _longer(self.about["model"], place):
            return True
        return bool(key and key in rival and _longer(str(rival[key]), depth) != _longer(str(self.about[key]), depth))


def choose_names(results: Sequence[Unnamed], directory: Path, trec_dir: Path | None = None) -> list[str]:
    """A name for each result in `directory`, and for its TREC files in `trec_dir`: none that holds something else already.

    The same results get the same names again. Raises UserError where even a name with a digest is taken.
    """
    chosen: list[str] = []
    for own in results:
        rivals = [one.about for one in results if one is not own and (one.head, one.tail) == (own.head, own.tail)]
        taken = set(chosen)
        while True:
            name = next((name for name in own.names(rivals) if name not in taken), None)
            if name is None:
                raise UserError(
                    f"{directory / (own.name(0, digest_of(own.about)) + RESULT)}: something else is there; another "
                    "--output_dir is wanted"
                )
            found = _find_other(own, name, directory, trec_dir)
            if found is None:
                break
            rivals.append(found)
            taken.add(name)
        chosen.append(name)
        if taken - set(chosen):
            note(f"{directory / own.name(0)}{RESULT} is of another evaluation; this one's file is {name}{RESULT}")
    return chosen


def _find_other(own: Unnamed, name: str, directory: Path, trec_dir: Path | None) -> About | None:
    """What is there under a name, where that is of something else than `own`."""
    for file in (directory / f"{name}{RESULT}", directory / f"{name}{JOURNAL}"):
        if file.exists():
            found = _read_about(file)
            if found is not None and not is_same(found, own.about):
                return found
    if (directory / f"{name}{RESULT}").exists():
        return None  # its TREC files are its own, whatever an earlier version called them
    if trec_dir is not None:
        for file in (trec_dir / name).glob("*.run"):
            with file.open(encoding="utf-8", errors="replace") as lines:
                if lines.readline().split()[-1:] != [run_tag(own.about)]:
                    return _UNKNOWN
    return None


def _read_about(file: Path) -> About | None:
    """What a result or a journal says that it is of; None: a journal that holds nothing, since a kill cut its first line."""
    is_journal = file.name.endswith(JOURNAL)
    try:
        with file.open(encoding="utf-8") as lines:
            found = json.loads(lines.readline() if is_journal else lines.read())
        return about_of(found) if isinstance(found["model"], str) else _UNKNOWN
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None if is_journal else _UNKNOWN


def _longer(path: str, place: int) -> str:
    names = lengthening_names(path, "-")
    return names[min(place, len(names) - 1)]
