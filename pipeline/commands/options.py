"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.planning import Selection

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML configuration.")]
Preset = Annotated[
    str | None,
    typer.Option(help="A preset, such as shapes or sd35-medium-512 (docs/presets.md)."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated.")
]
Until = Annotated[str | None, typer.Option(help="Run this stage and the stages it needs.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from", help="Run this stage and those after it; artifacts of earlier stages must exist."
    ),
]
Only = Annotated[
    str | None, typer.Option(help="Run only this stage; artifacts of earlier stages must exist.")
]
Force = Annotated[list[str] | None, typer.Option(help="Make this stage's artifact again.")]
OnConflict = Annotated[
    str | None,
    typer.Option(
        help="When another live run works on the same artifact: share its shards, wait, or fail "
        "with exit code 5 (on_conflict; by default share)."
    ),
]
Eval = Annotated[
    bool,
    typer.Option("--eval", help="With --until distill: evaluate the student too, without tuning."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LogFormat = Annotated[str, typer.Option(help="text or json.")]
StudentFolder = Annotated[
    Path | None,
    typer.Option(help="A student's diffusers folder; by default this configuration's student."),
]
Out = Annotated[Path | None, typer.Option(help="Also write the table as JSON.")]


def new_group(help_text: str | None = None) -> typer.Typer:
    """Make a group of commands; without a help text its commands are at the top level."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


def selection(
    until: str | None = None,
    start: str | None = None,
    only: str | None = None,
    force: list[str] | None = None,
) -> Selection:
    """Return the stages that the options select. Raises ConfigError if they exclude each other."""
    from pipeline.planning import Selection

    if only and (until or start):
        raise ConfigError("--only cannot be combined with --until or --from")
    return Selection(until, start, only, frozenset(force or ()))


def words_of(wanted: Selection) -> list[str]:
    """Return the options that select the same stages again."""
    named = {"--until": wanted.until, "--from": wanted.start, "--only": wanted.only}
    words = [word for option, stage in named.items() if stage for word in (option, stage)]
    return [*words, *(word for stage in sorted(wanted.force) for word in ("--force", stage))]


def with_evaluation(until: str | None, settings: list[str] | None) -> tuple[str, list[str]]:
    """Return the last stage and the settings with which the student is evaluated without tuning.

    Raises ConfigError unless the student is what `--until` names.
    """
    if until != "distill":
        raise ConfigError("--eval evaluates the student alone: give --until distill with it")
    return "eval", [*(settings or ()), "eval.tuned=false"]


def asked_for(
    until: str | None,
    eval_: bool,
    from_: str | None,
    only: str | None,
    force: list[str] | None,
    settings: list[str] | None,
) -> tuple[Selection, list[str] | None]:
    """Return the stages and the settings that the options mean. Raises ConfigError if they exclude
    each other.
    """
    if eval_:
        until, settings = with_evaluation(until, settings)
    return selection(until, from_, only, force), settings


def with_conflict(settings: list[str] | None, on_conflict: str | None) -> list[str]:
    """Return the settings with what `--on-conflict` says."""
    return [*(settings or ()), *([f"on_conflict={on_conflict}"] if on_conflict else ())]


def check_log_format(log_format: str) -> None:
    """Raise ConfigError for a format that does not exist."""
    if log_format not in ("text", "json"):
        raise ConfigError(f"--log-format {log_format!r} is neither text nor json")
