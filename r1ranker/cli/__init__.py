"""The command line: every command of `r1ranker`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from r1ranker.cli.data import prepare
from r1ranker.cli.evaluation import compare, evaluate, experiment, harness, report
from r1ranker.cli.ranking import rank
from r1ranker.cli.run import add_command, new_app, restart_with_huge_pages, run_app
from r1ranker.cli.serving import serve
from r1ranker.cli.thoughts import collect, show
from r1ranker.cli.training import export, fetch_model, init_model, replay, sft, train

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Data": {"prepare": prepare},
    "Models": {
        "fetch-model": fetch_model,
        "init-model": init_model,
        "sft": sft,
        "train": train,
        "export": export,
        "replay": replay,
    },
    "Rankings": {
        "rank": rank,
        "serve": serve,
        "eval": evaluate,
        "compare": compare,
        "report": report,
        "experiment": experiment,
        "harness": harness,
    },
}
"""heading in the help -> name -> what runs"""
GROUPS: dict[str, dict[str, Callable[..., None]]] = {"thoughts": {"collect": collect, "show": show}}
"""commands that have commands of their own"""

app = new_app(help="Make a language model rank: train it, measure it, use it.", no_args_is_help=True)
for heading, commands in COMMANDS.items():
    for name, function in commands.items():
        add_command(app, function, name, heading)

for name, commands in GROUPS.items():
    group = new_app(help="A bank of what rankers thought, to be shown before similar requests.", no_args_is_help=True)
    for own_name, function in commands.items():
        add_command(group, function, own_name)
    app.add_typer(group, name=name, rich_help_panel="Rankings")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"r1ranker {version('r1ranker')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `r1ranker` itself."""


COMPUTING = ("sft", "train", "rank", "serve", "eval", "experiment", "harness")
"""commands that compute with a model"""


def start() -> None:
    """Entry point of `r1ranker`."""
    if sys.argv[1:2] and sys.argv[1] in COMPUTING:
        restart_with_huge_pages()
    main()


def main() -> None:
    """Run the command line in this very process."""
    run_app(app)
