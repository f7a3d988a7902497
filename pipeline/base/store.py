"""The artifact store on any fsspec URL: commit once, never overwrite, load with checks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import ArtifactError, ConfigError, ServiceUnavailable
from schemas.manifest import FileEntry, Manifest, ManifestError, read_manifest

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_PASSING = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ENETUNREACH}
_PASSING |= {getattr(errno, "EREMOTEIO", errno.EIO)}  # Linux alone has it
"""What s3fs makes of answers like SlowDown, and sockets of a network that is away."""
_PASSING_KINDS = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"}
"""Of Python, botocore and aiohttp."""


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts below `url`. Pickles to its URL, so it can be sent to workers."""

    url: str

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"store: {self.url!r} cannot be opened: {error}") from error
        return filesystem, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        return self._opened[0]

    @property
    def root(self) -> str:
        return self._opened[1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, *parts: str) -> str:
        """A path of the filesystem."""
        return posixpath.join(self.root, *parts)

    def folder(self, stage: str, key: str) -> str:
        """Where an artifact lies, relative to the store."""
        return posixpath.join("artifacts", stage, key)

    def training_folder(self, stage: str, key: str = "") -> str:
        """Where a training keeps its checkpoints and its lease, relative to the store; without a
        key, the folder of all trainings of a stage.
        """
        return posixpath.join("training", stage, key).rstrip("/")

    def find(self, stage: str, key: str) -> Artifact | None:
        """The committed artifact, or None. Raises ArtifactError when its manifest cannot be
        used.
        """
        folder = self.folder(stage, key)
        text = self.read(posixpath.join(folder, MANIFEST))
        if text is None:
            return None
        where = f"{self.url.rstrip('/')}/{folder}/{MANIFEST}"
        try:
            manifest = read_manifest(text, where)
        except ManifestError as error:
            raise ArtifactError(str(error)) from error
        return Artifact(self, manifest, hashlib.sha256(text).hexdigest())

    def commit(self, manifest: Manifest) -> Artifact:
        """Write the manifest unless there is one; return whichever artifact is committed
        afterwards.
        """
        text = (manifest.model_dump_json(indent=2) + "\n").encode()
        name = posixpath.join(self.folder(manifest.stage, manifest.key), MANIFEST)
        self.create(name, text)
        found = self.find(manifest.stage, manifest.key)
        if found is None:
            raise ArtifactError(
                f"store {self.url} lost {name} right after it was written; check the store"
            )
        return found

    def create(self, name: str, content: bytes) -> bool:
        """Create-exclusive: False, and nothing changed, when the file is there already."""
        path = self.path(name)
        with self.explained("write", name):
            if self.is_local:
                os.makedirs(posixpath.dirname(path), exist_ok=True)
                return _create_local(path, content)
            try:  # a folder is no thing of its own here, and to make one may ask for more rights
                self.filesystem.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
        return True

    def put(self, local: Path, name: str) -> tuple[int, str]:
        """Upload a finished file in one atomic step; returns its bytes and sha256."""
        path = self.path(name)
        size, digest = local.stat().st_size, file_digest(local)
        with self.explained("write", name):
            if self.is_local:
                os.makedirs(posixpath.dirname(path), exist_ok=True)
                partial = _partial(path)
                self.filesystem.put_file(str(local), partial)
                os.replace(partial, path)
            else:
                self.filesystem.put_file(str(local), path)
        return size, digest

    def write(self, name: str, content: bytes) -> tuple[int, str]:
        """`put` for bytes."""
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "content"
            local.write_bytes(content)
            return self.put(local, name)

    def copy(self, name: str, target: str) -> None:
        """Copy a file within the store, in one atomic step."""
        if self.is_local:
            self.put(Path(self.path(name)), target)
            return
        with self.explained("write", target):
            self.filesystem.cp_file(self.path(name), self.path(target))

    def remove(self, name: str) -> None:
        """Delete a folder; its manifest first, so that no half of an artifact looks whole."""
        with self.explained("remove", name):
            if self.filesystem.exists(self.path(name, MANIFEST)):
                self.filesystem.rm_file(self.path(name, MANIFEST))
            if self.filesystem.exists(self.path(name)):
                self.filesystem.rm(self.path(name), recursive=True)

    def read_all(self, names: list[str]) -> list[bytes]:
        """The bytes of many small files, fetched side by side where the store allows it."""
        paths = [self.path(name) for name in names]
        with self.explained("read", f"{len(names)} files"):
            found = self.filesystem.cat(paths) if paths else {}
        return [found[self.filesystem._strip_protocol(path)] for path in paths]

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None when it is missing."""
        with self.explained("read", name):
            try:
                return bytes(self.filesystem.cat_file(self.path(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, name: str) -> dict[str, int]:
        """All files below a folder in one listing: name relative to the folder, and bytes. What a
        killed process left half written is none.
        """
        base = self.path(name)
        with self.explained("list", name):
            if hasattr(self.filesystem, "invalidate_cache"):
                self.filesystem.invalidate_cache()
            found = self.filesystem.find(base, detail=True)
        return {
            posixpath.relpath(path, base): int(info.get("size") or 0)
            for path, info in found.items()
            if not path.endswith(_PARTIAL)
        }

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local path of a file: the file itself where the store is a folder, else a copy for the
        time being.
        """
        if self.is_local:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / posixpath.basename(name)
            with self.explained("read", name):
                self.filesystem.get_file(self.path(name), str(copy))
            yield copy

    @contextlib.contextmanager
    def explained(self, verb: str, name: str) -> Iterator[None]:
        """Turn what storage raises into one sentence that names the store and the mend:
        ServiceUnavailable for what may pass, else ArtifactError.
        """
        try:
            yield
        except FileExistsError:
            raise
        except PermissionError as error:
            raise ArtifactError(
                f"store {self.url}: no permission to {verb} {name}; check the folder's "
                "rights or the credentials"
            ) from error
        except OSError as error:
            if verb in ("read", "list") and isinstance(
                error, (FileNotFoundError, NotADirectoryError)
            ):
                raise
            kind = ServiceUnavailable if _may_pass(error) else ArtifactError
            raise kind(f"store {self.url}: cannot {verb} {name}: {_brief(error)}") from error
        except Exception as error:
            if type(error).__module__.split(".")[0] in (
                "aiohttp",
                "botocore",
                "aiobotocore",
                "s3fs",
                "gcsfs",
                "google",
            ):
                kind = ServiceUnavailable if _may_pass(error) else ArtifactError
                raise kind(
                    f"store {self.url}: cannot {verb} {name}: {_brief(error)}; check bucket, "
                    "endpoint and credentials"
                ) from error
            raise


