"""The command line. Parses first, imports what is heavy afterwards: `--help` and `plan` need
neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import ArtifactError, ConfigError, GateFailed, LaddError, StageFailed

if TYPE_CHECKING:
    from stages.shapes_table import Judged

app = typer.Typer(
    help="From prompts to a few-step student: Latent Adversarial Diffusion Distillation for SD3.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_stopped_by: int = signal.SIGINT
"""A stopped command ends with 128 and the number of this signal: 130 after Ctrl-C, 143 after
SIGTERM.
"""
artifacts_app = typer.Typer(
    help="Look at what is in the store.", no_args_is_help=True, rich_markup_mode=None
)
config_app = typer.Typer(
    help="About the configuration.", no_args_is_help=True, rich_markup_mode=None
)
teacher_app = typer.Typer(
    help="About the embedded teacher.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(config_app, name="config")
app.add_typer(teacher_app, name="teacher")

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML configuration.")]
Preset = Annotated[
    str | None,
    typer.Option(help="A preset: shapes, shapes-smoke, sd3-medium, sd35-medium, sd35-large."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be given again.")
]
Until = Annotated[str | None, typer.Option(help="Run up to this stage and what it needs.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from", help="Run this stage and those behind it; the ones before must be there."
    ),
]
Only = Annotated[
    str | None, typer.Option(help="Run this stage alone; those before it must be there.")
]
Force = Annotated[list[str] | None, typer.Option(help="Make this stage's artifact again.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LogFormat = Annotated[str, typer.Option(help="text or json.")]


@app.command()
def run(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    dry_run: Annotated[bool, typer.Option(help="Show the plan and stop.")] = False,
    log_format: LogFormat = "text",
) -> None:
    """Run the pipeline; what is there already is not made again."""
    _run(config, preset, set_, _selection(until, from_, only, force), dry_run, log_format)


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        config: ConfigFile = None,
        preset: Preset = None,
        set_: Settings = None,
        force: bool = False,
        log_format: LogFormat = "text",
    ) -> None:
        _run(
            config,
            preset,
            set_,
            _selection(None, None, name, [name] if force else None),
            False,
            log_format,
        )

    command.__doc__ = f"Run stage {name} alone; same as `run --only {name}`."
    return command


for _name in ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval"):
    app.command(_name)(_stage_command(_name))


@app.command()
def plan(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    until: Until = None,
    from_: From = None,
    only: Only = None,
    force: Force = None,
    as_json: AsJson = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 3 when there is work to do.")
    ] = False,
) -> None:
    """Show what would run, and why."""
    _, _, stages = _plan(config, preset, set_, _selection(until, from_, only, force))
    if as_json:
        rows = [
            {
                "stage": s.name,
                "key": s.key,
                "action": s.action,
                "why": s.why,
                "estimate": s.estimate,
            }
            for s in stages
        ]
        print(json.dumps(rows, indent=2))
    else:
        _show_plan(stages)
    if exit_code and any(stage.action == "run" for stage in stages):
        raise typer.Exit(3)


@app.command()
def status(
    config: ConfigFile = None, preset: Preset = None, set_: Settings = None, as_json: AsJson = False
) -> None:
    """What there is of this configuration, finished or under way."""
    _, store, stages = _plan(config, preset, set_, _selection(None, None, None, None))
    rows = []
    for stage in stages:
        row: dict[str, Any] = {"stage": stage.name, "key": stage.key, "state": "done", "counts": {}}
        if stage.manifest is not None:
            row["counts"] = stage.manifest.counts
        else:
            markers = [
                n
                for n in store.list(store.folder(stage.name, stage.key))
                if n.startswith("shards/") and n.endswith(".json")
            ]
            checkpoints = {
                n.split("/")[0]
                for n in store.list(f"training/{stage.name}/{stage.key}")
                if n.startswith("checkpoint_")
            }
            row["state"] = "under way" if markers or checkpoints else "missing"
            row["counts"] = {
                k: v for k, v in (("shards", len(markers)), ("checkpoints", len(checkpoints))) if v
            }
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _table(
        ["stage", "state", "artifact", "counts"],
        [[r["stage"], r["state"], r["key"], _counts(r["counts"])] for r in rows],
    )


@app.command()
def graph(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    format_: Annotated[str, typer.Option("--format", help="text or mermaid.")] = "text",
) -> None:
    """Draw the graph of stages."""
    if format_ not in ("text", "mermaid"):
        raise ConfigError(f"--format {format_!r} is neither text nor mermaid")
    _, _, stages = _plan(config, preset, set_, _selection(None, None, None, None))
    if format_ == "mermaid":
        print("graph LR")
    for stage in stages:
        if format_ == "mermaid":
            print(f'  {stage.name}["{stage.name}<br/>{stage.key}"]')
            for upstream in stage.inputs:
                print(f"  {upstream} --> {stage.name}")
        else:
            print(
                f"{stage.name}  {stage.key}"
                + (f"  <- {', '.join(stage.inputs)}" if stage.inputs else "")
            )


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write pipeline.yaml.")] = Path(),
    preset: Annotated[str, typer.Option(help="The preset to start from.")] = "shapes",
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented pipeline.yaml."""
    from pipeline.config import PRESETS, read_preset

    read_preset(preset)
    path = folder / "pipeline.yaml"
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; --force overwrites it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text((PRESETS / f"{preset}.yaml").read_text())
    print(f"wrote {path}; `ladd-pipeline plan -c {path}` shows what it would do")


