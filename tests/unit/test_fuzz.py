"""Up to two hundred seeded cases of each kind of hostile text; `python -m tests.fuzz` runs many more."""

from __future__ import annotations

import pytest
from fuzz.kinds import KINDS, run

CASES = {"reports": 40, "training_parquet": 100, "own_files": 100, "paths": 30, "experiment_texts": 60}


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_does_no_harm(kind: str) -> None:
    wanted = CASES.get(kind, 200)
    assert run(kind, wanted) >= wanted / 2
