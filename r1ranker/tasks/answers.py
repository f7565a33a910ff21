"""From a completion to its thought and the candidates it names. The one parser, for reward and for ranking alike."""

from __future__ import annotations

import ast
import html
import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from rapidfuzz import fuzz, process

from r1ranker.tasks.labels import AnswerStyle, bare_label_pattern, by_letter, is_behind, label_pattern, place_of
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import canonical, sanitise, undo_look_alikes

SIMILARITY = 90.0
"""rapidfuzz ratio, 0 to 100, from which a name that is written slightly wrong counts as meant"""
SHORTEST_WITHIN = 4
"""characters that a name needs to be looked for inside a sentence"""

_QUOTES = "\"'`´‘’“”«»*_"
_MARKER = re.compile(r"^\s*(?:[-*•·–—+>]|\*{0,2}\(?\d{1,3}(?:[.):]|\s-)\*{0,2}|\[\d{1,3}\]|#\d{1,3}[.:]?)\s+")
_TIGHT_MARKER = re.compile(r"^\s*\(?\d{1,3}[.):]")
_POINTED = re.compile(r"[\"“]([^\"“”]+)[\"”]|\*\*(.+?)\*\*|\\boxed\{([^{}]+)\}|`([^`]+)`|:\s+(.+)$")
"""the part of a sentence that it points at"""
_SEPARATOR = re.compile(r"\s*(?:,|;|\||→|->|>)\s*")
_NUMBERED = re.compile(r"(?:^|\s)\(?(\d{1,3})[.)]\s+")
_NUMERALS = re.compile(r"\w*\d\w*|\b[ivxlc]+\b")
_GOES_ON = re.compile(r"[-.]\w|\s+(?:\d+|[ivx]{2,}|v|x)\b")
"""behind a name: it is the beginning of another one, as "Heat" is of "Heat II" """
LONGEST_CACHED = 300


def prepend_prefill(completion: str, think: bool) -> str:
    """The completion with the tag that the prompt had already opened, unless it has it itself."""
    tag = "<think>" if think else "<answer>"
    return completion if completion.lstrip().startswith(tag) else tag + completion


def normalise(text: str) -> str:
    """`text` without differences that do not make another name: entities, quotes around it, case, width, white space."""
    return _normalised_name(text) if len(text) <= LONGEST_CACHED else _normalised(text)


def _normalised(text: str) -> str:
    previous = None
    while previous != text:
        previous, text = text, html.unescape(unicodedata.normalize("NFKC", undo_look_alikes(text)))
    text = " ".join(text.casefold().split())
    stripped = text.strip(_QUOTES + " ").rstrip(".,;:" + _QUOTES + " ")
    return stripped or text


_normalised_name = lru_cache(maxsize=65536)(_normalised)


@dataclass(frozen=True)
class ParsedAnswer:
    """What a completion says."""

    thought: str
    answer: str | None
    """text of the last answer block; None where there is none"""
    named: tuple[int, ...]
    """indices of the candidates named, each once, in order"""
    unmatched: tuple[str, ...] = ()
    """pieces of the answer that name no candidate, or more than one"""

    def without(self, out: Collection[int]) -> ParsedAnswer:
        """The same where the candidates at the places `out` are none."""
        gone = tuple(f"candidate {place}" for place in self.named if place in out)
        if not gone:
            return self
        named = tuple(place for place in self.named if place not in out)
        return replace(self, named=named, unmatched=(*self.unmatched, *gone))

    def is_valid(self, mode: Mode, candidates: int) -> bool:
        """Whether the answer can be used as it is: one name, or in a direct ranking every name, and nothing else."""
        return len(self.named) == (candidates if mode == "direct" else 1) and not self.unmatched


