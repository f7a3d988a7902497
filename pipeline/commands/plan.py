"""`plan`, `status` and `graph`: what exists and what would run, without Ray or torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import (
    AsJson,
    ConfigFile,
    Eval,
    Force,
    From,
    Only,
    Preset,
    Settings,
    Until,
    asked_for,
    new_group,
)
from pipeline.dag import STAGES
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.base.store import ArtifactStore
    from pipeline.commands.opening import Opened
    from pipeline.planning import PlannedStage

app = new_group()


@app.command()
def plan(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    eval_: Eval = False,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    as_json: AsJson = False,
    probe: Annotated[
        bool, typer.Option(help="First make a few samples, to measure how long they take.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with code 3 if there is work to do.")
    ] = False,
) -> None:
    """Show what would run, why, and what it takes. Inputs are looked at, as before a run."""
    from pipeline.commands.opening import open_plan

    wanted, set_ = asked_for(until, eval_, from_, only, force, set_)
    opened = open_plan(config, preset, set_, wanted, pin=probe)
    if probe:
        _probe(opened)
    show_plan(opened, as_json=as_json)
    if exit_code and any(stage.action == "run" for stage in opened.stages):
        raise typer.Exit(3)


def _probe(opened: Opened) -> None:
    from pipeline.commands.stopping import unwind_on_sigterm
    from pipeline.observe import Observer
    from pipeline.probe import probe

    unwind_on_sigterm()
    with Observer() as observer:
        probe(opened.config, opened.store, opened.stages, observer)


def show_plan(opened: Opened, *, as_json: bool = False) -> None:
    """Print one row per stage and, on stderr, warnings. Raises ConfigError for inputs with which a
    stage would fail.
    """
    from pipeline.commands.tables import print_table

    fields = ("stage", "key", "action", "why", "estimate")
    rows: list[dict[str, Any]] = [
        dict(zip(fields, (s.name, s.key, s.action, s.why, s.estimate), strict=True))
        for s in opened.stages
    ]
    if not as_json:
        columns = [name for name in fields if name != "key"]
        print_table(columns, [[row[name] for name in columns] for row in rows])
    if all(stage.action != "run" for stage in opened.stages):  # nothing more is loaded
        if as_json:
            _print_json(rows, {})
        return
    _show_work(opened, rows, as_json=as_json)


def _show_work(opened: Opened, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Show what the stages that would run cost, and what is wrong with them."""
    from pipeline.commands.cost_table import cost_rows, print_costs
    from pipeline.planning import warnings_of
    from pipeline.preflight import require_ready
    from pipeline.rates import look_ahead

    ahead = look_ahead(opened.config, opened.store, opened.stages)
    assert ahead is not None
    if as_json:
        _print_json(rows, cost_rows(ahead))
    else:
        print_costs(ahead, opened.config.costs)
    for remark in ahead.remarks:
        print(f"note: {remark}", file=sys.stderr)
    require_ready(opened.config, opened.store, opened.stages, ahead)
    for warning in warnings_of(opened.config, opened.stages):
        print(f"warning: {warning}", file=sys.stderr)


def _print_json(rows: list[dict[str, Any]], costs: Mapping[str, Any]) -> None:
    print(json.dumps([row | {"cost": costs.get(row["stage"])} for row in rows], indent=2))


@app.command()
def status(
    config: ConfigFile = None, preset: Preset = None, set_: Settings = None, as_json: AsJson = False
) -> None:
    """Show what exists of this configuration, finished or under way."""
    from pipeline.commands.opening import open_plan
    from pipeline.commands.tables import counts_text, print_table

    opened = open_plan(config, preset, set_)
    rows = [_state(opened.store, stage) for stage in opened.stages]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ["stage", "state", "artifact", "counts"],
        [[row["stage"], row["state"], row["key"], counts_text(row["counts"])] for row in rows],
    )


def _state(store: ArtifactStore, stage: PlannedStage) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": stage.name, "key": stage.key, "state": "done", "counts": {}}
    if stage.manifest is not None:
        return row | {"state": _done(store, stage), "counts": stage.manifest.counts}
    from pipeline.base.markers import finished_shards

    markers = finished_shards(store, store.folder(stage.name, stage.key))
    checkpoints = []
    if stage.training:
        from pipeline.base.course import saved_in

        checkpoints = saved_in(store, store.training_folder(stage.name, stage.training))
    counts = {"shards": len(markers), "checkpoints": len(checkpoints)}
    return row | {
        "state": "under way" if markers or checkpoints else "missing",
        "counts": {name: count for name, count in counts.items() if count},
    }


def _done(store: ArtifactStore, stage: PlannedStage) -> str:
    from pipeline.base.dropping import dropped

    found = store.find(stage.name, stage.key) if STAGES[stage.name].data else None
    return "done, data dropped" if found is not None and dropped(found) else "done"


@app.command()
def graph(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    format_: Annotated[str, typer.Option("--format", help="text or mermaid.")] = "text",
) -> None:
    """Draw the graph of stages."""
    from pipeline.commands.opening import open_plan

    if format_ not in ("text", "mermaid"):
        raise ConfigError(f"--format {format_!r} is neither text nor mermaid")
    stages = open_plan(config, preset, set_).stages
    if format_ == "mermaid":
        print("graph LR")
    for stage in stages:
        if format_ == "mermaid":
            print(f'  {stage.name}["{stage.name}<br/>{stage.key}"]')
            for upstream in stage.inputs:
                print(f"  {upstream} --> {stage.name}")
        else:
            inputs = f"  <- {', '.join(stage.inputs)}" if stage.inputs else ""
            print(f"{stage.name}  {stage.key}{inputs}")
