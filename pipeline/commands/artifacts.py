"""`ladd-pipeline artifacts`: list, show and compare. `upkeep.py` has what changes a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import transfer, upkeep
from pipeline.commands.options import ConfigFile, Preset, Settings, new_group
from pipeline.dag import STAGES
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.base.store import ArtifactStore
    from schemas.manifest import Manifest

app = new_group("Inspect and clean up the store.")
app.add_typer(upkeep.app)
app.add_typer(transfer.app)


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
            _size(store, manifest),
            counts_text(manifest.counts),
        ]
        for manifests, _ in found
        for manifest in manifests
    ]
    print_table(["stage", "artifact", "started", "size", "counts"], rows)
    for _, damaged in found:
        for text in damaged:
            print_to_stderr(f"warning: {text}")


def _size(store: ArtifactStore, manifest: Manifest) -> str:
    from pipeline.base.dropping import dropped
    from pipeline.base.sizes import size_text
    from pipeline.base.store import Artifact

    size = manifest.total_bytes
    note = dropped(Artifact(store, manifest, "")) if STAGES[manifest.stage].data else None
    if note is None:
        return size_text(size)
    return f"{size_text(size - note.size)} ({size_text(note.size)} dropped)"


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


@app.command("accept")
def accept_artifact(
    key: Annotated[str, typer.Argument(help="The artifact that is as good.")],
    reason: Annotated[str, typer.Option(help="Why it is: kept in the lineage of what follows.")],
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Let an existing artifact stand for the one that this configuration would make."""
    from pipeline.commands.opening import find_artifact, open_plan
    from pipeline.outside import accept, changes_outside
    from pipeline.planning import changed_fields

    if not reason.strip():
        raise ConfigError("--reason is empty; say why the artifact is good for this configuration")
    opened = open_plan(config, preset, set_, pin=True)
    artifact = find_artifact(opened.store, key)
    manifest = artifact.manifest
    planned = {stage.name: stage for stage in opened.stages}
    if manifest.stage not in planned:
        raise ConfigError(f"this configuration has no stage {manifest.stage}")
    mine, stage = planned[manifest.stage], STAGES[manifest.stage]
    above = [planned[name].key for name in mine.inputs]
    wanted = stage.key(opened.config, above, mine.outside)
    if mine.key == manifest.key or (mine.action == "done" and not mine.accepted):
        raise ConfigError(f"this configuration has {mine.name}/{mine.key}: nothing to accept")
    changes = changed_fields(manifest.identity, stage.identity(opened.config))
    changes += changes_outside(manifest.outside, mine.outside, stage, opened.config)
    if manifest.version != stage.version:
        changes.append(f"stage version changed from {manifest.version} to {stage.version}")
    former = {ref.stage: ref.key for ref in manifest.inputs}
    changes += [
        f"input {name} changed from {former.get(name, 'nothing')} to {planned[name].key}"
        for name in mine.inputs
        if former.get(name) != planned[name].key
    ]
    accept(artifact, wanted, reason.strip(), changes)
    print(
        f"{manifest.stage}/{manifest.key} stands for {manifest.stage}/{wanted}, which differs in:"
    )
    print("\n".join(changes) or "nothing that the manifests know")


def _made_of(manifest: Manifest) -> dict[str, Any]:
    digests = {field: seen.digest for field, seen in manifest.outside.items()}
    return manifest.identity | ({"contents of": digests} if digests else {})
