"""`ladd-pipeline sweep`: compares several configurations of one stage, each a separate artifact."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import (
    ConfigFile,
    LogFormat,
    Out,
    Preset,
    check_log_format,
    new_group,
)
from schemas.errors import ConfigError, LaddError, StageFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.base.store import Artifact
    from pipeline.sweep import Trial
    from schemas.config import PipelineConfig

app = new_group()


@app.command()
def sweep(
    stage: Annotated[str, typer.Argument(help="The stage to compare: distill.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value,value; every combination is a trial."),
    ] = None,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Instead: one trial with all first values, then one trial per other value.",
        ),
    ] = False,
    score: Annotated[
        int,
        typer.Option(min=0, help="Judge the students on this many held-out prompts."),
    ] = 0,
    at_once: Annotated[
        int, typer.Option(min=1, help="Trials in parallel; each waits for its resources.")
    ] = 4,
    out: Out = None,
    config: ConfigFile = None,
    preset: Preset = None,
    log_format: LogFormat = "text",
) -> None:
    """Run one stage with several configurations, each a separate artifact, and compare them."""
    from pipeline.commands.stopping import unwind_on_sigterm
    from pipeline.sweep import make_trials, require_judged_alike

    check_log_format(log_format)
    if stage != "distill":
        raise ConfigError(f"sweep compares students: the stage must be distill, not {stage!r}")
    trials = make_trials(partial(_load, config, preset), set_ or (), one_at_a_time)
    if score:
        from pipeline.commands.scoring import check_scored

        require_judged_alike(trials)
        check_scored(trials[0].config, score)
    unwind_on_sigterm()
    with contextlib.ExitStack() as stack:
        rows, students = _trained(stage, trials, log_format, at_once, stack)
        _compare(trials, rows, students, score, out, stack)
    if len(students) < len(trials):
        raise StageFailed(f"{len(trials) - len(students)} of {len(trials)} trials failed")


def _load(file: Path | None, preset: str | None, settings: Sequence[str]) -> PipelineConfig:
    from pipeline.commands.opening import open_config

    return open_config(file, preset, settings, pin=True)


def _trained(
    stage: str, trials: list[Trial], log_format: str, at_once: int, stack: contextlib.ExitStack
) -> tuple[list[dict[str, Any]], dict[str, Artifact]]:
    """Return a row for each trial, and the artifacts of the successful trials by name."""
    from pipeline.base.store import ArtifactStore
    from pipeline.observe import Observer
    from pipeline.sweep import run_trials

    rows: list[dict[str, Any]] = []
    students: dict[str, Artifact] = {}
    observer = stack.enter_context(Observer(log_format))
    store = ArtifactStore(trials[0].config.store)
    for trial, result in run_trials(stage, trials, store, observer, at_once):
        if isinstance(result, LaddError):
            rows.append({"trial": trial.name, "artifact": f"failed: {result}"})
            continue
        metrics = {name: f"{value:.4g}" for name, value in result.manifest.metrics.items()}
        rows.append({"trial": trial.name, "artifact": result.manifest.key} | metrics)
        students[trial.name] = result
    return rows, students


def _compare(
    trials: list[Trial],
    rows: list[dict[str, Any]],
    students: dict[str, Artifact],
    score: int,
    out: Path | None,
    stack: contextlib.ExitStack,
) -> None:
    """Print the rows and, if `score` is not 0, the students' results on that many prompts."""
    from pipeline.commands.tables import print_records

    if not score or not students:
        print_records(rows, out)
        return
    from pipeline.base.store import ArtifactStore
    from pipeline.commands.scoring import score_students

    print_records(rows, None)
    folders = {
        trial.name: stack.enter_context(students[trial.name].local_folder("model"))
        for trial in trials
        if trial.name in students
    }
    config = trials[0].config
    score_students(config, ArtifactStore(config.store), folders, score, out, one_line_each=True)
