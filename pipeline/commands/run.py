"""`ladd-pipeline run`, and one command per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import (
    ConfigFile,
    Eval,
    Force,
    From,
    LogFormat,
    OnConflict,
    Only,
    Preset,
    Settings,
    Until,
    asked_for,
    check_log_format,
    new_group,
    selection,
    with_conflict,
)
from pipeline.dag import STAGES
from schemas.errors import ConfigError, GateFailed, LaddError

if TYPE_CHECKING:
    from pipeline.commands.opening import Opened
    from pipeline.planning import Selection

app = new_group()


@app.command()
def run(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    eval_: Eval = False,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    dry_run: Annotated[bool, typer.Option(help="Show the plan and stop.")] = False,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, help="Start nothing that would cost more, and stop when it has."),
    ] = None,
    on_conflict: OnConflict = None,
    traces: Annotated[
        bool,
        typer.Option("--traces", help="Send OpenTelemetry traces; the same as --set traces=true."),
    ] = False,
    log_format: LogFormat = "text",
) -> None:
    """Run the pipeline; existing artifacts are not made again."""
    from pipeline.commands.opening import open_plan

    check_log_format(log_format)
    wanted, set_ = asked_for(until, eval_, from_, only, force, set_)
    settings = [*with_conflict(set_, on_conflict), *(["traces=true"] if traces else ())]
    opened = open_plan(config, preset, settings, wanted, pin=not dry_run)
    if dry_run:
        from pipeline.commands.plan import show_plan

        show_plan(opened)
        return
    _run(opened, wanted, log_format, max_cost)


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        config: ConfigFile = None,
        preset: Preset = None,
        set_: Settings = None,
        force: Annotated[bool, typer.Option(help="Make the artifact again.")] = False,
        on_conflict: OnConflict = None,
        log_format: LogFormat = "text",
    ) -> None:
        from pipeline.commands.opening import open_plan

        check_log_format(log_format)
        wanted = selection(only=name, force=[name] if force else None)
        settings = with_conflict(set_, on_conflict)
        _run(open_plan(config, preset, settings, wanted, pin=True), wanted, log_format)

    command.__doc__ = f"Run only stage {name}; same as `run --only {name}`."
    return command


def _retrying_command(name: str) -> Callable[..., None]:
    """The command of a stage whose samples may fail."""
    run_stage = _stage_command(name)

    def command(
        config: ConfigFile = None,
        preset: Preset = None,
        set_: Settings = None,
        force: Annotated[bool, typer.Option(help="Make the artifact again.")] = False,
        retry_failed: Annotated[
            bool, typer.Option(help="Make the shards again in which samples have failed.")
        ] = False,
        on_conflict: OnConflict = None,
        log_format: LogFormat = "text",
    ) -> None:
        if retry_failed:
            _take_back_failed(name, config, preset, set_)
        run_stage(config, preset, set_, force, on_conflict, log_format)

    command.__doc__ = run_stage.__doc__
    return command


def _take_back_failed(
    name: str, config: Path | None, preset: str | None, settings: list[str] | None
) -> None:
    from pipeline.commands.opening import open_plan
    from pipeline.preflight import require_ready
    from pipeline.repair import uncommit_failed

    opened = open_plan(config, preset, settings, selection(only=name), pin=True)
    stage = next(one for one in opened.stages if one.name == name)
    again = [replace(one, action="run") if one is stage else one for one in opened.stages]
    require_ready(opened.config, opened.store, again, None)
    count = uncommit_failed(opened.store, stage)
    print(f"{name}: {count:,} shards with failed samples are made again", file=sys.stderr)


def _training_commands(name: str) -> typer.Typer:
    """The command of a stage that trains, with `export` below it."""
    group = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
    run_stage = _stage_command(name)

    def command(
        context: typer.Context,
        config: ConfigFile = None,
        preset: Preset = None,
        set_: Settings = None,
        force: Annotated[bool, typer.Option(help="Make the artifact again.")] = False,
        on_conflict: OnConflict = None,
        log_format: LogFormat = "text",
    ) -> None:
        if context.invoked_subcommand is None:
            run_stage(config, preset, set_, force, on_conflict, log_format)
        elif config or preset or set_ or force:
            raise ConfigError(f"write the options of `{name} export` behind it")

    def export(
        step: Annotated[int, typer.Option(min=1, help="What the stage's `steps` would be.")],
        config: ConfigFile = None,
        preset: Preset = None,
        set_: Settings = None,
        log_format: LogFormat = "text",
    ) -> None:
        from pipeline.commands.opening import open_plan
        from pipeline.planning import require_kept

        check_log_format(log_format)
        wanted = selection(only=name)
        settings = [*(set_ or ()), f"{name}.steps={step}"]
        opened = open_plan(config, preset, settings, wanted, pin=True)
        require_kept(opened.store, opened.config, next(s for s in opened.stages if s.name == name))
        _run(opened, wanted, log_format)

    command.__doc__ = run_stage.__doc__
    export.__doc__ = (
        f"Commit the artifact that {name}.steps=STEP would make, from a kept checkpoint of a "
        "training of another length."
    )
    group.callback()(command)
    group.command("export")(export)
    return group


for _name, _stage in STAGES.items():
    if _stage.taken:
        app.add_typer(_training_commands(_name), name=_name)
    elif _stage.data:
        app.command(_name)(_retrying_command(_name))
    else:
        app.command(_name)(_stage_command(_name))


def _run(opened: Opened, wanted: Selection, log_format: str, max_cost: float | None = None) -> None:
    """Run the plan and show the results. Raises GateFailed if a result misses a gate."""
    from pipeline.commands.tables import counts_text, print_table
    from pipeline.planning import rows_of, take_over

    take_over(opened.store, opened.stages)
    if any(stage.action == "run" for stage in opened.stages):
        rows = _execute(opened, log_format, max_cost)
    else:
        rows = list(rows_of(opened.stages).values())
    print_table(
        ["stage", "action", "samples", "time", "expected", "artifact"],
        [
            [
                row["stage"],
                row["action"],
                counts_text(row["counts"]),
                f"{row['seconds']:.0f} s" if row["seconds"] else "",
                f"{row['expected']:.0f} s" if row["seconds"] and row["expected"] else "",
                row["key"],
            ]
            for row in rows
        ],
    )
    failed: list[str] = []
    for stage in wanted.stages(opened.stages):
        found = opened.store.find(stage.name, stage.key)
        if found is not None:
            details = found.manifest.details  # what is shown is short, so it is there
            if "model" in details:
                print(f"{STAGES[stage.name].makes}: {found.url}/{details['model']}")
            for grid in details.get("samples", ())[-1:]:
                print(f"samples: {found.url}/{grid}")
            if found.has("report.html"):
                print(f"report: {found.url}/report.html")
            failed += details.get("failed_gates", ())
    if failed:
        raise GateFailed("; ".join(failed))


def _execute(opened: Opened, log_format: str, max_cost: float | None) -> list[dict[str, Any]]:
    from pipeline.commands.stopping import this_command, unwind_on_sigterm
    from pipeline.executor import execute
    from pipeline.observe import Observer

    unwind_on_sigterm()
    with Observer(log_format) as observer:
        try:
            return execute(opened.config, opened.store, opened.stages, observer, max_cost=max_cost)
        except ConfigError:
            raise  # the same command would fail again
        except LaddError:
            print(f"to resume: {this_command()}", file=sys.stderr)
            raise
