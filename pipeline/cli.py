"""The `ladd-pipeline` command: mounts all commands and exits with the codes listed in README.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for them reads every package

import typer

from pipeline.commands import (
    artifacts,
    compare,
    doctor,
    k8s,
    plan,
    run,
    settings,
    students,
    submit,
    sweep,
)
from pipeline.commands.boundary import debug_first, enter_folder, report
from pipeline.commands.stopping import exit_stopped
from pipeline.machine import settle_home, settle_threads

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (run, submit, plan, doctor, settings, students, sweep, compare):
    app.add_typer(group.app)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(settings.config_app, name="config")
app.add_typer(students.teacher_app, name="teacher")
app.add_typer(k8s.app, name="k8s")


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error; also LADD_DEBUG=1.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--directory", "-C", help="Work in this folder.", metavar="DIR"),
    ] = None,
) -> None:
    """From prompts to a few-step student: Latent Adversarial Diffusion Distillation for SD3."""
    if folder is not None:
        enter_folder(folder)


def main() -> None:
    """Run a command and exit with its code; see README.md. Every exception becomes one sentence."""
    settle_home()
    settle_threads()
    arguments = debug_first(sys.argv[1:])
    try:
        code = app(arguments, standalone_mode=False)
    except Exception as error:
        if show := getattr(error, "show", None):  # wrong usage, found by typer
            show()
            sys.exit(2)
        sys.exit(report(error, debug=arguments[:1] == ["--debug"]))
    # Typer returns the code of an Exit, and 130 for Ctrl-C.
    if code == 130:
        exit_stopped()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
