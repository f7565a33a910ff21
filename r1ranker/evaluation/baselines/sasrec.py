"""SASRec (Kang and McAuley, 2018) through cornac: what a small sequence model without language makes of the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.evaluation.baselines.sequences import Items, item_of
from r1ranker.tasks.example import RankingExample

BATCH = 128


def is_installed() -> bool:
    """Whether the library is there; it comes with the extra `baselines`."""
    return find_spec("cornac") is not None


class SASRec(ScoringBaseline):
    """Self-attention over the history's items, trained to tell each next item of the sequences from sampled others.

    Others are drawn uniformly over the items of training, as pools are, so that scores keep what popularity tells. An item
    that training does not know comes last. One thread, so that a seed repeats exactly. Sizes are those of the small
    rankers; the number of steps was chosen on users of ml-100k's
    training side.
    """

    name = "SASRec"

    def __init__(
        self,
        sequences: Sequence[Items],
        history: int,
        dimensions: int = 64,
        blocks: int = 2,
        steps: int = 1500,
        seed: int = 0,
    ) -> None:
        """`sequences`: of the training rows, see `reconstruct_sequences`; `history`: the most items that are looked back at;
        `steps`: updates at least, each from BATCH next items, in whole epochs.

        Raises UserError where cornac is not installed.
        """
        if not is_installed():
            raise UserError("SASRec: cornac is not installed; pip install 'r1ranker[baselines]'")
        from cornac.data import SequentialDataset
        from cornac.models.sasrec import SASRec as CornacSASRec

        taken = [(user, item, place) for user, items in enumerate(sequences) for place, item in enumerate(items)]
        data = SequentialDataset.from_sit(taken, seed=seed)
        self._place: dict[str, int] = dict(data.iid_map)
        targets = sum(len(items) - 1 for items in sequences)
        epochs = math.ceil(steps / math.ceil(max(targets, 1) / BATCH))
        self._model = CornacSASRec(
            embedding_dim=dimensions,
            num_blocks=blocks,
            max_len=history,
            n_epochs=epochs,
            batch_size=BATCH,
            n_sample=1024,
            sample_alpha=0.0,
            dropout=0.2,
            learning_rate=1e-3,
            seed=seed,
        )
        with _alone(seed):
            self._model.fit(data)

    def scores(self, example: RankingExample) -> list[float]:
        """The logit of each candidate as next item; -inf for an item that training does not know."""
        history = [self._place[item] for item in map(item_of, example.history) if item in self._place]
        places = [self._place.get(item_of(name)) for name in example.candidates]
        with _alone(0):
            logits = self._model.score(None, history)
        return [-math.inf if place is None else float(logits[place]) for place in places]


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread, and a generator of its own: the library seeds torch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