@dataclass(frozen=True)
class Artifact:
    """A committed artifact: its manifest, and where its files are."""

    store: ArtifactStore
    manifest: Manifest
    digest: str
    """sha256 of the manifest."""

    @property
    def folder(self) -> str:
        return self.store.folder(self.manifest.stage, self.manifest.key)

    @property
    def url(self) -> str:
        return f"{self.store.url.rstrip('/')}/{self.folder}"

    def name(self, path: str) -> str:
        """A file of this artifact, relative to the store."""
        return posixpath.join(self.folder, path)

    def files(self, prefix: str = "", suffix: str = "") -> list[FileEntry]:
        return [
            f for f in self.manifest.files if f.path.startswith(prefix) and f.path.endswith(suffix)
        ]

    def has(self, path: str) -> bool:
        """Whether the manifest lists a file of this name."""
        return any(entry.path == path for entry in self.manifest.files)

    def entry(self, path: str) -> FileEntry:
        """The file of this name. Raises ArtifactError when the manifest lists none."""
        for entry in self.manifest.files:
            if entry.path == path:
                return entry
        stage = self.manifest.stage
        raise ArtifactError(
            f"{self.url} lists no {path}; run `ladd-pipeline run --force {stage}` to make it again"
        )

    def verify(self, *, contents: bool) -> list[str]:
        """What is wrong with the files: missing, of another size or, with `contents`, of another
        sha256.
        """
        there = self.store.list(self.folder)
        wrong = []
        for entry in self.manifest.files:
            where = f"{self.url}/{entry.path}"
            if entry.path not in there:
                wrong.append(f"{where} is missing")
            elif there[entry.path] != entry.size:
                wrong.append(f"{where} has {there[entry.path]} bytes instead of {entry.size}")
            elif contents and self._digest(entry) != entry.sha256:
                wrong.append(f"{where} has changed: its sha256 is not the manifest's")
        return wrong

    @contextlib.contextmanager
    def checked(self, entry: FileEntry) -> Iterator[Path]:
        """A local path of a file whose bytes equal the manifest's. Raises ArtifactError naming the
        file.
        """
        try:
            with self.store.local(self.name(entry.path)) as path:
                require_intact(
                    path, entry.size, entry.sha256, f"{self.url}/{entry.path}", self.manifest.stage
                )
                yield path
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self.url}/{entry.path} is missing; run `ladd-pipeline run --force "
                f"{self.manifest.stage}`"
            ) from error

    @contextlib.contextmanager
    def local_folder(self, prefix: str) -> Iterator[Path]:
        """A local path of a folder of the artifact: the folder itself where the store is one, else
        a checked copy for the time being.
        """
        if self.store.is_local:
            yield Path(self.store.path(self.name(prefix)))
            return
        with tempfile.TemporaryDirectory() as scratch:
            for entry in self.files(f"{prefix}/"):
                target = Path(scratch) / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with self.checked(entry) as path:
                    target.write_bytes(path.read_bytes())
            yield Path(scratch) / prefix

    def _digest(self, entry: FileEntry) -> str:
        with self.store.local(self.name(entry.path)) as path:
            return file_digest(path)


def require_intact(path: Path, size: int, sha256: str, where: str, stage: str) -> None:
    """Raises ArtifactError unless the file has these bytes."""
    actual = path.stat().st_size
    mend = f"remove it and run `ladd-pipeline run --force {stage}`"
    if actual != size:
        raise ArtifactError(f"{where} is damaged: {actual} bytes instead of {size}; {mend}")
    if file_digest(path) != sha256:
        raise ArtifactError(f"{where} is damaged: its sha256 is not the one recorded; {mend}")


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _create_local(path: str, content: bytes) -> bool:
    """Write beside, then link: the name appears with its whole content, and only once."""
    partial = _partial(path)
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(partial)
    return True


def _partial(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex[:12]}{_PARTIAL}"


def _may_pass(error: Exception) -> bool:
    """Whether the service failed, not what was asked of it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & _PASSING_KINDS) or getattr(error, "errno", None) in _PASSING


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def to_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
