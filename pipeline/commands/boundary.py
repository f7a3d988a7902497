"""What is around every command: the folder that it works in; and every exception becomes one
sentence, its traceback kept for `--debug`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pipeline.base.foreign import page, sentence
from schemas.errors import ConfigError, LaddError

_DEBUG = "LADD_DEBUG"


def report(error: Exception, *, debug: bool = False) -> int:
    """Print an error as one sentence, and return the command's exit code. With
    `debug`, or if LADD_DEBUG is set, print its traceback before.
    """
    debug = debug or os.environ.get(_DEBUG, "").lower() not in ("", "0", "false", "no")
    notes: list[str] = list(getattr(error, "__notes__", []))
    if debug:
        print(page(error), end="", file=sys.stderr)
    elif not isinstance(error, LaddError):
        notes.append(f"its traceback is in {_kept(error)}; --debug prints it")
    print("\n".join([f"error: {sentence(error)}", *notes]), file=sys.stderr)
    return error.exit_code if isinstance(error, LaddError) else 1


def debug_first(arguments: list[str]) -> list[str]:
    """Put `--debug` before the command, where it belongs, if it was written behind it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return arguments
    return ["--debug", *(word for word in arguments[:end] if word != "--debug"), *arguments[end:]]


def enter_folder(folder: Path) -> None:
    """Change to the folder of `--directory`. Raises ConfigError if that cannot be."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(f"--directory {folder}: {error.strerror}") from error


def _kept(error: Exception) -> str:
    """Write the traceback into a file of the temporary folder, and return its name."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ladd-error-", suffix=".txt", delete=False, errors="replace"
        ) as file:
            file.write(page(error))
        return file.name
    except OSError:
        return "no file, for the temporary folder cannot be written"