@app.command()
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw.")] = None,
    file: Annotated[
        str | None, typer.Option(help="Draw the prompts of this txt, jsonl, csv or parquet file.")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(help="A student's diffusers folder; by default this configuration's."),
    ] = None,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="By default take the preference-tuned student.")
    ] = False,
    lora: Annotated[
        Path | None, typer.Option(help="A folder with adapters to put on the student.")
    ] = None,
    lora_scale: Annotated[
        float | None,
        typer.Option(help="Their scale; without --lora for this configuration's own adapters."),
    ] = None,
    steps: Annotated[int, typer.Option(help="1, 2 or 4 on the default grid.")] = 4,
    bucket: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT; by default the configuration's first.")
    ] = "",
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("samples"),
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Draw pictures with a student."""
    loaded, store, stages = _plan(config, preset, set_, _selection(None, None, None, None))
    wanted = list(prompts or ())
    if file is not None:
        from schemas.config import FileSource
        from stages.prompt_sources import check_file, read_file

        check_file(FileSource(kind="file", url=file))
        wanted += read_file(FileSource(kind="file", url=file))
    if not wanted:
        raise ConfigError("sample needs a prompt, or a file of them: --file prompts.txt")
    if lora is not None and not lora.is_dir():
        raise ArtifactError(f"--lora {lora} is not a folder")
    if tuned and lora is None and lora_scale is not None:
        raise ConfigError(
            "--tuned has its adapters in it, at the scale that was chosen; leave it out to put "
            "them on the student at --lora-scale"
        )
    from stages.student import draw_prompts

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_student_folder(student, store, stages, tuned=tuned))
        if lora is None and lora_scale is not None:
            found = _made(store, stages, "dpo")
            lora = stack.enter_context(found.local_folder(found.manifest.details["lora"]))
        for path in draw_prompts(
            folder,
            wanted,
            steps,
            bucket or next(iter(loaded.prompts.buckets)),
            seed,
            out,
            lora=lora,
            lora_scale=1.0 if lora_scale is None else lora_scale,
            title="tuned" if tuned and student is None else "",
        ):
            print(path)


@app.command()
def score(
    student: Annotated[
        Path | None,
        typer.Option(help="A student's diffusers folder; by default this configuration's."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
    teacher_only: Annotated[bool, typer.Option(help="Leave the student out.")] = False,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Judge teacher and student of the shapes world on held-out prompts: all attributes right,
    Fréchet distance.
    """
    loaded, store, stages = _plan(config, preset, set_, _selection(None, None, None, None))
    from stages.shapes_table import score_table

    no_student = contextlib.nullcontext()
    with no_student if teacher_only else _student_folder(student, store, stages) as folder:
        judged = score_table(loaded, {"student": folder} if folder else {}, prompts, _to_stderr)
    _show_judged(judged, out)


