"""A committed artifact: its manifest, its files, and reading them with checks."""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.base.scratch import scratch_prefix
from pipeline.base.tables import FileList, read_details, read_files
from schemas.errors import ArtifactError
from schemas.manifest import FileEntry, Manifest, Table

if TYPE_CHECKING:
    from pipeline.base.store import ArtifactStore

_T = TypeVar("_T")


@dataclass(frozen=True)
class Artifact:
    """A committed artifact: its manifest, and where its files are."""

    store: ArtifactStore
    manifest: Manifest
    digest: str
    """sha256 of the manifest."""
    accepted: str = ""
    """Why it was declared good for a configuration that it was not made for."""

    @property
    def folder(self) -> str:
        return self.store.folder(self.manifest.stage, self.manifest.key)

    @property
    def url(self) -> str:
        return f"{self.store.url.rstrip('/')}/{self.folder}"

    def name(self, path: str) -> str:
        """Return the path of a file of this artifact, relative to the store."""
        return posixpath.join(self.folder, path)

    @cached_property
    def listed(self) -> FileList:
        """All files of the artifact. Raises ArtifactError if the table of files is damaged."""
        tables = self.manifest.tables
        if tables is None:
            return FileList.of(self.manifest.files)
        return self._table(tables.files, read_files)

    @cached_property
    def details(self) -> dict[str, Any]:
        """The manifest's details, wherever they are. Raises ArtifactError as `listed` does."""
        tables = self.manifest.tables
        if tables is None or tables.details is None:
            return self.manifest.details
        return self.manifest.details | self._table(tables.details, read_details)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process reads by itself: it may be large."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def files(self, prefix: str = "", suffix: str = "") -> list[FileEntry]:
        return list(self.listed.select(prefix, suffix))

    def has(self, path: str) -> bool:
        return self.listed.find(path) is not None

    def entry(self, path: str) -> FileEntry:
        """Return the entry of a file. Raises ArtifactError if the manifest does not list it."""
        if (entry := self.listed.find(path)) is not None:
            return entry
        stage = self.manifest.stage
        raise ArtifactError(
            f"{self.url} lists no {path}; run `ladd-pipeline run --force {stage}` to make it again"
        )

    @contextlib.contextmanager
    def checked(self, entry: FileEntry) -> Iterator[Path]:
        """Give a local path of a file after checking it against the manifest. Raises ArtifactError
        naming the file.
        """
        with self.store.local(self.name(entry.path)) as path:
            require_intact(
                path, entry.size, entry.sha256, f"{self.url}/{entry.path}", self.manifest.stage
            )
            yield path

    @contextlib.contextmanager
    def local_folder(self, prefix: str) -> Iterator[Path]:
        """Give a local path of a folder of the artifact: the folder itself in a local store, else a
        checked temporary copy.
        """
        if self.store.is_local:
            yield Path(self.store.path(self.name(prefix)))
            return
        with tempfile.TemporaryDirectory(prefix=scratch_prefix("model")) as scratch:
            for entry in self.files(f"{prefix}/"):
                target = Path(scratch) / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with self.checked(entry) as path:
                    shutil.move(path, target)
            yield Path(scratch) / prefix

    def _table(self, table: Table, read: Callable[[bytes], _T]) -> _T:
        content, problem = self.store.read(self.name(table.path)), "is missing"
        if content is not None:
            problem = "is damaged: its sha256 is not the manifest's"
            if hashlib.sha256(content).hexdigest() == table.sha256:
                try:
                    return read(content)
                except ValueError as error:
                    problem = f"cannot be read: {error}"
        raise ArtifactError(
            f"{self.url}/{table.path} {problem}; restore the file from a backup, or make the "
            f"artifact again with `ladd-pipeline run --force {self.manifest.stage}`"
        )


def require_intact(path: Path, size: int, sha256: str, where: str, stage: str) -> None:
    """Raise ArtifactError unless the file has this size and sha256."""
    actual = path.stat().st_size
    remedy = f"remove it and run `ladd-pipeline run --force {stage}`"
    if actual != size:
        raise ArtifactError(f"{where} is damaged: {actual} bytes instead of {size}; {remedy}")
    if file_digest(path) != sha256:
        raise ArtifactError(f"{where} is damaged: its sha256 is not the one recorded; {remedy}")


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
