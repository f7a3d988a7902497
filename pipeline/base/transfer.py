"""Copies artifacts from one store to another, many files at once. Every file is checked on the way,
the manifest comes last, and a copy that was stopped goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.base.claims import alone_on
from pipeline.base.dropping import DROPPED, Dropped, data_of, dropped, forget_drop, note_drop
from pipeline.base.store import MANIFEST, Artifact, ArtifactStore
from schemas.errors import ArtifactError
from schemas.manifest import FileEntry

_AT_ONCE = 8
"""Files that are copied at the same time: each has its own copy on this machine on its way."""
_NOTES_AT_ONCE = 1_000
_NOTE = re.compile(r"(\.json|\.jsonl|\.yaml|\Amanifest\.\w+\.[0-9a-f]{16}\.parquet)\Z")
_NOTES = ("pins", "accepted")
"""Folders of small files that say which artifacts a configuration means."""


@dataclass(frozen=True)
class Parcel:
    """An artifact, and what of it is to be copied."""

    artifact: Artifact
    files: tuple[FileEntry, ...]
    note: Dropped | None
    """What the copy will lack, or None if it is whole."""

    @classmethod
    def of(cls, artifact: Artifact, data: Sequence[str], *, light: bool) -> Parcel:
        """Pack an artifact: all that is there, or if `light` all but what matches `data`."""
        note = dropped(artifact)
        if light and data and note is None:
            files = data_of(artifact, data)
            note = Dropped.now(files, data)
        lacking = note.patterns if note is not None else ()
        kept = [
            entry
            for entry in artifact.listed
            if not any(fnmatchcase(entry.path, pattern) for pattern in lacking)
        ]
        return cls(artifact, tuple(kept), note)


def send(parcel: Parcel, target: ArtifactStore, told: Callable[[], None]) -> int:
    """Copy an artifact; returns the bytes that were copied. `told` is called for each file.

    Raises ArtifactError if the target has another making of the same artifact, or if a file of
    the source is damaged; Locked if a run is making the artifact in the target.
    """
    manifest = parcel.artifact.manifest
    with alone_on(target, manifest.stage, manifest.key):
        return _send(parcel, target, told)


def _send(parcel: Parcel, target: ArtifactStore, told: Callable[[], None]) -> int:
    artifact = parcel.artifact
    is_made = _require_same(artifact, target)
    there = target.all_files(artifact.folder)

    def is_there(entry: FileEntry) -> bool:
        """A file of the right size may be of another making, unless the artifact is committed."""
        if there.get(entry.path) != entry.size:
            return False
        return is_made or target.digest(artifact.name(entry.path)) == entry.sha256

    def copy(entry: FileEntry) -> int:
        copied = 0
        if not is_there(entry):
            with artifact.checked(entry) as path:
                target.put(path, artifact.name(entry.path))
            copied = entry.size
        told()
        return copied

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        copied = sum(pool.map(copy, parcel.files))
    _send_notes(artifact, target)
    mine = Artifact(target, artifact.manifest, artifact.digest)
    if parcel.note is None:
        forget_drop(mine)
    else:
        left_out = data_of(artifact, parcel.note.patterns)
        if any(there.get(file.path) != file.size for file in left_out):
            note_drop(mine, parcel.note)
    content = artifact.store.read(artifact.name(MANIFEST))
    if content is None:
        raise ArtifactError(f"{artifact.url} has disappeared while it was copied")
    target.create(artifact.name(MANIFEST), content)
    _require_same(artifact, target)
    return copied


def send_notes(source: ArtifactStore, target: ArtifactStore) -> None:
    """Copy which hub commits, students and accepted artifacts a configuration means, where the
    target does not know better.
    """
    for folder in _NOTES:
        names = [f"{folder}/{name}" for name in source.list(folder)]
        for name, content in source.read_all(names).items():
            target.create(name, content)


def _send_notes(artifact: Artifact, target: ArtifactStore) -> None:
    """Copy the small files that the manifest does not list: its tables, configuration, inputs, and
    what marks shards as done.
    """
    listed = {*artifact.listed.paths, MANIFEST, DROPPED}
    names = [
        artifact.name(path)
        for path in artifact.store.list(artifact.folder)
        if path not in listed and _NOTE.search(path)
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(names), _NOTES_AT_ONCE):
            part = artifact.store.read_all(names[start : start + _NOTES_AT_ONCE])
            list(pool.map(target.write, part.keys(), part.values()))


def _require_same(artifact: Artifact, target: ArtifactStore) -> bool:
    """Whether the target has the artifact. Raises ArtifactError if it has another making of it."""
    found = target.find(artifact.manifest.stage, artifact.manifest.key)
    if found is not None and found.digest != artifact.digest:
        raise ArtifactError(
            f"{found.url} and {artifact.url} have the same key but different contents; committed "
            "artifacts are never overwritten. Delete the one you do not want"
        )
    return found is not None
