"""A store for the repair of an artifact: nothing that is sound is written again, and nothing is
written whose bytes are not those of the manifest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.artifact import file_digest
from pipeline.base.store import Artifact, ArtifactStore
from schemas.errors import ArtifactError


@dataclass(frozen=True)
class GuardedStore(ArtifactStore):
    """The artifact's store, in which only its `damaged` files can be written."""

    folder_of: str
    """The artifact's folder, relative to the store."""
    expected: dict[str, tuple[int, str]]
    """Size and sha256 of the artifact's files, by path."""
    damaged: frozenset[str]

    @classmethod
    def of(cls, artifact: Artifact, damaged: frozenset[str]) -> GuardedStore:
        files = {entry.path: (entry.size, entry.sha256) for entry in artifact.listed}
        return cls(artifact.store.url, artifact.folder, files, damaged)

    def __getstate__(self) -> dict[str, Any]:
        names = ("url", "folder_of", "expected", "damaged")
        return {name: getattr(self, name) for name in names}

    def put(self, local: Path, name: str) -> tuple[int, str]:
        kept = self._kept(name, lambda: file_digest(local))
        return kept or super().put(local, name)

    def write(self, name: str, content: bytes) -> tuple[int, str]:
        kept = self._kept(name, lambda: hashlib.sha256(content).hexdigest())
        return kept or super().write(name, content)

    def copy(self, name: str, target: str) -> None:
        if self._kept(target, lambda: self.digest(name)) is None:
            super().copy(name, target)

    def _kept(self, name: str, digest: Any) -> tuple[int, str] | None:
        """Return what the manifest says of a file that is sound, or None if it may be written.
        Raises ArtifactError if other bytes were made than before.
        """
        path = name.removeprefix(f"{self.folder_of}/")
        if path == name or path not in self.expected:
            return None
        if path not in self.damaged:
            return self.expected[path]
        if digest() == self.expected[path][1]:
            return None
        stage = self.folder_of.split("/")[1]
        raise ArtifactError(
            f"{self.url.rstrip('/')}/{name} came out with different bytes (other software, "
            "hardware or timestamps), so it was not written; intact files are unchanged. Restore "
            "it from a copy of the store, or remake the artifact with `ladd-pipeline run --force "
            f"{stage}`"
        )
