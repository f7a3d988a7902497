"""The `ladd-pipeline` command: mounts all commands and exits with the codes listed in README.md."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for them reads every package

import typer

from pipeline.commands import artifacts, compare, plan, run, settings, students, sweep
from pipeline.commands.stopping import exit_stopped
from schemas.errors import LaddError

app = typer.Typer(
    help="From prompts to a few-step student: Latent Adversarial Diffusion Distillation for SD3.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (run, plan, settings, students, sweep, compare):
    app.add_typer(group.app)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(settings.config_app, name="config")
app.add_typer(students.teacher_app, name="teacher")


def main() -> None:
    """Run a command and exit with its code; see README.md."""
    try:
        code = app(standalone_mode=False)  # typer returns the code of an Exit, and 130 for Ctrl-C
    except LaddError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(2)
    if code == 130:
        exit_stopped()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
