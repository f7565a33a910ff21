"""What an experiment is: a file of configs/experiments/, with overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from yaml import YAMLError

from r1ranker.atomic import atomic_path
from r1ranker.choices import DTYPES
from r1ranker.data.options import PrepareOptions
from r1ranker.data.teacher import TEACHERS
from r1ranker.errors import UserError, check_at_least, first_line, suggest
from r1ranker.experiments.typed_yaml import VALUES_OF, has_type, in_words, is_text, parse_yaml, type_at
from r1ranker.ranking.settings import EliminationSettings
from r1ranker.tasks.catalog import TASK_NAMES
from r1ranker.trainer.config.overrides import as_yaml, literal

BUILT_IN = Path(__file__).parents[2] / "configs" / "experiments"


@dataclass
class DataSpec:
    """What is ranked, as `r1ranker prepare` takes it."""

    source: str | None = "toy"
    """null: wants `data.source=DIR`"""
    tasks: list[str] = field(default_factory=lambda: list(TASK_NAMES))
    size: int = 200
    """of the built-in sources: direct training rows a task"""
    options: dict[str, Any] = field(default_factory=dict, metadata={VALUES_OF: PrepareOptions})
    """others of prepare's, such as positions, users, recbole, test_share"""
    limit: int | None = None
    """test rows a task at most, evenly spread"""


@dataclass
class ModelSpec:
    """A model to begin with."""

    path: str | None = None
    """directory or hub id; without one, a small model is built"""
    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    vocab_size: int = 600
    title_tokens: bool = True
    title_words: bool = False
    """titles that share words begin alike"""
    turn_tokens: bool = False
    """what a conversation says between two eliminations is a token"""


@dataclass
class SFTSpec:
    """How a cold start learns; its steps are the experiment's `cold_start`."""

    lr: float = 1e-3
    batch_size: int = 32
    dtype: str = "auto"


@dataclass
class Arm:
    """One ranker of an experiment; what is null is as the experiment has it."""

    mode: str = "iterative"
    train: list[str] = field(default_factory=list)
    """tasks to learn from; all of the data's where there are none"""
    test: list[str] = field(default_factory=list)
    """tasks to be measured on; all of the data's where there are none"""
    model: dict[str, Any] = field(default_factory=dict, metadata={VALUES_OF: ModelSpec})
    """what is another in this arm's model"""
    config: str | None = None
    steps: int | None = None
    answer_style: str | None = None
    think: bool | None = None
    teacher: str | None = None
    """frequent | right: the cold start has a teacher's thoughts and answers"""
    overrides: list[str] = field(default_factory=list)
    """of the training config"""
    begun_as: str | None = None
    """another arm, whose trained ranker this one begins as"""
    trained_as: str | None = None
    """another arm, whose ranker this one asks in another way"""
    elimination: dict[str, int] = field(default_factory=dict)
    """eliminate, votes, top_k"""


@dataclass
class Harness:
    """Language tasks for lm-evaluation-harness."""

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    """a directory with tasks of one's own"""
    limit: int | None = None
    """questions a task"""


@dataclass
class Experiment:
    """A file of configs/experiments/."""

    title: str = "???"
    config: str = "quickstart"
    """of configs/: how rankers are trained"""
    steps: int | None = 80
    """null: as the config says"""
    cold_start: int = 40
    """steps of fine-tuning on random answers of the right form, before; 0: none"""
    think: bool = False
    constrain: str = "candidates"
    answer_style: str = "name"
    engine: str = "hf"
    seeds: list[int] = field(default_factory=lambda: [1])
    """of models, training and evaluation; the data are the same"""
    untrained: bool = True
    """measure each arm's model before training, too"""
    baselines: bool = False
    """beside those that every table has: those that suit a task, with a paired test against each"""
    router_data: str | None = None
    """RouterBench's table, below data.source: realised quality and cost of routing"""
    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    sft: SFTSpec = field(default_factory=SFTSpec)
    overrides: list[str] = field(default_factory=list)
    """of every arm's training config, before its own"""
    arms: dict[str, Arm] = field(default_factory=dict)
    curve: int | None = None
    """test rows a task on which every saved state of a training is measured as well (trainer.save_freq says how many)"""
    course: int | None = None
    """parts of each training whose means of reward, entropy and the like are shown"""
    harness: Harness = field(default_factory=Harness)


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of configs/experiments/`name`.yaml, or of a YAML file, with key=value overrides.

    Raises UserError for unknown names and keys, and for values of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = Path(name) if name.endswith((".yaml", ".yml")) else BUILT_IN / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
        raise UserError(f"{name}: no such experiment; there are {known}")
    try:
        found = parse_yaml(file.read_text(encoding="utf-8"), Experiment)
        if not isinstance(found, dict):
            raise UserError(f"{file.name}: found no keys with values; those of an experiment are wanted")
        read: Any = OmegaConf.merge(OmegaConf.structured(Experiment), found)
        for override in overrides:
            read = _set(read, override)
        merged: Any = OmegaConf.to_object(read)
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise UserError(f"{file.name}: {first_line(error)}") from error
    for arm in merged.arms.values():  # earlier versions knew one teacher, and kept whether it was asked for
        arm.teacher = {"false": None, "true": "frequent"}.get(arm.teacher, arm.teacher)
    if not merged.arms:
        raise UserError(f"{file.name}: arms: found none; at least one is wanted")
    if merged.data.source is None:
        raise UserError(f"{file.name}: data.source: found none; data.source=DIR is wanted")
    if not merged.seeds or len(set(merged.seeds)) < len(merged.seeds):
        raise UserError(f"{file.name}: seeds: found {merged.seeds}; distinct numbers are wanted")
    _check_options(f"{file.name}: data.options", merged.data.options)
    _check_cold_start(f"{file.name}: sft", merged.sft)
    for label, arm in merged.arms.items():
        _check_arm(f"{file.name}: arms.{label}", label, arm, merged)
    return merged


