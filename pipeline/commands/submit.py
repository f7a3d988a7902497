"""`ladd-pipeline submit`: a run on a Ray cluster that is up, followed from here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import (
    AsJson,
    ConfigFile,
    Eval,
    Force,
    From,
    LogFormat,
    Only,
    Preset,
    Settings,
    Until,
    asked_for,
    check_log_format,
    new_group,
    words_of,
)
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.jobs import JobRow, Jobs
    from pipeline.planning import Selection

app = new_group()
_ADDRESS = "http://127.0.0.1:8265"
_MOST_BYTES = 100_000_000
"""Of local files that go along: Ray keeps them in the memory of the head."""


@app.command()
def submit(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    eval_: Eval = False,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    log_format: LogFormat = "text",
    address: Annotated[
        str,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Ray's job server.", show_default=True),
    ] = _ADDRESS,
    shared: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that all nodes have under the same name; may be repeated."),
    ] = None,
    detach: Annotated[bool, typer.Option(help="Do not follow the run.")] = False,
    attach: Annotated[
        str | None, typer.Option(help="Follow this run (an id, or latest) and start none.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the runs on the cluster.")] = False,
    stop: Annotated[str | None, typer.Option(help="Stop this run.")] = None,
    logs: Annotated[str | None, typer.Option(help="Print the log of this run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the pipeline on an existing Ray cluster; local input files are uploaded with it."""
    from pipeline.jobs import Jobs

    others = {"--attach": attach, "--list": list_, "--stop": stop, "--logs": logs}
    asked = [option for option, value in others.items() if value]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} do different things; give one of them")
    if list_:
        _list(Jobs(address), as_json)
    elif stop:
        jobs = Jobs(address)
        row = jobs.row(stop)
        jobs.stop(row.id)
        print(f"stopped  {row.id}; what is finished is kept, and the same submission resumes")
    elif logs:
        jobs = Jobs(address)
        print(jobs.log(jobs.row(logs).id), end="")
    elif attach:
        jobs = Jobs(address)
        _follow(jobs, jobs.row(attach).id)
    else:
        check_log_format(log_format)
        wanted, settings = asked_for(until, eval_, from_, only, force, set_)
        words = [*words_of(wanted), "--log-format", log_format]
        jobs, job = _start(address, config, preset, settings, wanted, words, shared)
        print(f"submitted  {job}", flush=True)
        if detach:
            print(f"to follow it: {_again(jobs, '--attach', job)}")
        else:
            _follow(jobs, job)


def _start(
    address: str,
    file: Path | None,
    preset: str | None,
    settings: list[str] | None,
    wanted: Selection,
    words: list[str],
    shared: list[Path] | None,
) -> tuple[Jobs, str]:
    """Check all that can be checked here and there, then start the run."""
    from pipeline.config import load_config
    from pipeline.jobs import Jobs, require_same_versions
    from pipeline.planning import stages_at_most
    from pipeline.stage_task import environment
    from pipeline.travelling import pack, require_public, require_shared_store

    config = load_config(file, preset, settings or ())
    everywhere = [folder.absolute() for folder in shared or ()]
    require_shared_store(config.store, everywhere)
    require_public(config, "the package that Ray keeps on every node", "the nodes' own identity")
    stages = stages_at_most(config, wanted)
    luggage = pack(config, stages, _MOST_BYTES, everywhere)
    jobs = Jobs(address)
    warning = require_same_versions(environment().model_dump(), jobs.versions())
    if warning:
        print(f"warning  submit  {warning}", file=sys.stderr)
    return jobs, jobs.submit(config, luggage, words)


def _follow(jobs: Jobs, job: str) -> None:
    """Show what a run says, and exit with its code. Ctrl-C asks what is to become of it."""
    from pipeline.commands.stopping import stopped_code, unwind_on_sigterm

    unwind_on_sigterm()
    try:
        row = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        if not _is_to_stop(job):
            print(f"left running; to follow it: {_again(jobs, '--attach', job)}", file=sys.stderr)
            print(f"to stop it: {_again(jobs, '--stop', job)}", file=sys.stderr, flush=True)
        else:
            jobs.stop(job)
            print(f"stopped  {job}; the same submission resumes", file=sys.stderr, flush=True)
        # Not through typer: Ray's threads would be waited for.
        os._exit(stopped_code())
    code = _exit_code(row)
    if code:
        print(f"{row.state.lower()}  {job}", file=sys.stderr)
        raise typer.Exit(code)


def _is_to_stop(job: str) -> bool:
    """Ask whether to stop a run; it goes on where nobody can answer."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"\n{job} is running: [l]eave it, or [s]top it? ")
    except (KeyboardInterrupt, EOFError):
        return False
    return answer.strip().lower().startswith("s")


def _exit_code(row: JobRow) -> int:
    if row.state == "SUCCEEDED":
        return 0
    return row.exit_code if row.exit_code and row.exit_code > 0 else 1


def _again(jobs: Jobs, option: str, job: str) -> str:
    where = "" if jobs.address == _ADDRESS else f" --address {jobs.address}"
    return f"ladd-pipeline submit{where} {option} {job}"


def _list(jobs: Jobs, as_json: bool) -> None:
    from pipeline.commands.tables import print_table

    rows: list[dict[str, Any]] = [
        {
            "id": row.id,
            "name": row.name,
            "state": row.state.lower(),
            "started": row.started.strftime("%Y-%m-%d %H:%M:%S") if row.started else "",
            "seconds": round(row.seconds),
            "exit code": row.exit_code,
        }
        for row in jobs.rows()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"no runs on {jobs.address}")
    else:
        print_table(
            ["run", "state", "started (UTC)", "time"],
            [[row["id"], _state(row), row["started"], f"{row['seconds']:,} s"] for row in rows],
        )


def _state(row: dict[str, Any]) -> str:
    return f"{row['state']} ({row['exit code']})" if row["exit code"] else str(row["state"])