@app.command()
def sweep(
    stage: Annotated[str, typer.Argument(help="Which stage's results are compared: distill.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value,value; every combination is a trial."),
    ] = None,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Not every combination: the first values of all, then each other value alone.",
        ),
    ] = False,
    score: Annotated[
        int,
        typer.Option(min=0, help="Judge the students on so many held-out prompts (shapes alone)."),
    ] = 0,
    at_once: Annotated[
        int, typer.Option(min=1, help="Trials side by side; each waits for its resources.")
    ] = 4,
    out: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    log_format: LogFormat = "text",
) -> None:
    """Run one stage with several configurations, each an artifact of its own, and compare."""
    from pipeline.observe import Observer
    from pipeline.store import ArtifactStore
    from pipeline.sweep import make_trials, require_judged_alike, run_trials

    if stage != "distill":
        raise ConfigError(f"sweep compares students: the stage is distill, not {stage!r}")
    trials = make_trials(config, preset, set_ or (), one_at_a_time)
    if score:
        from stages.shapes_table import held_out, score_table

        require_judged_alike(trials)
        held_out(trials[0].config, score)  # refuses before anything is trained
    store = ArtifactStore(trials[0].config.store)
    signal.signal(signal.SIGTERM, _terminate)
    rows, students = [], {}
    with contextlib.ExitStack() as stack:
        observer = stack.enter_context(Observer(log_format))
        for trial, result in run_trials(stage, trials, store, observer, at_once):
            if isinstance(result, LaddError):
                rows.append({"trial": trial.name, "artifact": f"failed: {result}"})
                continue
            metrics = {name: f"{value:.4g}" for name, value in result.manifest.metrics.items()}
            rows.append({"trial": trial.name, "artifact": result.manifest.key} | metrics)
            students[trial.name] = result
        if score and students:
            _show_rows(rows, None)
            folders = {
                trial.name: stack.enter_context(students[trial.name].local_folder("model"))
                for trial in trials
                if trial.name in students
            }
            judged = score_table(trials[0].config, folders, score, _to_stderr)
            _show_students(judged, list(folders))
            if out is not None:
                _write_judged(judged, out)
        else:
            _show_rows(rows, out)
    if len(students) < len(trials):
        raise StageFailed(f"{len(trials) - len(students)} of {len(trials)} trials failed")