def model_of(experiment: Experiment, arm: Arm) -> ModelSpec:
    """The model that an arm begins with: the experiment's, but for what is another in the arm."""
    from omegaconf import OmegaConf

    values = literal(asdict(experiment.model) | arm.model)
    merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelSpec), values))
    return merged


def _set(experiment: Any, override: str) -> Any:
    """The experiment with key=value: a value is read as YAML, unless the setting is a text and the value is not in quotes."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: found no '='; key=value is wanted")
    try:
        declared = type_at(Experiment, key)
        as_it_stands = is_text(declared) and text != "null" and not text.startswith(("'", '"'))
        changed = OmegaConf.create()
        OmegaConf.update(changed, key, text if as_it_stands else parse_yaml(text, declared))
        return OmegaConf.merge(experiment, changed)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(
            f"override {override!r}: {first_line(error)}; key=value is wanted, with a value as in YAML"
        ) from error


def keep_experiment(experiment: Experiment, file: Path) -> None:
    """Write it to `file`, beside its results.

    Raises UserError where another experiment is there. Other seeds are no other experiment, and a setting that the file does not
    have, since an earlier version wrote it, counts as left at its default.
    """

    if file.is_file():
        try:
            kept = load_experiment(str(file), [f"seeds={experiment.seeds}"])
        except UserError:  # it has a setting that there no longer is
            kept = None
        if kept != experiment:
            raise UserError(
                f"{file}: another experiment's results are there; another --output is wanted, or {file.parent} deleted"
            )
    with atomic_path(file) as temporary:
        temporary.write_text(as_yaml(asdict(experiment)), encoding="utf-8")


_OWN = ("source", "output", "tasks", "size", "think", "answer_style", "cold_start", "trec")
"""options of prepare's that an experiment sets in another place, or has no use for"""


def _check_options(where: str, options: dict[str, Any]) -> None:
    types = {name: declared for name, declared in get_type_hints(PrepareOptions).items() if name not in _OWN}
    for name, value in options.items():
        if name not in types:
            raise UserError(f"{where}: no {name!r}{suggest(name, types)} of prepare's")
        if not has_type(value, types[name]):
            raise UserError(f"{where}.{name}: found {value!r}; {in_words(types[name])} is wanted")


def _check_cold_start(where: str, sft: SFTSpec) -> None:
    if not 0 < sft.lr < float("inf"):
        raise UserError(f"{where}.lr: found {sft.lr}; a learning rate over 0 is wanted")
    check_at_least(f"{where}.batch_size", sft.batch_size, 1)
    if sft.dtype not in DTYPES:
        raise UserError(f"{where}.dtype: found {sft.dtype!r}; one of {', '.join(DTYPES)} is wanted")


_TAKEN = ("base", "untrained", "states", "eval")
"""directories beside those of the arms"""


def _check_arm(where: str, label: str, arm: Arm, experiment: Experiment) -> None:
    from omegaconf.errors import OmegaConfBaseException

    if label in (*_TAKEN, "", ".", "..") or "/" in label:
        raise UserError(
            f"{where}: an arm's directory has its name; one without '/', other than {', '.join(_TAKEN)}, is wanted"
        )
    if arm.mode not in ("iterative", "direct"):
        raise UserError(f"{where}.mode: found {arm.mode!r}; iterative or direct is wanted")
    for task in (*arm.train, *arm.test):
        if task not in experiment.data.tasks:
            raise UserError(f"{where}: {task!r} is not among data.tasks")
    before = list(experiment.arms)[: list(experiment.arms).index(label)]
    for key, other in (("begun_as", arm.begun_as), ("trained_as", arm.trained_as)):
        if other is not None and other not in before:
            raise UserError(f"{where}.{key}: found {other!r}; an arm before it is wanted")
    if arm.begun_as is not None and (arm.trained_as is not None or arm.model):
        raise UserError(f"{where}.begun_as: found a trained_as or a model beside it; one of the three is wanted")
    if arm.teacher not in (None, *TEACHERS):
        raise UserError(f"{where}.teacher: found {arm.teacher!r}; one of {', '.join(TEACHERS)} is wanted")
    if arm.teacher is not None and (not experiment.cold_start or (arm.trained_as or arm.begun_as) is not None):
        raise UserError(f"{where}.teacher: of no use without a cold start of its own")
    try:
        model_of(experiment, arm)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}.model: {first_line(error)}") from error
    try:
        EliminationSettings(**arm.elimination)
    except TypeError as error:
        raise UserError(f"{where}.elimination: {error}") from error