class CandidateMatcher:
    """Finds the candidate that a piece of text means: exactly, after normalisation, then by similarity; never a tie."""

    def __init__(self, candidates: Sequence[str], answer_style: AnswerStyle = "name") -> None:
        self.answer_style = answer_style
        self._exact = {canonical(name): index for index, name in enumerate(candidates)}
        self._exact.update({sanitise(name): index for index, name in enumerate(candidates)})
        self._exact.update({name: index for index, name in enumerate(candidates)})
        self._candidates = tuple(candidates)
        self._forms = [normalise(name) for name in candidates]
        self._by_form: dict[str, int | None] = {}
        for index, form in enumerate(self._forms):
            self._by_form[form] = None if form in self._by_form else index

    @cached_property
    def most_separators(self) -> int:
        """Separators in the name that has most of them."""
        return max((len(_SEPARATOR.findall(name)) for name in self._candidates), default=0)

    def match(self, text: str) -> int | None:
        """Index of the candidate that `text` means, or None."""
        found = self.match_exact(text)
        if found is None:
            pointed = {self.match_exact(part) for parts in _POINTED.findall(text) for part in parts if part}
            pointed.discard(None)
            found = pointed.pop() if len(pointed) == 1 else None
        return self._within(text) if found is None else found

    def match_exact(self, text: str) -> int | None:
        """The same without names inside sentences and without slips of spelling."""
        text = text.strip()
        if self.answer_style != "name":
            bare = bare_label_pattern(self.answer_style).fullmatch(text)
            labels = label_pattern(self.answer_style).findall(text) or ([bare.group(1)] if bare else [])
            places = {place_of(label) for label in labels}
            if len(places) == 1 and min(places) in range(len(self._candidates)):
                return places.pop()
            if labels and not (bare and by_letter(self.answer_style)):  # two letters may be a name as well
                return None
        # a leading number may be part of the name ("12 Angry Men"): taken off only where the whole matches nothing
        unmarked = _MARKER.sub("", text, count=1)
        for written in (text, canonical(text), unmarked, unmarked.strip(_QUOTES + ", ")):
            if written in self._exact:
                return self._exact[written]
        for form in (normalise(text), normalise(unmarked), normalise(_TIGHT_MARKER.sub("", text, count=1))):
            if form in self._by_form:
                return self._by_form[form]
        return None

    def _within(self, text: str) -> int | None:
        form = normalise(_MARKER.sub("", text.strip(), count=1))
        if not form:
            return None
        spans: list[tuple[int, int, int]] = []
        for index, name in enumerate(self._forms):
            if len(name) >= SHORTEST_WITHIN and name in form:  # few are: the expression is for these alone
                spans += [
                    (found.start(), found.end(), index)
                    for found in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", form)
                    if not _GOES_ON.match(form, found.end())
                ]
        outer = {
            index
            for start, end, index in spans
            if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
        }
        if outer:
            index = outer.pop()
            return index if not outer and self._by_form[self._forms[index]] is not None else None
        return self._similar(form)

    def _similar(self, form: str) -> int | None:
        best = process.extract(form, self._forms, scorer=fuzz.ratio, score_cutoff=SIMILARITY, limit=2)
        # another number is another thing: "passage 1" is not "passage 10", nor "Rocky II" "Rocky III"
        if not best or _NUMERALS.findall(best[0][0]) != _NUMERALS.findall(form):
            return None
        if len(best) > 1 and best[0][1] == best[1][1]:
            return None
        return int(best[0][2])


_matcher = lru_cache(maxsize=256)(CandidateMatcher)
"""a prompt's samples have a pool in common"""


def parse_answer(
    completion: str, candidates: Sequence[str], mode: Mode, answer_format: AnswerFormat | None = None
) -> ParsedAnswer:
    """Thought and named candidates of a completion, with or without the tag that the prompt had opened.

    direct: the answer is a list, in lines, numbered, with bullets, separated by commas, semicolons or '>', or as JSON.
    iterative: the answer is one name; an answer that names several names none.
    """
    answer_format = answer_format or AnswerFormat()
    text = prepend_prefill(completion, answer_format.think)
    thought = _between(text, text.find("<think>"), "<think>", "</think>")
    answer = _last_block(text)
    if answer is None:
        return ParsedAnswer(thought, None, ())
    matcher = _matcher(tuple(candidates), answer_format.answer_style)
    named: list[int] = []
    unmatched: list[str] = []
    whole = matcher.match_exact(answer) if mode == "iterative" else None
    if whole is not None:
        return ParsedAnswer(thought, answer, (whole,))
    for found, piece in _pieces(answer, matcher):
        if found is None:
            unmatched.append(piece)
        elif found not in named:
            named.append(found)
    if mode == "iterative" and len(named) != 1:
        return ParsedAnswer(thought, answer, (), (answer,))
    return ParsedAnswer(thought, answer, tuple(named), tuple(unmatched))


