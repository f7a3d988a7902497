"""`ladd-pipeline artifacts`: list, show, compare and verify artifacts, and remove unused ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import ConfigFile, Preset, Settings, new_group
from pipeline.dag import STAGES
from schemas.errors import ArtifactError, ConfigError, Locked

if TYPE_CHECKING:
    from schemas.manifest import Manifest

_KEY = re.compile("[0-9a-f]{16}")
app = new_group("Inspect and clean up the store.")


@app.command("ls")
def list_artifacts(config: ConfigFile = None, preset: Preset = None, set_: Settings = None) -> None:
    """List every committed artifact."""
    from pipeline.base.lineage import survey
    from pipeline.commands.opening import open_store
    from pipeline.commands.students import print_to_stderr
    from pipeline.commands.tables import counts_text, print_table

    store = open_store(config, preset, set_)
    found = [survey(store, stage) for stage in STAGES]
    rows = [
        [
            manifest.stage,
            manifest.key,
            manifest.started[:19],
            f"{manifest.total_bytes / 1e6:.1f} MB",
            counts_text(manifest.counts),
        ]
        for manifests, _ in found
        for manifest in manifests
    ]
    print_table(["stage", "artifact", "started", "size", "counts"], rows)
    for _, damaged in found:
        for text in damaged:
            print_to_stderr(f"warning: {text}")


@app.command("show")
def show_artifact(
    key: str, config: ConfigFile = None, preset: Preset = None, set_: Settings = None
) -> None:
    """Print an artifact's manifest."""
    from pipeline.commands.opening import find_artifact, open_store

    found = find_artifact(open_store(config, preset, set_), key)
    print(found.manifest.model_dump_json(indent=2))


@app.command("diff")
def diff_artifacts(
    first: str, second: str, config: ConfigFile = None, preset: Preset = None, set_: Settings = None
) -> None:
    """Show which identity fields and outside contents differ between two artifacts."""
    from pipeline.commands.opening import find_artifact, open_store
    from pipeline.planning import changed_fields

    store = open_store(config, preset, set_)
    before, after = (_made_of(find_artifact(store, key).manifest) for key in (first, second))
    print("\n".join(changed_fields(before, after)) or "same identity configuration")


def _made_of(manifest: Manifest) -> dict[str, Any]:
    digests = {field: seen.digest for field, seen in manifest.outside.items()}
    return manifest.identity | ({"contents of": digests} if digests else {})


@app.command("verify")
def verify_artifacts(
    key: Annotated[str | None, typer.Argument()] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Check every file of one artifact, or of all artifacts, against its manifest."""
    from pipeline.base.lineage import survey
    from pipeline.commands.opening import find_artifact, open_store

    store = open_store(config, preset, set_)
    problems: list[str] = []
    if key:
        chosen = [find_artifact(store, key)]
    else:
        chosen = []
        for stage in STAGES:
            manifests, damaged = survey(store, stage)
            problems += damaged
            found = [store.find(stage, manifest.key) for manifest in manifests]
            chosen += [artifact for artifact in found if artifact is not None]
    problems += [text for artifact in chosen for text in artifact.verify(contents=True)]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError("; ".join(problems[:5]) + more)
    print(f"{len(chosen)} artifacts match their manifests")


@app.command("gc")
def collect_garbage(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    delete: Annotated[bool, typer.Option(help="Delete; by default they are only listed.")] = False,
) -> None:
    """List or delete what this configuration does not use: other artifacts and their trainings,
    except trainings in progress.
    """
    from pipeline.base.lease import clear, is_held
    from pipeline.commands.opening import open_plan
    from pipeline.config import DEFAULT_FILE
    from pipeline.student_start import start_of

    if delete and config is None and preset is None and not DEFAULT_FILE.exists():
        raise ConfigError(
            "artifacts gc --delete keeps what one configuration uses, but this folder "
            f"has no {DEFAULT_FILE}: choose one with --config FILE or --preset NAME"
        )
    opened = open_plan(config, preset, set_)
    store = opened.store
    used = {(stage.name, key) for stage in opened.stages for key in (stage.key, stage.training)}
    if (start := start_of(opened.config)) is not None:
        used.add(start)
    found = {
        (name.split("/")[0], name.split("/")[1])
        for area in ("artifacts", "training")
        for name in store.list(area)
        if name.count("/") >= 2 and _KEY.fullmatch(name.split("/")[1])
    }
    for stage, key in sorted(found - used):
        training = store.training_folder(stage, key)
        if is_held(store, training):
            print(f"in use {stage}/{key}")
            continue
        if delete:
            try:
                clear(store, stage, key)
            except Locked:  # taken at this moment
                print(f"in use {stage}/{key}")
                continue
        print(f"{'deleted' if delete else 'unused'} {stage}/{key}")
