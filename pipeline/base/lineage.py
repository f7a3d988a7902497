"""Finds the artifacts of a stage, and every artifact that an artifact was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipeline.base.stage import digest_of
from pipeline.base.store import MANIFEST, Artifact, ArtifactStore, json_object
from pipeline.base.threads import in_order
from schemas.errors import ArtifactError, ServiceUnavailable
from schemas.manifest import Manifest

_AT_ONCE = 16
"""Manifests that are read at the same time."""


def ancestors(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    """Return these artifacts and all their inputs by stage; inputs come before what was made from
    them.

    Raises ArtifactError if one is no longer in the store.
    """
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        above = []
        for ref in artifact.manifest.inputs:
            upstream = artifact.store.find(ref.stage, ref.key)
            if upstream is None:
                raise ArtifactError(
                    f"{artifact.url} was made from {ref.stage}/{ref.key}, which is no longer in "
                    f"the store; `ladd-pipeline run --until {ref.stage}` makes it again"
                )
            above.append(replace(upstream, accepted=ref.accepted))
        found |= ancestors(above) | {artifact.manifest.stage: artifact}
    return found


def contents_of(artifact: Artifact) -> str:
    """Return a digest of an artifact's files, which an unfinished stage notes of each input."""
    files = artifact.listed
    return digest_of([list(row) for row in zip(files.paths, files.digests, strict=True)])


def unfinished_readers(artifact: Artifact, stages: Iterable[str]) -> list[str]:
    """Return the unfinished artifacts, as `stage/key`, that are being made from this one."""
    store, stage, contents = artifact.store, artifact.manifest.stage, contents_of(artifact)
    found = []
    for other in stages:
        for key in store.folders(f"artifacts/{other}"):
            folder = f"artifacts/{other}/{key}"
            noted = json_object(store.read(f"{folder}/inputs.json") or b"") or {}
            if noted.get(stage) == contents and store.read(f"{folder}/{MANIFEST}") is None:
                found.append(f"{other}/{key}")
    return found


def committed(store: ArtifactStore, stage: str) -> list[Manifest]:
    """Return the manifests of all artifacts of a stage, newest first, without the damaged ones."""
    return survey(store, stage)[0]


def survey(store: ArtifactStore, stage: str) -> tuple[list[Manifest], list[str]]:
    """Return the manifests of all artifacts of a stage, newest first, and a sentence for each that
    cannot be used.
    """
    artifacts, damaged = artifacts_of(store, stage)
    return [artifact.manifest for artifact in artifacts], damaged


def artifacts_of(store: ArtifactStore, stage: str) -> tuple[list[Artifact], list[str]]:
    """Return the artifacts of a stage as `survey` does; manifests are read many at a time."""

    def look(key: str) -> Artifact | str | None:
        try:
            return store.find(stage, key)
        except ServiceUnavailable:
            raise
        except ArtifactError as error:
            return str(error)

    seen = list(in_order(look, store.folders(f"artifacts/{stage}"), _AT_ONCE))
    found = [one for one in seen if isinstance(one, Artifact)]
    damaged = [one for one in seen if isinstance(one, str)]
    return sorted(found, key=lambda one: one.manifest.started, reverse=True), damaged