def _last_block(text: str) -> str | None:
    """What stands between the last <answer> that is closed and the first </answer> behind it."""
    start = text.rfind("<answer>", 0, max(0, text.rfind("</answer>")))  # one behind the last </answer> is not closed
    return None if start < 0 else text[start + len("<answer>") : text.find("</answer>", start)]


def _between(text: str, start: int, opening: str, closing: str) -> str:
    if start < 0:
        return ""
    end = text.find(closing, start)
    return text[start + len(opening) : end if end >= 0 else len(text)].strip()


def _pieces(answer: str, matcher: CandidateMatcher) -> list[tuple[int | None, str]]:
    """The answer's pieces, each with the candidate it means."""
    if matcher.answer_style != "name" and len(labels := label_pattern(matcher.answer_style).findall(answer)) > 1:
        if is_behind(matcher.answer_style) and (repeated := _listed_before_labels(answer, matcher)):
            return repeated
        return [(matcher.match_exact(f"[{label}]"), f"[{label}]") for label in labels]
    listed = _as_list(answer.strip())
    lines = listed if listed is not None else [line for line in answer.split("\n") if line.strip()]
    pieces: list[tuple[int | None, str]] = []
    for line in lines:
        found = matcher.match_exact(line)
        if found is not None:
            pieces.append((found, line))
        else:
            pieces += _parts(line, matcher)
    return pieces


def _listed_before_labels(answer: str, matcher: CandidateMatcher) -> list[tuple[int | None, str]]:
    """Of several lines that all repeat a candidate's with its label behind, those labels alone; a name may hold others."""
    lines = [line for line in answer.split("\n") if line.strip()]
    pieces: list[tuple[int | None, str]] = []
    for line in lines if len(lines) > 1 else ():
        text, opening, label = line.rstrip().rpartition("[")
        if not text.strip(" -") or label_pattern(matcher.answer_style).fullmatch(opening + label) is None:
            return []
        pieces.append((matcher.match_exact(opening + label), line))
    return pieces


def _as_list(text: str) -> list[str] | None:
    """The strings of a JSON or Python list."""
    if not (text.startswith("[") and text.endswith("]")) or len(text) > 100_000:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            if isinstance(value, list) and value and all(isinstance(item, str | int) for item in value):
                return [str(item) for item in value]
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _parts(line: str, matcher: CandidateMatcher) -> list[tuple[int | None, str]]:
    """A line that is no single name: several names with numbers or separators between them, or a sentence."""
    numbered = [part for part in _NUMBERED.split(line)[2::2] if part.strip()]
    if len(numbered) > 1:
        matched = [(matcher.match(part.strip().rstrip(",;")), part) for part in numbered]
        if sum(found is not None for found, _ in matched) > 1:
            return matched
    tokens = list(_SEPARATOR.finditer(line))
    if not tokens:
        return [(matcher.match(line), line)]
    starts = [0, *(token.end() for token in tokens)]
    ends = [*(token.start() for token in tokens), len(line)]
    parts: list[tuple[int | None, str]] = []
    place = 0
    while place < len(starts):
        # names hold separators too: the longest run of pieces that is a name is taken
        for last in range(min(len(starts) - 1, place + matcher.most_separators), place - 1, -1):
            piece = line[starts[place] : ends[last]].strip()
            found = matcher.match_exact(piece)
            if found is None:  # the list's own brackets; a name may end with one as well
                found = matcher.match_exact(piece.strip("[]() "))
            if found is not None:
                parts.append((found, piece))
                place = last + 1
                break
        else:
            piece = line[starts[place] : ends[place]].strip()
            if piece:
                parts.append((None, piece))
            place += 1
    if all(found is None for found, _ in parts):
        return [(matcher.match(line), line)]
    return [(matcher.match(piece) if found is None else found, piece) for found, piece in parts]