@app.command()
def compare(
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="A system of the evaluation, such as student_4; may be given again. By default "
            "the teacher, the student at its most steps and the tuned student, in all pairs."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to judge; LADD's authors took 128.")] = 128,
    questions: Annotated[
        str, typer.Option(help="quality, alignment, or both.")
    ] = "quality,alignment",
    votes: Annotated[Path, typer.Option(help="The file that keeps the votes.")] = Path(
        "votes.sqlite"
    ),
    results: Annotated[bool, typer.Option("--results", help="Print what the votes say.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write the votes as preference pairs (jsonl), for pairs.url."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8765,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Let people judge the evaluation's pictures on a blind A/B page."""
    _, store, stages = _plan(config, preset, set_, _selection(None, None, None, None))
    found = _made(store, stages, "eval")
    from pipeline.compare import command

    signal.signal(signal.SIGTERM, _terminate)
    command.compare(
        found,
        votes,
        systems=system or (),
        prompts=prompts,
        questions=[name.strip() for name in questions.split(",") if name.strip()],
        results=results,
        as_json=as_json,
        export=export,
        host=host,
        port=port,
    )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show_judged(judged: list[Judged], out: Path | None) -> None:
    """One table over all pictures, then attributes and distance by bucket."""
    buckets = list(judged[0].attributes_by_bucket)
    drawn = [row for row in judged if row.frechet is not None]
    _table(
        ["pictures", "all attributes %", "Fréchet distance", "diversity"],
        [
            [
                row.pictures,
                f"{100 * row.attributes:.1f}",
                "" if row.frechet is None else f"{row.frechet:.3f}",
                f"{row.diversity:.3f}",
            ]
            for row in judged
        ],
    )
    typer.echo()
    _table(
        ["all attributes %", *buckets],
        [
            [row.pictures, *(f"{100 * row.attributes_by_bucket[b]:.1f}" for b in buckets)]
            for row in judged
        ],
    )
    typer.echo()
    _table(
        ["Fréchet distance", *buckets],
        [[row.pictures, *(f"{row.frechet_by_bucket[b]:.3f}" for b in buckets)] for row in drawn],
    )
    if out is not None:
        _write_judged(judged, out)


def _write_judged(judged: list[Judged], out: Path) -> None:
    out.write_text(json.dumps([asdict(row) for row in judged], indent=2) + "\n")


def _show_students(judged: list[Judged], titles: list[str]) -> None:
    """The teacher at its own steps, then a line for each student."""
    from stages.shapes_table import student_lines

    _, teacher, *_ = judged
    first = [f"{100 * teacher.attributes:.1f}", "", f"{teacher.diversity:.2f}"]
    rows = [[teacher.pictures, str(teacher.steps), *first]]
    for line in student_lines(judged, titles):
        columns = ((line.attributes, 1), (line.frechet, 3), (line.diversity, 2))
        cells = [" / ".join(f"{value:.{d}f}" for value in of.values()) for of, d in columns]
        rows.append([line.student, " / ".join(map(str, line.attributes)), *cells])
    _table(["pictures", "steps", "all attributes %", "Fréchet distance", "diversity"], rows)


def _show_rows(rows: list[dict[str, Any]], out: Path | None) -> None:
    columns = list({name: None for row in rows for name in row})
    _table(columns, [[str(row.get(name, "")) for name in columns] for row in rows])
    if out is not None:
        out.write_text(json.dumps(rows, indent=2) + "\n")


@artifacts_app.command("ls")
def artifacts_ls(config: ConfigFile = None, preset: Preset = None, set_: Settings = None) -> None:
    """List every committed artifact."""
    from pipeline.dag import STAGES
    from pipeline.planning import committed

    _, store = _open(config, preset, set_)
    rows = [
        [
            m.stage,
            m.key,
            m.started[:19],
            f"{sum(f.size for f in m.files) / 1e6:.1f} MB",
            _counts(m.counts),
        ]
        for stage in STAGES
        for m in committed(store, stage)
    ]
    _table(["stage", "artifact", "started", "size", "counts"], rows)


@artifacts_app.command("show")
def artifacts_show(
    key: str, config: ConfigFile = None, preset: Preset = None, set_: Settings = None
) -> None:
    """Print an artifact's manifest."""
    _, store = _open(config, preset, set_)
    print(_artifact(store, key).manifest.model_dump_json(indent=2))


@artifacts_app.command("diff")
def artifacts_diff(
    first: str, second: str, config: ConfigFile = None, preset: Preset = None, set_: Settings = None
) -> None:
    """Which identity fields differ between two artifacts."""
    from pipeline.planning import changed_fields

    _, store = _open(config, preset, set_)
    changes = changed_fields(*(_artifact(store, key).manifest.identity for key in (first, second)))
    print("\n".join(changes) or "same identity configuration")


@artifacts_app.command("verify")
def artifacts_verify(
    key: Annotated[str | None, typer.Argument()] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Check every file of an artifact, or of all, against its manifest."""
    from pipeline.dag import STAGES
    from pipeline.planning import committed

    _, store = _open(config, preset, set_)
    chosen = (
        [_artifact(store, key)]
        if key
        else [store.find(s, m.key) for s in STAGES for m in committed(store, s)]
    )
    wrong = [text for artifact in chosen for text in artifact.verify(contents=True)]
    if wrong:
        raise ArtifactError(
            "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        )
    print(f"{len(chosen)} artifacts are as their manifests say")


@artifacts_app.command("gc")
def artifacts_gc(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    delete: Annotated[bool, typer.Option(help="Delete; without it they are only listed.")] = False,
) -> None:
    """List, or delete, what this configuration does not use: other artifacts and their training
    states, but for those that are being trained.
    """
    from pipeline.config import DEFAULT_FILE
    from pipeline.lease import is_held

    if delete and config is None and preset is None and not DEFAULT_FILE.exists():
        raise ConfigError(
            "artifacts gc --delete keeps what one configuration uses, and there is no "
            f"{DEFAULT_FILE} here: say which with --config FILE or --preset NAME"
        )
    _, store, stages = _plan(config, preset, set_, _selection(None, None, None, None))
    used = {(s.name, s.key) for s in stages}
    there = {
        (n.split("/")[0], n.split("/")[1])
        for area in ("artifacts", "training")
        for n in store.list(area)
        if n.count("/") >= 2
    }
    for stage, key in sorted(there - used):
        if is_held(store, f"training/{stage}/{key}"):
            print(f"in use {stage}/{key}")
            continue
        print(f"{'deleted' if delete else 'unused'} {stage}/{key}")
        if delete:
            store.remove(store.folder(stage, key))
            store.remove(f"training/{stage}/{key}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the configuration's JSON schema."""
    from schemas.config import PipelineConfig

    print(json.dumps(PipelineConfig.model_json_schema(), indent=2))


@config_app.command("show")
def config_show(config: ConfigFile = None, preset: Preset = None, set_: Settings = None) -> None:
    """Print the resolved configuration."""
    import yaml

    loaded, _ = _open(config, preset, set_)
    print(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False), end="")


@teacher_app.command("train")
def teacher_train(
    name: Annotated[str, typer.Argument(help="shapes")],
    work: Annotated[
        Path, typer.Option(help="Folder for progress; the same folder continues.")
    ] = Path("teacher-build"),
    out: Annotated[Path, typer.Option(help="Folder for the finished pipeline.")] = Path(
        "teacher-shapes"
    ),
    share: Annotated[
        float, typer.Option(help="Share of the full number of steps; below 1 for a trial.")
    ] = 1.0,
) -> None:
    """Train the embedded teacher from nothing: tokenizer, text towers, autoencoder, judge,
    transformer.
    """
    if name != "shapes":
        raise ConfigError(f"there is no recipe for teacher {name!r}; known: shapes")
    from stages.shapes_world.train import train_all

    train_all(work, out, share)


def _selection(
    until: str | None, start: str | None, only: str | None, force: list[str] | None
) -> Any:
    from pipeline.planning import Selection

    if only and (until or start):
        raise ConfigError("--only goes with neither --until nor --from")
    return Selection(until, start, only, frozenset(force or ()))


def _open(config: Path | None, preset: str | None, settings: list[str] | None) -> tuple[Any, Any]:
    from pipeline.config import load_config
    from pipeline.store import ArtifactStore

    loaded = load_config(config, preset, settings or ())
    return loaded, ArtifactStore(loaded.store)


def _plan(
    config: Path | None, preset: str | None, settings: list[str] | None, selection: Any
) -> tuple[Any, Any, Any]:
    from pipeline.planning import make_plan

    loaded, store = _open(config, preset, settings)
    return loaded, store, make_plan(loaded, store, selection)


def _run(
    config: Path | None,
    preset: str | None,
    settings: list[str] | None,
    selection: Any,
    dry_run: bool,
    log_format: str,
) -> None:
    if log_format not in ("text", "json"):
        raise ConfigError(f"--log-format {log_format!r} is neither text nor json")
    loaded, store, stages = _plan(config, preset, settings, selection)
    if dry_run:
        _show_plan(stages)
        return
    from pipeline.executor import execute
    from pipeline.observe import Observer

    signal.signal(signal.SIGTERM, _terminate)
    with Observer(log_format) as observer:
        try:
            rows = execute(loaded, store, stages, observer)
        except LaddError:
            print(f"to resume: {_command()}", file=sys.stderr)
            raise
    _table(
        ["stage", "action", "samples", "time", "artifact"],
        [
            [
                r["stage"],
                r["action"],
                _counts(r["counts"]),
                f"{r['seconds']:.0f} s" if r["seconds"] else "",
                r["key"],
            ]
            for r in rows
        ],
    )
    student = next((s for s in stages if s.name == "distill"), None)
    if student and (found := store.find("distill", student.key)):
        print(f"student: {found.url}/{found.manifest.details['model']}")
        for grid in found.manifest.details["samples"][-1:]:
            print(f"samples: {found.url}/{grid}")
    judged = next(s for s in stages if s.name == "eval")
    if (selection.only or selection.until or "eval") == "eval" and (
        found := store.find("eval", judged.key)
    ):
        print(f"tuned student: {found.url}/{found.manifest.details['model']}")
        print(f"report: {found.url}/report.html")
        if failed := found.manifest.details["failed_gates"]:
            raise GateFailed("; ".join(failed))


def _terminate(number: int, _frame: object) -> None:
    """A polite kill unwinds as Ctrl-C does, and ends with its own code."""
    global _stopped_by
    _stopped_by = number
    raise KeyboardInterrupt


def _command() -> str:
    import shlex

    return "ladd-pipeline " + shlex.join(sys.argv[1:])


def _show_plan(stages: Any) -> None:
    _table(
        ["stage", "action", "why", "estimate"],
        [[s.name, s.action, s.why, s.estimate] for s in stages],
    )


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from pipeline.observe import Observer

    Observer().table("", columns, rows)


def _counts(counts: dict[str, int]) -> str:
    main = [(k, v) for k, v in counts.items() if v and not k.startswith("bucket_")]
    return ", ".join(f"{value:,} {name}" for name, value in main)


def _artifact(store: Any, key: str) -> Any:
    from pipeline.dag import STAGES
    from pipeline.planning import committed

    matches = [
        (s, m.key)
        for s in STAGES
        for m in committed(store, s)
        if m.key.startswith(key) or f"{s}/{m.key}" == key
    ]
    if len(matches) != 1:
        found = "no artifact" if not matches else "more than one artifact"
        raise ArtifactError(
            f"{found} in {store.url} begins with {key!r}; `ladd-pipeline artifacts ls` lists them"
        )
    return store.find(*matches[0])


@contextlib.contextmanager
def _student_folder(
    student: Path | None, store: Any, stages: Any, *, tuned: bool = False
) -> Iterator[Path]:
    """A local folder with the student: the one named, or this configuration's from the store."""
    if student is not None:
        if not (student / "model_index.json").exists():
            raise ArtifactError(f"{student} is not a diffusers folder: it has no model_index.json")
        yield student
        return
    with _made(store, stages, "dpo" if tuned else "distill").local_folder("model") as folder:
        yield folder


def _made(store: Any, stages: Any, stage: str) -> Any:
    """This configuration's artifact of a stage. Raises ArtifactError when it is not there."""
    found = store.find(stage, next(s.key for s in stages if s.name == stage))
    if found is None:
        what = {"distill": "student", "dpo": "tuned student", "eval": "evaluation"}[stage]
        raise ArtifactError(
            f"this configuration has no {what} yet; `ladd-pipeline run --until {stage}` makes it"
        )
    return found


def main() -> None:
    """The `ladd-pipeline` command: errors of ours become one sentence and an exit code."""
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
        print(f"\nstopped; to resume: {_command()}", file=sys.stderr, flush=True)
        os._exit(128 + _stopped_by)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
