"""Options that several commands have, declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import typer

from r1ranker.ranking import settings
from r1ranker.tasks import labels
from r1ranker.thoughts import similarity

AS_TRAINED = "How to rank (where nothing is said: as the model was trained)"
ELIMINATION = "How an iterative ranking goes"
THOUGHTS = "Thoughts on similar requests, shown before a request"
PARTS = "How large pools are parted, with --strategy windows or tournament"

TrainingFiles = Annotated[list[str], typer.Option("--data", help="training parquet; may be given several times")]
Style = Annotated[labels.AnswerStyle, typer.Option(help="how an answer names a candidate")]
Reason = Annotated[bool, typer.Option(help="reason before answering")]

EngineName = Annotated[Literal["vllm", "hf", "auto"], typer.Option("--engine", help="auto: vllm where it is installed")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="what the model is computed in; auto: bfloat16 on GPUs, float32 on the CPU"),
]
GpuId = Annotated[int, typer.Option(help="number of the GPU, where there are several")]
Seed = Annotated[int, typer.Option(help="of sampled answers")]

Strategy = Annotated[
    settings.Strategy | None,
    typer.Option(
        help="worst candidate out, round by round; all at once; by the probabilities of a first choice; or part by part",
        rich_help_panel=AS_TRAINED,
    ),
]
AskedFor = Annotated[
    Literal["iterative", "direct"] | None,
    typer.Option(
        "--mode",
        help="what it is asked for with other strategies: the worst candidate, or all in order",
        rich_help_panel=AS_TRAINED,
    ),
]
Constrain = Annotated[
    Literal["none", "candidates"] | None,
    typer.Option(help="candidates: nothing else can be answered", rich_help_panel=AS_TRAINED),
]
Think = Annotated[
    bool | None, typer.Option("--think/--no-think", help="reason before answering", rich_help_panel=AS_TRAINED)
]
AnswerStyle = Annotated[
    labels.AnswerStyle | None,
    typer.Option(help="how an answer names a candidate", rich_help_panel=AS_TRAINED),
]
Rounds = Annotated[
    settings.Rounds | None,
    typer.Option(
        "--rounds",
        help="eliminations: each asked anew, or all of them turns of one conversation that shows the pool once",
        rich_help_panel=AS_TRAINED,
    ),
]
MaxPassageTokens = Annotated[
    int | None, typer.Option(help="tokens of a candidate's text at most; longer ones are cut between words")
]
MaxTokens = Annotated[int | None, typer.Option(help="tokens of an answer at most", rich_help_panel=AS_TRAINED)]

MaxModelLen = Annotated[
    int | None,
    typer.Option(help="tokens of prompt and answer that the engine holds (what the longest prompt needs)"),
]

TopK = Annotated[
    int,
    typer.Option(
        help="stop when so few are left; a tournament: the places to be played for (0: all)",
        rich_help_panel=ELIMINATION,
    ),
]
Eliminate = Annotated[int, typer.Option(help="candidates that go out a round", rich_help_panel=ELIMINATION)]
Votes = Annotated[int, typer.Option(help="answers sampled a round", rich_help_panel=ELIMINATION)]

Thoughts = Annotated[
    str | None, typer.Option("--thoughts", help="bank of `thoughts collect`", rich_help_panel=THOUGHTS)
]
Shots = Annotated[
    int, typer.Option(help="thoughts before a request, as far as there is room", rich_help_panel=THOUGHTS)
]
Similar = Annotated[
    similarity.Similarity,
    typer.Option(
        "--similarity",
        help="by what requests are alike; random, for comparison: any of the task",
        rich_help_panel=THOUGHTS,
    ),
]
Embedder = Annotated[
    str | None,
    typer.Option("--embedder", help="model directory for --similarity embeddings", rich_help_panel=THOUGHTS),
]
Within = Annotated[
    similarity.Within,
    typer.Option("--shots-from", help="whose requests are looked at", rich_help_panel=THOUGHTS),
]
Content = Annotated[
    similarity.ShotContent,
    typer.Option(
        "--shots-show",
        help="thoughts or, for comparison, only which candidate was best",
        rich_help_panel=THOUGHTS,
    ),
]

Window = Annotated[int, typer.Option(help="candidates of a window, or of a tournament's group", rich_help_panel=PARTS)]
Step = Annotated[int, typer.Option(help="candidates by which a window moves on", rich_help_panel=PARTS)]
Passes = Annotated[int, typer.Option(help="times that windows go from the back to the front", rich_help_panel=PARTS)]
Inside = Annotated[
    settings.Inside, typer.Option(help="how a part is ranked: by an answer, or by logits", rich_help_panel=PARTS)
]


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """A parser for an option that takes any of `names`, which are declared elsewhere."""
    known = list(names)

    def parse(value: str) -> str:
        if value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, known))}.")
        return value

    return parse
