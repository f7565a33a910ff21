"""Baselines by who took what: popularity, item co-occurrence and BPR. An item is its title, whichever source wrote it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from r1ranker.data.files.tally import TaskTally
from r1ranker.data.sources.recommendation import read_interactions, read_titles
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.evaluation.baselines.sequences import Items, item_of
from r1ranker.tasks.example import RankingExample


class Popularity(ScoringBaseline):
    """Candidates by how often they were taken."""

    def __init__(self, taken: Mapping[str, int], name: str = "popularity") -> None:
        """`taken`: item, as `item_of` writes it -> times; others were never taken."""
        self.name = name
        self._taken = taken

    @classmethod
    def of_sequences(cls, sequences: Sequence[Items]) -> Popularity:
        """By the number of users of training rows (see `reconstruct_sequences`) who took an item."""
        return cls(Counter(item for items in sequences for item in items))

    @classmethod
    def of_interactions(cls, inter: str, item: str, test: Sequence[RankingExample]) -> Popularity:
        """By the number of interactions in RecBole's atomic files, items of one title taken together.

        Of a user of a test row only what it had when the first of its histories ended counts: that history's target and
        all that follows is left out. A test row has no user's id, so its user is found by the history, and whoever else
        took the same items in a row is cut as well. Interactions of other users count whenever they were, also after the test row's own time.
        Raises UserError where the files hold no user of one of the test rows, whose target would then be counted.
        """
        titles = read_titles(item, TaskTally())
        read = read_interactions(inter)
        form_of = [item_of(titles[name]) if name in titles else None for name in read.items]
        shown = {tuple(map(item_of, example.history)) for example in test}
        lengths = {len(history) for history in shown}
        order = np.lexsort((np.arange(len(read.user_codes)), read.timestamps, read.user_codes))
        bounds = np.flatnonzero(np.diff(read.user_codes[order], prepend=-1, append=-1))
        taken: Counter[str] = Counter()
        found = set()
        for start, end in pairwise(bounds):
            forms = [form for form in (form_of[code] for code in read.item_codes[order[start:end]]) if form is not None]
            first = list(dict.fromkeys(forms))  # a reader may have left out what a user took again
            ends = []
            for one, length in ((one, length) for one in (forms, first) for length in lengths):
                for end_of_history in range(length, len(one) + 1):
                    window = tuple(one[end_of_history - length : end_of_history])
                    if window in shown:
                        found.add(window)
                        ends.append(end_of_history)
            taken.update(forms[: min(ends, default=None)])
        if len(found) < len(shown):
            raise UserError(
                f"{inter}: no user has the history of {len(shown) - len(found)} of {len(shown)} test rows, "
                "so their targets cannot be left out; the file that the rows were made from is wanted"
            )
        return cls(taken, "popularity, all interactions")

    def scores(self, example: RankingExample) -> list[float]:
        """How often each candidate was taken."""
        return [float(self._taken.get(item_of(name), 0)) for name in example.candidates]


class CoOccurrence(ScoringBaseline):
    """Candidates by how many users of training rows took both them and an item of the history, summed over the history."""

    name = "co-occurrence"

    def __init__(self, sequences: Sequence[Items]) -> None:
        """`sequences`: of the training rows, see `reconstruct_sequences`."""
        self._users: dict[str, set[int]] = {}
        for user, items in enumerate(sequences):
            for item in items:
                self._users.setdefault(item, set()).add(user)

    def scores(self, example: RankingExample) -> list[float]:
        """The number of (user, item of the history) that each candidate comes together with."""
        together: Counter[int] = Counter()  # user -> items shared with the history
        for item in set(map(item_of, example.history)):
            together.update(self._users.get(item, ()))
        return [
            float(sum(together[user] for user in self._users.get(item_of(name), ()))) for name in example.candidates
        ]


class BPR(ScoringBaseline):
    """Matrix factorisation by Bayesian personalised ranking (Rendle et al., 2009) through implicit.

    A user of a test row was not there in training: its vector is the mean of the factors of its history's items, those
    that training knows. An item that training does not know comes last. One thread, so that a seed repeats exactly.
    """

    name = "BPR"

    def __init__(self, sequences: Sequence[Items], factors: int = 16, iterations: int = 100, seed: int = 0) -> None:
        """`sequences`: of the training rows, see `reconstruct_sequences`."""
        from implicit.cpu.bpr import BayesianPersonalizedRanking
        from scipy.sparse import csr_matrix

        names = sorted({item for items in sequences for item in items})
        self._place = {item: place for place, item in enumerate(names)}
        columns = [self._place[item] for items in sequences for item in items]
        users = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences])
        matrix = csr_matrix(
            (np.ones(len(columns), dtype=np.float32), (users, columns)), shape=(len(sequences), len(self._place))
        )
        model = BayesianPersonalizedRanking(
            factors=factors,
            learning_rate=0.05,
            regularization=0.01,
            iterations=iterations,
            num_threads=1,
            random_state=seed,
        )
        model.fit(matrix, show_progress=False)
        self._factors, self._bias = model.item_factors[:, :-1], model.item_factors[:, -1]

    def scores(self, example: RankingExample) -> list[float]:
        """user . item + the item's bias; -inf for an item that training does not know."""
        known = [self._place[item] for item in dict.fromkeys(map(item_of, example.history)) if item in self._place]
        user = self._factors[known].mean(axis=0) if known else np.zeros(self._factors.shape[1], dtype=np.float32)
        places = [self._place.get(item_of(name)) for name in example.candidates]
        return [
            -math.inf if place is None else float(self._factors[place] @ user + self._bias[place]) for place in places
        ]
