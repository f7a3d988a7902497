"""`ladd-pipeline artifacts push|pull`: copies artifacts between stores; resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import ConfigFile, Preset, Settings, new_group
from pipeline.dag import STAGES
from schemas.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from pipeline.base.store import Artifact, ArtifactStore

app = new_group()

Names = Annotated[
    list[str] | None,
    typer.Argument(help="STAGE of this configuration, or STAGE/KEY; by default all that exist."),
]
Light = Annotated[
    bool, typer.Option(help="Leave out pictures and latents, as `artifacts drop` would.")
]


@app.command()
def push(
    to: Annotated[str, typer.Option(help="The other store: a folder or a URL.")],
    names: Names = None,
    light: Light = False,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Copy artifacts to another store: named ones whole, their inputs without pictures and latents.
    Run it again to copy what is still missing.
    """
    from pipeline.base.store import ArtifactStore
    from pipeline.commands.opening import open_store

    source = open_store(config, preset, set_)
    _copy(source, ArtifactStore(to), _chosen(source, names, config, preset, set_), light=light)


@app.command()
def pull(
    from_: Annotated[str, typer.Option("--from", help="The other store: a folder or a URL.")],
    names: Names = None,
    light: Light = False,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
) -> None:
    """Copy artifacts from another store to this one, as `push` does."""
    from pipeline.base.store import ArtifactStore
    from pipeline.commands.opening import open_store

    target, source = open_store(config, preset, set_), ArtifactStore(from_)
    there = [*(set_ or ()), f"store={from_}"]
    _copy(source, target, _chosen(source, names, config, preset, there), light=light)


def _chosen(
    source: ArtifactStore,
    names: Sequence[str] | None,
    config: Path | None,
    preset: str | None,
    settings: Sequence[str] | None,
) -> list[Artifact]:
    """Return the artifacts that are named, or all of the configuration. Raises ArtifactError if
    there is none.
    """
    from pipeline.commands.opening import find_artifact, open_plan

    if names and all("/" in name for name in names):
        return [find_artifact(source, name) for name in names]
    opened = open_plan(config, preset, settings)
    for name in names or ():
        if "/" not in name and name not in STAGES:
            raise ConfigError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
    there = [stage.name for stage in opened.stages if stage.manifest is not None]
    if not (names or there):
        raise ArtifactError(f"{source.url} has no artifact of this configuration")
    return [
        find_artifact(source, name) if "/" in name else opened.made(name)
        for name in (names or there)
    ]


def _copy(
    source: ArtifactStore, target: ArtifactStore, chosen: Sequence[Artifact], *, light: bool
) -> None:
    from pipeline.base.lineage import ancestors
    from pipeline.base.transfer import Parcel, send, send_notes
    from pipeline.observe import Observer

    if source.url.rstrip("/") == target.url.rstrip("/"):
        raise ConfigError(f"{source.url} is both stores; name another one")
    whole = {artifact.folder for artifact in chosen}
    wanted = {artifact.folder: artifact for one in chosen for artifact in ancestors([one]).values()}
    parcels = [
        Parcel.of(
            artifact, STAGES[artifact.manifest.stage].data, light=light or folder not in whole
        )
        for folder, artifact in wanted.items()
    ]
    total, done, copied = sum(len(parcel.files) for parcel in parcels), 0, 0
    send_notes(source, target)
    with Observer() as observer:

        def told() -> None:
            nonlocal done
            done += 1
            observer.progress("copy", "files", done, total)

        for parcel in parcels:
            copied += send(parcel, target, told)
    for parcel in parcels:
        name = parcel.artifact.folder.removeprefix("artifacts/")
        print(f"{name}{'' if parcel.note is None else ' without its data'}")
    print(f"{copied / 1e6:.1f} MB copied to {target.url}")
