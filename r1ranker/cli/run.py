"""How commands run: both spellings of an option, several values after one, and a user's mistake on one line."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

from r1ranker.errors import UserError, exit_on_user_error, note

HOW_TO_INSTALL = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
SPELLINGS = "An option's name may be written with _ in place of -."


class Command(TyperCommand):
    """A command whose repeatable options take several values at once too: `--model-path A B`.

    A command with positional arguments is left alone: a value could be meant as one of them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values, then parse as usual."""
        if not any(isinstance(parameter, TyperArgument) for parameter in self.params):
            names = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
            args = list(repeat_options(args, {dash(name) for name in names}))
        return super().parse_args(ctx, args)


def repeat_options(arguments: Sequence[str], names: set[str]) -> Iterator[str]:
    """The arguments with each option of `names` repeated before its second value and every later one."""
    option, has_value = "", False
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            option, has_value = (name if dash(name) in names else ""), bool(equals)
        elif option and has_value:
            yield option
        else:
            has_value = True
        yield argument


def dash(name: str) -> str:
    """The spelling of an option's name that the parser compares: `model-path` for `model_path`."""
    return name.replace("_", "-")


def new_app(**settings: Any) -> typer.Typer:
    """An application without commands; typer spells the names of options, never their values, by `dash`."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"token_normalize_func": dash},
        **settings,
    )


def add_command(
    app: typer.Typer, function: Callable[..., None], name: str | None = None, heading: str | None = None
) -> None:
    """Have `app` run `function`, whose parameters are the options; `heading` is over it in the application's help."""
    app.command(name, cls=Command, rich_help_panel=heading, epilog=SPELLINGS)(function)


def run_command(function: Callable[..., None]) -> None:
    """Run a script that is one command, whose options are the parameters of `function`."""
    app = new_app()
    add_command(app, function)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run the command line of this process; a user's mistake ends with one line and exit code 2."""
    exit_on_user_error(lambda: _invoke(app))


def ensure_home() -> None:
    """Give this process a home where it has none: libraries would keep their caches in a directory called ~ otherwise."""
    try:
        Path.home()
    except RuntimeError:  # no HOME, and no entry of this user in the password file
        directory = tempfile.mkdtemp(prefix="r1ranker-home-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        os.environ["HOME"] = directory
        note(f"this user has no home: caches go to {directory}, and are deleted at the end; HOME=DIR keeps them")


def share_cores() -> None:
    """Have threads that wait for one another sleep soon, unless the user says how they wait. Before torch is imported.

    By themselves they look 300,000 times first. Where another process takes one of two cores, an update is 4.6 times as slow
    for it, and 2.2 times with fewer looks, which cost a language model nothing where it is alone (benchmarks/under_load.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Begin this process again with a C library that asks for huge pages, where the system gives them to whoever asks.

    Not a fork, whose command is another than the one that the process began with.
    Large tensors that are made anew are filled in half the time or less (benchmarks/huge_pages.py). The library reads it at a process's start alone.
    """
    given = sys.argv[1:]
    if sys.orig_argv[len(sys.orig_argv) - len(given) :] != given:
        return
    tunables = with_huge_pages(os.environ.get("GLIBC_TUNABLES", ""), HUGE_PAGES)
    if tunables is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": tunables})


def with_huge_pages(tunables: str, setting: Path) -> str | None:
    """GLIBC_TUNABLES that ask for huge pages; None where that is said already, or makes no difference."""
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        enabled = setting.read_text(encoding="ascii")
    except (OSError, ValueError):  # no Linux, or another C library
        return None
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35) or "[madvise]" not in enabled:
        return None
    return None if _TUNABLE in tunables else ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))


def _invoke(app: typer.Typer) -> None:
    ensure_home()
    share_cores()
    try:
        result = app(standalone_mode=False)  # on its own it puts a usage error on several lines
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "r1ranker":
            raise
        raise UserError(f"{error.name} is not installed; {HOW_TO_INSTALL}") from error
    except Exception as error:
        say = getattr(error, "format_message", None)  # a usage error; its class is typer's own affair
        if say is None:
            raise
        raise UserError(f"{say()} (see --help)" if say() else "a command is wanted; they are shown above") from error
    if isinstance(result, int):
        sys.exit(result)
