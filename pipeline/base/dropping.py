"""Drops the data of an artifact and keeps what lineage, proofs and reports read: its manifest,
sidecars and counts. A note in its folder says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from pipeline.base.store import Artifact, json_object, to_json
from schemas.manifest import FileEntry

DROPPED = "dropped.json"


@dataclass(frozen=True)
class Dropped:
    """What was dropped of an artifact."""

    when: str
    """UTC, ISO 8601."""
    files: int
    size: int
    """Bytes."""
    patterns: tuple[str, ...]
    """Of the paths of the files that were dropped."""

    @classmethod
    def now(cls, files: Sequence[FileEntry], patterns: Sequence[str]) -> Dropped:
        """Say that these files are dropped now."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(when, len(files), sum(file.size for file in files), tuple(patterns))

    def has(self, path: str) -> bool:
        """Whether a file of the artifact was dropped."""
        return any(fnmatchcase(path, pattern) for pattern in self.patterns)


def data_of(artifact: Artifact, patterns: Sequence[str]) -> list[FileEntry]:
    """Return the files of an artifact that its stage declares as data."""
    return [f for f in artifact.listed if any(fnmatchcase(f.path, one) for one in patterns)]


def dropped(artifact: Artifact) -> Dropped | None:
    """Return what was dropped of an artifact, or None. A damaged note is none: then files are
    missing.
    """
    row = json_object(artifact.store.read(artifact.name(DROPPED)) or b"") or {}
    try:
        return Dropped(
            str(row["when"]), int(row["files"]), int(row["size"]), tuple(row["patterns"])
        )
    except (KeyError, TypeError, ValueError):
        return None


def drop(artifact: Artifact, patterns: Sequence[str]) -> Dropped:
    """Remove an artifact's data; the note comes first, so that a kill in between leaves no
    artifact that looks damaged. Called again, it goes on.
    """
    files = data_of(artifact, patterns)
    note = dropped(artifact) or Dropped.now(files, patterns)
    note_drop(artifact, note)
    artifact.store.remove_files([artifact.name(file.path) for file in files])
    return note


def note_drop(artifact: Artifact, note: Dropped) -> None:
    """Write the note: from now on the files that it names may be missing."""
    artifact.store.write(artifact.name(DROPPED), to_json(asdict(note)))


def forget_drop(artifact: Artifact) -> None:
    """Remove the note: the data are there again."""
    artifact.store.remove(artifact.name(DROPPED))
