"""Checks the files of an artifact against its manifest, many at once: by one listing, or by their
contents.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.base.dropping import Dropped
from pipeline.base.store import Artifact
from schemas.errors import ArtifactError, ServiceUnavailable
from schemas.manifest import FileEntry

_AT_ONCE = 16
"""Files whose contents are read at the same time."""


@dataclass(frozen=True)
class Damage:
    """A file that is not as its manifest says."""

    path: str
    text: str
    """A sentence that names the file and says what is wrong."""


def damaged(
    artifact: Artifact,
    *,
    deep: bool = False,
    without: Dropped | None = None,
    told: Callable[[], None] = lambda: None,
) -> list[Damage]:
    """Return what is missing, of another size or, if `deep`, of another sha256.

    Files that were dropped may be missing: `without` says which. `told` is called for each file
    that is checked.
    """
    sizes = artifact.store.all_files(artifact.folder)

    def check(entry: FileEntry) -> Damage | None:
        where = f"{artifact.url}/{entry.path}"
        size = sizes.get(entry.path)
        if size is None:
            is_dropped = without is not None and without.has(entry.path)
            return None if is_dropped else Damage(entry.path, f"{where} is missing")
        if size != entry.size:
            return Damage(entry.path, f"{where} has {size} bytes instead of {entry.size}")
        if deep:
            try:
                digest = artifact.store.digest(artifact.name(entry.path))
            except ServiceUnavailable:
                raise
            except ArtifactError as error:  # a sector that cannot be read, a right that lacks
                return Damage(entry.path, str(error))
            if digest != entry.sha256:
                text = f"{where} has changed: its sha256 is not the manifest's"
                return Damage(entry.path, text)
        return None

    found = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        files = artifact.listed
        for damage in pool.map(check, files) if deep else map(check, files):
            told()
            if damage is not None:
                found.append(damage)
    return found
