"""Commands that make data: `r1ranker prepare`, and the scripts of examples/data_preprocess."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from r1ranker.cli.options import Reason, Style
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import HUB_ID

if TYPE_CHECKING:
    from r1ranker.data.sources.trec import TrecFiles
    from r1ranker.tasks.prompts import Mode

COLD_START = "Cold start"
LENGTHS = "Lengths of prompts"
RAW = "Raw sources"
OWN = "Your own data and TREC files"
TREC = "TREC files, with --from trec"

LayoutSource = Annotated[str, typer.Option(help="hub data set, directory of its layout, or `toy`")]
LocalDir = Annotated[str, typer.Option(help="where to write")]


def prepare(
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "--from",
            help="a hub data set or directory in Ranking-bench's layout; a directory with its raw sources; a file of "
            "one's own (.jsonl, .csv, .parquet); `trec`; `toy` or `facts`, which are built in",
        ),
    ] = HUB_ID,
    output: Annotated[str, typer.Option(help="directory for direct_ranking/, iterative_ranking/ and bench/")] = "data",
    answer_style: Style = "name",
    think: Reason = True,
    task: Annotated[list[str] | None, typer.Option(help="only these tasks; of one's own data: its name")] = None,
    seed: Annotated[int, typer.Option(help="of splits, pools and orders")] = 42,
    test_share: Annotated[float, typer.Option(help="of users or queries, where the source has no split")] = 0.2,
    cold_start: Annotated[
        bool,
        typer.Option(
            help="also write sft.parquet: the answer's format with random answers", rich_help_panel=COLD_START
        ),
    ] = False,
    teacher: Annotated[
        Literal["frequent", "right"] | None,
        typer.Option(
            help="with --cold-start: answers by the most frequent label, or right ones, with thoughts, instead of random ones",
            rich_help_panel=COLD_START,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="model directory; lengths are measured in its tokens", rich_help_panel=LENGTHS)
    ] = None,
    max_prompt_length: Annotated[
        int, typer.Option(help="tokens; the share of prompts over it is shown", rich_help_panel=LENGTHS)
    ] = 1400,
    max_passage_tokens: Annotated[
        int | None,
        typer.Option(help="of a candidate's text; longer ones are cut between words", rich_help_panel=LENGTHS),
    ] = None,
    test_rows: Annotated[
        int, typer.Option(help="raw, own data and trec: of a user or query at most, evenly spread; 0: all")
    ] = 0,
    pool_sizes: Annotated[
        str,
        typer.Option(
            help="facts, raw, own data and trec: LOW-HIGH, of the iterative rows' pools (all)", show_default=False
        ),
    ] = "",
    size: Annotated[int, typer.Option(help="toy: direct training rows a task; facts: direct training rows")] = 100,
    candidates: Annotated[int, typer.Option(help="of a request; of trec too", rich_help_panel=RAW)] = 20,
    history: Annotated[
        list[str] | None,
        typer.Option(help="items of a user's history (20), or TASK=N for one task", rich_help_panel=RAW),
    ] = None,
    users: Annotated[int, typer.Option(help="of a recommendation task; 0: all", rich_help_panel=RAW)] = 657,
    positions: Annotated[
        int, typer.Option(help="requests a user at most, spread over its history", rich_help_panel=RAW)
    ] = 1,
    pools: Annotated[
        int,
        typer.Option(help="training rows of a recommendation request, each with other candidates", rich_help_panel=RAW),
    ] = 1,
    recbole: Annotated[
        list[str] | None,
        typer.Option(help="TASK=NAME of another RecBole data set, such as Rec-Movie=ml-100k", rich_help_panel=RAW),
    ] = None,
    merits: Annotated[
        bool, typer.Option(help="routing's training rows have every LLM's merit as its grade", rich_help_panel=RAW)
    ] = False,
    template: Annotated[str | None, typer.Option(help="a YAML file with the task's words", rich_help_panel=OWN)] = None,
    shuffle: Annotated[bool, typer.Option(help="deal each pool's order anew", rich_help_panel=OWN)] = False,
    queries: Annotated[str | None, typer.Option(help="id<tab>text", rich_help_panel=TREC)] = None,
    collection: Annotated[str | None, typer.Option(help="id<tab>text, or JSON lines", rich_help_panel=TREC)] = None,
    run: Annotated[str | None, typer.Option(help="the candidates of each query", rich_help_panel=TREC)] = None,
    qrels: Annotated[str | None, typer.Option(help="graded judgments", rich_help_panel=TREC)] = None,
) -> None:
    """Write training parquet from a data set or your own files.

    Rows are direct and iterative ones, for training and for testing.
    Raw sources and your own data are written in Ranking-bench's layout too.
    """
    from r1ranker.data.prepare import PrepareOptions
    from r1ranker.data.prepare import prepare as prepare_data

    trec = _trec_files(source, {"--queries": queries, "--collection": collection, "--run": run, "--qrels": qrels})
    prepare_data(
        PrepareOptions(
            source=source,
            output=output,
            answer_style=answer_style,
            think=think,
            tasks=task,
            seed=seed,
            test_share=test_share,
            cold_start=cold_start,
            teacher=teacher,
            tokenizer=tokenizer,
            max_prompt_length=max_prompt_length,
            max_passage_tokens=max_passage_tokens,
            test_rows=test_rows,
            pool_sizes=pool_sizes,
            size=size,
            candidates=candidates,
            history=history or (),
            users=users,
            positions=positions,
            pools=pools,
            recbole=recbole or (),
            merits=merits,
            template=template,
            shuffle=shuffle,
            trec=trec,
        )
    )


def _trec_files(source: str, named: dict[str, str | None]) -> TrecFiles | None:
    """The four files that `--from trec` goes with; raises UserError where some of them are missing."""
    from r1ranker.data.sources.trec import TrecFiles

    given = {name: path for name, path in named.items() if path is not None}
    missing = [name for name in named if name not in given]
    if missing and (given or source == "trec"):
        raise UserError(f"--from trec: no {', '.join(missing)}; all of {', '.join(named)} are wanted")
    return None if missing else TrecFiles(*given.values())


def rows_command(mode: Mode) -> Callable[..., None]:
    """The command of examples/data_preprocess/<mode>_data_generation.py."""

    def write_rows(
        source: LayoutSource = HUB_ID,
        local_dir: LocalDir = f"data/{mode}_ranking",
        answer_style: Style = "name",
        think: Reason = True,
    ) -> None:
        from r1ranker.data.generate import generate_and_show

        generate_and_show(source, local_dir, mode, answer_style, think)

    write_rows.__doc__ = f"Write training parquet for {mode} ranking."
    return write_rows
