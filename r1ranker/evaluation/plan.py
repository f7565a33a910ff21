"""What will be evaluated: each model with its settings, the file that its result goes to, and the tokens that its engine holds.

Everything that can be known is looked at here, before anything is ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from r1ranker.data.files.manifest import checksum
from r1ranker.errors import UserError, note
from r1ranker.evaluation.identity import About, about_of
from r1ranker.evaluation.names import JOURNAL, RESULT, Unnamed, choose_names
from r1ranker.evaluation.options import EvaluationOptions, name_parts
from r1ranker.evaluation.results import TIMING, check_trec_grade
from r1ranker.pretrained import check_model_directory, full_path, load_tokenizer
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.required_length import required_length
from r1ranker.ranking.settings import RankerSettings
from r1ranker.rollout.start import find_engine
from r1ranker.tasks.example import RankingExample
from r1ranker.thoughts.bank import check_untested, read_bank

Rows = Mapping[str, Sequence[RankingExample]]
"""task -> its rows"""


@dataclass(frozen=True)
class Plan:
    """The evaluation of a model."""

    model: str
    settings: RankerSettings
    about: About
    """what its result says that it is of"""
    directory: Path
    name: str
    """of its files there, without what they end in"""
    max_model_len: int
    """tokens of a prompt and an answer that its engine holds"""

    @property
    def result(self) -> Path:
        return self.directory / (self.name + RESULT)

    @property
    def journal(self) -> Path:
        return self.directory / (self.name + JOURNAL)

    @property
    def timing(self) -> Path:
        return self.directory / (self.name + TIMING)


def plan_evaluations(
    models: Sequence[str], test: Rows, options: EvaluationOptions, dataset: str, trec_dir: str | None = None
) -> list[Plan]:
    """A plan for each model, in their order; one that is named twice is evaluated once.

    Raises UserError for models, settings, lengths and directories that cannot be used, and for grades that TREC's files do not take.
    """
    engine = find_engine(options.engine)
    rows = [example for some in test.values() for example in some]
    if options.shots.bank is not None:
        check_untested(options.shots.bank, read_bank(options.shots.bank), rows)
    for model in models:
        check_model_directory(model)
    by_path = {full_path(model): model for model in reversed(models)}
    several = [model for model in models if by_path.pop(full_path(model), None) is not None]
    if len(several) < len(models):
        note("--model_path: a model is named twice; it is evaluated once")
    found = []
    for model in several:
        settings = settings_of(model, options)
        settings.check()
        about = about_of(
            {
                "model": full_path(model),
                "data": full_path(options.data),
                "tasks": list(test),
                "seed": options.seed,
                "limit": options.limit,
                "engine": f"{engine}-{options.dtype}" if options.computes_otherwise else engine,
                "beside": {
                    "baselines": options.baselines,
                    "interactions": options.interactions,
                    "router_data": options.router_data,
                    **({"models": dict(options.baseline_models)} if options.baseline_models else {}),
                    "thoughts": None if options.shots.bank is None else checksum(Path(options.shots.bank)),
                },
                "settings": asdict(settings),
            }
        )
        found.append((model, settings, Unnamed(about, *name_parts(dataset, list(test), model, settings, options))))
    directories = [Path(options.output_dir), *([] if trec_dir is None else [Path(trec_dir)])]
    for option, directory in zip(("--output_dir", "--trec_dir"), directories, strict=False):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{option}: {directory} cannot be written ({error.strerror})") from error
    if trec_dir is not None:
        for task, of_task in test.items():
            for number, example in enumerate(of_task, 1):
                for grade in example.grades:
                    check_trec_grade(task, number, grade)
    lengths = [
        required_length(model, load_tokenizer(model), settings, rows, options.max_model_len, engine)
        for model, settings, _ in found
    ]
    names = choose_names([one for *_, one in found], directories[0], directories[1] if trec_dir is not None else None)
    return [
        Plan(model, settings, one.about, directories[0], name, length)
        for (model, settings, one), name, length in zip(found, names, lengths, strict=True)
    ]


def settings_of(model: str, options: EvaluationOptions) -> RankerSettings:
    """How a model is asked: its own way, but for what the options say."""
    return Ranker.settings_of(
        model,
        strategy=options.strategy,
        trained=options.mode,
        constrain=options.constrain,
        think=options.think,
        answer_style=options.answer_style,
        rounds=options.rounds,
        seed=options.seed,
        elimination=options.elimination,
        windows=options.windows,
        max_tokens=options.max_tokens,
        passage_tokens=options.passage_tokens,
        shots=options.shots,
    )
