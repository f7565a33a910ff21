"""What can be asked of an evaluation, and the words for it in the name of a result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1ranker.device import is_usual_dtype
from r1ranker.errors import check_at_least
from r1ranker.ranking.ranker import check_lengths
from r1ranker.ranking.settings import (
    EliminationSettings,
    RankerSettings,
    Rounds,
    ShotSettings,
    Strategy,
    WindowSettings,
)
from r1ranker.tasks.catalog import HUB_ID
from r1ranker.tasks.labels import AnswerStyle
from r1ranker.tasks.prompts import Mode

ALL = "all"
"""in place of a task's name"""
_PARTED = (
    ("elimination", "eliminate", "out"),
    ("elimination", "votes", "votes"),
    ("elimination", "top_k", "top"),
    ("windows", "size", "window"),
    ("windows", "step", "step"),
    ("windows", "passes", "passes"),
    ("windows", "inside", "inside"),
)
"""settings and the words for those that are not the usual ones"""
LONGEST_TASKS = 40
"""characters of the tasks' names in that of a file; of more there is only their number"""


@dataclass(frozen=True)
class EvaluationOptions:
    """What can be asked of an evaluation; None leaves a choice to the model's own settings."""

    data: str = HUB_ID
    limit: int | None = None
    """rows a task at most"""
    seed: int = 0
    output_dir: str = "eval/eval_result"
    strategy: Strategy | None = None
    mode: Mode | None = None
    """what it is asked for by strategies other than iterative and direct"""
    constrain: Any = None
    think: bool | None = None
    answer_style: AnswerStyle | None = None
    max_tokens: int | None = None
    """of an answer"""
    max_model_len: int | None = None
    """tokens of a prompt and an answer that the engine holds; None: what the longest prompt needs"""
    passage_tokens: int | None = None
    """of a candidate's text at most"""
    elimination: EliminationSettings = field(default_factory=EliminationSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)
    shots: ShotSettings = field(default_factory=ShotSettings)
    engine: str = "hf"
    dtype: str = "auto"
    """auto | float32 | bfloat16: of what the model is computed in"""
    gpu: int = 0
    baselines: bool = False
    """all of them, not only those that every table has"""
    interactions: str | None = None
    """a directory with RecBole's files: with the baselines, popularity over all that was taken, by whomever"""
    router_data: str | None = None
    """router_data.csv[.gz] that the routing rows were made from: quality and cost of the LLMs that come first"""
    baseline_models: Mapping[str, str] = field(default_factory=dict)
    """kind -> directory or hub id, of baselines whose weights come from elsewhere"""
    rounds: Rounds | None = None
    """whether each elimination is asked anew, or all are turns of one conversation"""

    @property
    def computes_otherwise(self) -> bool:
        """Whether the model is computed in another type than it would be anyway."""
        return not is_usual_dtype(self.dtype)

    def check(self) -> None:
        """Raise UserError for values out of range."""
        if self.limit is not None:
            check_at_least("--limit", self.limit, 1)
        check_lengths(self.max_tokens, self.max_model_len)
        RankerSettings(
            seed=self.seed,
            elimination=self.elimination,
            windows=self.windows,
            passage_tokens=self.passage_tokens,
            shots=self.shots,
        ).check()


def name_parts(
    dataset: str, tasks: Sequence[str], model_path: str, settings: RankerSettings, options: EvaluationOptions
) -> tuple[str, str]:
    """What stands before and after the model in a result's name: tasks, then strategy and what else is not the usual way."""
    own = RankerSettings.from_pretrained(model_path)
    few = "+".join(tasks)
    head = dataset if dataset == ALL else few if len(few) <= LONGEST_TASKS else f"{len(tasks)}-tasks"
    parts: list[str] = [settings.strategy]
    if settings.mode != own.trained and settings.mode != settings.strategy:
        parts.append(settings.mode)
    if settings.answer_format.think != own.answer_format.think:
        parts.append("think" if settings.answer_format.think else "no-think")
    if settings.answer_format.answer_style != own.answer_format.answer_style:
        parts.append(settings.answer_format.answer_style.replace("_", "-"))  # tables split names at _
    if settings.constrain != own.constrain:
        parts.append(f"constrain-{settings.constrain}")
    usual = RankerSettings()
    for group, key, name in _PARTED:
        value = getattr(getattr(settings, group), key)
        if value != getattr(getattr(usual, group), key):
            parts.append(f"{name}-{value}")
    if settings.rounds != own.rounds:
        parts.append(settings.rounds)
    if settings.max_tokens != own.max_tokens:
        parts.append(f"tokens-{settings.max_tokens}")
    if settings.passage_tokens is not None:
        parts.append(f"passages-{settings.passage_tokens}")
    if settings.shots.bank is not None:
        parts.append(f"thoughts-{settings.shots.count}")
        said = (getattr(settings.shots, key) for key in ("similarity", "within", "content"))
        parts += [
            word for word in said if word not in (usual.shots.similarity, usual.shots.within, usual.shots.content)
        ]
    if settings.seed:
        parts.append(f"seed-{settings.seed}")
    if options.limit is not None:
        parts.append(f"first-{options.limit}")
    if options.baselines:
        parts.append("baselines")
    parts += options.baseline_models
    if options.computes_otherwise:
        parts.append(options.dtype)
    return head, "_".join(parts)
