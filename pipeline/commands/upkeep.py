"""`ladd-pipeline artifacts verify|repair|drop|gc`: keeps a store sound and small."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.base.sizes import size_text
from pipeline.commands.options import ConfigFile, LogFormat, Preset, Settings, new_group
from pipeline.dag import STAGES
from schemas.errors import ArtifactError, ConfigError, Locked

if TYPE_CHECKING:
    from pipeline.base.checking import Damage
    from pipeline.base.store import Artifact, ArtifactStore
    from pipeline.commands.opening import Opened

_KEY = re.compile("[0-9a-f]{16}")
_MOST_NAMED = 5
app = new_group()

Deep = Annotated[bool, typer.Option(help="Compare contents, not sizes alone.")]


@app.command()
def verify(
    key: Annotated[str | None, typer.Argument(help="By default all artifacts.")] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    deep: Deep = False,
) -> None:
    """Check the files of one artifact, or of all, against their manifests."""
    from pipeline.base.dropping import dropped
    from pipeline.base.lineage import artifacts_of
    from pipeline.commands.opening import find_artifact, open_store

    store = open_store(config, preset, set_)
    problems: list[str] = []
    chosen = [find_artifact(store, key)] if key else []
    if not key:
        for stage in STAGES:
            found, damages = artifacts_of(store, stage)
            chosen += found
            problems += damages
    problems += [damage.text for found in _damages(chosen, deep=deep).values() for damage in found]
    if problems:
        more = len(problems) - _MOST_NAMED
        raise ArtifactError(
            "; ".join(problems[:_MOST_NAMED])
            + (f"; and {more:,} more" if more > 0 else "")
            + "; `ladd-pipeline artifacts repair` makes again what it can"
        )
    how = "sizes and contents" if deep else "sizes; --deep compares contents too"
    print(f"{len(chosen)} artifacts match their manifests ({how})")
    for artifact in chosen:
        if STAGES[artifact.manifest.stage].data and (note := dropped(artifact)):
            print(f"{_name(artifact)}: {note.files:,} files were dropped on {note.when[:10]}")


def _damages(artifacts: Sequence[Artifact], *, deep: bool) -> dict[str, list[Damage]]:
    """Check artifacts and show progress; returns what is damaged by `stage/key`."""
    from pipeline.base.checking import damaged
    from pipeline.base.dropping import dropped
    from pipeline.observe import Observer

    total = sum(len(artifact.listed) for artifact in artifacts)
    done, found = 0, {}
    with Observer() as observer:

        def told() -> None:
            nonlocal done
            done += 1
            observer.progress("verify", "files", done, total)

        for artifact in artifacts:
            note = dropped(artifact) if STAGES[artifact.manifest.stage].data else None
            found[_name(artifact)] = damaged(artifact, deep=deep, without=note, told=told)
    return found


@app.command()
def repair(
    stage: Annotated[
        str | None, typer.Argument(help="A stage; by default all of this configuration.")
    ] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    deep: Deep = False,
    log_format: LogFormat = "text",
) -> None:
    """Rebuild missing or damaged files shard by shard, byte for byte. With STAGE, also rebuild
    dropped data.
    """
    from pipeline.base.checking import damaged
    from pipeline.commands.opening import open_plan

    if stage is not None and stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; stages are {', '.join(STAGES)}")
    opened = open_plan(config, preset, set_)
    there = [one.name for one in opened.stages if one.manifest is not None]
    if stage is not None:
        opened.made(stage)
        there = [stage]
    artifacts = [opened.made(name) for name in there]
    found = _damages(artifacts, deep=deep)
    repaired = 0
    for artifact in artifacts:
        damages = found[_name(artifact)]
        if stage is not None:
            damages += [one for one in damaged(artifact) if one not in damages]
        if damages:
            _repair(opened, artifact, damages, log_format)
            repaired += len(damages)
    print(f"{repaired:,} files made again" if repaired else "nothing is damaged")


def _repair(opened: Opened, artifact: Artifact, damages: Sequence[Damage], log_format: str) -> None:
    from pipeline.commands.stopping import unwind_on_sigterm
    from pipeline.observe import Observer
    from pipeline.repair import repair as make_again

    unwind_on_sigterm()
    with Observer(log_format) as observer:
        stage = artifact.manifest.stage
        make_again(opened.config, opened.store, opened.stages, stage, damages, observer)


@app.command()
def drop(
    stage: Annotated[str, typer.Argument(help="STAGE of this configuration, or STAGE/KEY.")],
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            help="Drop even if no stage has used the data yet, or an unfinished one is still "
            "reading it."
        ),
    ] = False,
) -> None:
    """Remove pictures or latents that are no longer needed. Manifest, sidecars and counts stay, so
    lineage, held-out proof, model card and report still work.
    """
    from pipeline.base.dropping import data_of, drop
    from pipeline.commands.opening import find_artifact, open_plan, open_store
    from pipeline.repair import require_unread

    name = stage.partition("/")[0]
    if name not in STAGES or not STAGES[name].data:
        able = [one.name for one in STAGES.values() if one.data]
        raise ConfigError(f"{name} has no data to drop; stages that have: {', '.join(able)}")
    if "/" in stage:
        artifact = find_artifact(open_store(config, preset, set_), stage)
    else:
        artifact = open_plan(config, preset, set_).made(stage)
    if not force:
        _require_served(artifact)
        require_unread(artifact)
    patterns = STAGES[name].data
    files = data_of(artifact, patterns)
    if not dry_run:
        drop(artifact, patterns)
    verb = "would drop" if dry_run else "dropped"
    size = size_text(sum(file.size for file in files))
    print(f"{verb} {size} in {len(files):,} files of {_name(artifact)}")


def _require_served(artifact: Artifact) -> None:
    """Raise ArtifactError unless something was made from the artifact."""
    from pipeline.base.lineage import committed

    mine = artifact.manifest
    for stage in STAGES:
        for manifest in committed(artifact.store, stage):
            if any((ref.stage, ref.key) == (mine.stage, mine.key) for ref in manifest.inputs):
                return
    raise ArtifactError(
        f"nothing has been made from {_name(artifact)} yet, so its data are still needed; --force "
        "drops them all the same"
    )


@app.command("gc")
def collect_garbage(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    delete: Annotated[bool, typer.Option(help="Delete; by default they are only listed.")] = False,
    older_than: Annotated[
        float,
        typer.Option(min=0, help="Hours after which a half-written file counts as left over."),
    ] = 24.0,
) -> None:
    """List or delete what this configuration does not use (other artifacts and their trainings) and
    what killed processes have left. What a live run uses stays.
    """
    from pipeline.base.claims import claims_folder
    from pipeline.base.leftovers import crews_at_work, leftovers, runs_under_way, watched
    from pipeline.commands.opening import open_plan
    from pipeline.config import DEFAULT_FILE
    from pipeline.planning import used_by

    if delete and config is None and preset is None and not DEFAULT_FILE.exists():
        raise ConfigError(
            "artifacts gc --delete keeps what one configuration uses, but this folder "
            f"has no {DEFAULT_FILE}: choose one with --config FILE or --preset NAME"
        )
    opened = open_plan(config, preset, set_)
    store, runs = opened.store, runs_under_way(opened.store)
    used = used_by(opened.config, store, opened.stages)
    sizes = _stored(store)
    held = watched(store, [store.training_folder(*one) for one in sizes])
    crews = crews_at_work(store)
    in_use = crews | {one for one, is_held in zip(sizes, held, strict=True) if is_held}
    for record in runs.values():
        for part in ("artifacts", "trainings"):
            in_use |= set(record.get(part, {}).items())
        in_use |= {tuple(one.split("/", 1)) for one in record.get("uses", ())}
    freed = 0
    for one in sorted(sizes.keys() - used):
        is_free = one not in in_use and (not delete or _cleared(store, *one))
        freed += sizes[one] if is_free else 0
        print(f"{('deleted' if delete else 'unused') if is_free else 'in use'} {'/'.join(one)}")
    busy = {*runs, *(store.training_folder(*one) for one in in_use)}
    busy |= {claims_folder(*one) for one in crews}
    for left in leftovers(store, older_than, busy=busy):
        if delete:
            left.remove()
        freed += left.size
        print(f"{'deleted' if delete else 'left over:'} {left.what}")
    if delete:
        print(f"{size_text(freed)} freed")
    elif freed:
        print(f"{size_text(freed)} would be freed; --delete deletes what is not in use")


def _cleared(store: ArtifactStore, stage: str, key: str) -> bool:
    """Remove an artifact and its training; False if a run has begun to use them meanwhile. While
    they are removed, no run can commit the artifact.
    """
    from pipeline.base.claims import alone_on
    from pipeline.base.lease import clear

    try:
        with alone_on(store, stage, key):
            clear(store, stage, key)
    except Locked:
        return False
    return True


def _stored(store: ArtifactStore) -> dict[tuple[str, str], int]:
    """Return stage and key of every folder of an artifact or a training, with the bytes in it."""
    sizes: dict[tuple[str, str], int] = {}
    for area in ("artifacts", "training"):
        for name, size in store.list(area).items():
            stage, _, rest = name.partition("/")
            key, _, path = rest.partition("/")
            if path and _KEY.fullmatch(key):
                sizes[stage, key] = sizes.get((stage, key), 0) + size
    return sizes


def _name(artifact: Artifact) -> str:
    return f"{artifact.manifest.stage}/{artifact.manifest.key}"
