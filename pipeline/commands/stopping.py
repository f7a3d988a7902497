"""SIGTERM stops a command as Ctrl-C does: it unwinds and exits with the signal's exit code."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import NoReturn

_stopped_by: int = signal.SIGINT


def unwind_on_sigterm() -> None:
    """Make SIGTERM raise KeyboardInterrupt from now on."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, _frame: object) -> None:
    global _stopped_by
    _stopped_by = number
    raise KeyboardInterrupt


def stopped_code() -> int:
    """Return 130 after Ctrl-C and 143 after SIGTERM."""
    return 128 + _stopped_by


def exit_stopped() -> NoReturn:
    """Exit with 130 after Ctrl-C and 143 after SIGTERM, and say how to resume."""
    print(f"\nstopped; to resume: {this_command()}", file=sys.stderr, flush=True)
    os._exit(stopped_code())


def this_command() -> str:
    """Return the command as the user typed it."""
    return "ladd-pipeline " + shlex.join(sys.argv[1:])
