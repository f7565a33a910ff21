"""Errors that are the user's to mend: one line each, no traceback, exit code 2."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Bad input: the message names file, row, column or key, what was found and what is wanted."""


class RunError(Exception):
    """A run that could not go on for a cause outside the input: one line, no traceback, exit code 1."""


class WorkerLostError(RunError):
    """A process of a run died or no longer answers; started again, it can go on from the last state."""


class Terminated(SystemExit):
    """A signal asked this process to end; nothing on the way may take it for an error of its own."""


def suggest(name: str, known: Iterable[str], least: float = 0.5) -> str:
    """` (did you mean 'x'?)` for the known name closest to `name`, or an empty string where none is `least` alike."""
    matches = get_close_matches(name, sorted(known), n=1, cutoff=least)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise UserError where an option's number is below `least`."""
    if value < least:
        raise UserError(f"{name}: found {value}; at least {least} is wanted")


def first_line(error: BaseException, most: int | None = None) -> str:
    """What an error of a library says first, at `most` so many characters of it."""
    return str(error).strip().split("\n")[0][:most]


def note(text: str) -> None:
    """Say on stderr, once, what was found and put right on the way."""
    if text not in _NOTED:
        _NOTED.add(text)
        print("note: " + " ".join(text.split()), file=sys.stderr)


_NOTED: set[str] = set()


def exit_on_user_error(command: Callable[[], None]) -> None:
    """Run `command`; a UserError becomes one line on stderr and exit code 2, a RunError code 1. Ctrl-C exits with 130.

    SIGTERM and SIGHUP unwind it as well, so that nothing half-written is left behind; exit code 128 + signal.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored, and that stays
            signal.signal(number, _unwind)
    try:
        command()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except RunError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_RUN_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # Python's own Path.exists and its like raise it, wherever a path is first looked at
        print(f"error: {str(error.filename)[:80]}...: the name is too long; a shorter path is wanted", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def _unwind(number: int, frame: object) -> None:
    raise Terminated(128 + number)
