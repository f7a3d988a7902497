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
from typing import TYPE_CHECKING, Any

from schemas.errors import ArtifactError, ConfigError, ServiceUnavailable
from schemas.manifest import FileEntry, Manifest, ManifestError, read_manifest

if TYPE_CHECKING:
    import fsspec

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_PASSING = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ENETUNREACH}
_PASSING |= {getattr(errno, "EREMOTEIO", errno.EIO)}  # only Linux has it
"""errno of failures that may pass: what s3fs makes of answers like SlowDown, or no network."""
_PASSING_KINDS = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"}
"""Exception classes of Python, botocore and aiohttp for failures that may pass."""


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts below `url`. Pickles to its URL, so it can be sent to workers."""

    url: str

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        import fsspec  # not at the top: for a folder, `plan` does without it

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

    @cached_property
    def root(self) -> str:
        if "://" not in self.url:
            return os.path.abspath(os.path.expanduser(self.url))
        return self._opened[1]

    @cached_property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return "://" not in self.url or self.url.startswith(("file://", "local://"))

    def path(self, *parts: str) -> str:
        """Return a path in the store's filesystem."""
        return posixpath.join(self.root, *parts)

    def folder(self, stage: str, key: str) -> str:
        """Return an artifact's folder, relative to the store."""
        return posixpath.join("artifacts", stage, key)

    def training_folder(self, stage: str, key: str = "") -> str:
        """Return the folder of a training's checkpoints and lease, relative to the store; without a
        key, the folder of all trainings of a stage.
        """
        return posixpath.join("training", stage, key).rstrip("/")

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the committed artifact, or None. Raises ArtifactError if its manifest cannot be
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
        """Write the manifest unless one exists; return the artifact that is then committed."""
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
        """Create a file exclusively: returns False and changes nothing if it already exists."""
        path = self.path(name)
        with self.explained("write", name):
            if self.is_local:
                os.makedirs(posixpath.dirname(path), exist_ok=True)
                return _create_local(path, content)
            try:  # no makedirs: object stores have no folders, and it may need more permissions
                self.filesystem.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
        return True

    def put(self, local: Path, name: str) -> tuple[int, str]:
        """Upload a finished file in one atomic step; return its size in bytes and its sha256."""
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
        """Write bytes as `put` writes a file."""
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
        """Delete a folder, its manifest first: a half-deleted artifact must not look complete."""
        with self.explained("remove", name):
            if self.filesystem.exists(self.path(name, MANIFEST)):
                self.filesystem.rm_file(self.path(name, MANIFEST))
            if self.filesystem.exists(self.path(name)):
                self.filesystem.rm(self.path(name), recursive=True)

    def read_all(self, names: list[str]) -> list[bytes]:
        """Return the bytes of many small files, fetched in parallel if the store supports it."""
        paths = [self.path(name) for name in names]
        with self.explained("read", f"{len(names)} files"):
            found = self.filesystem.cat(paths) if paths else {}
        return [found[self.filesystem._strip_protocol(path)] for path in paths]

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is missing."""
        with self.explained("read", name):
            try:
                if self.is_local:
                    return Path(self.path(name)).read_bytes()
                return bytes(self.filesystem.cat_file(self.path(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, name: str) -> dict[str, int]:
        """List all files below a folder in one call: path relative to it, and size in bytes. Leaves
        out partial files of killed processes.
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
        """Give a local path of a file: the file itself in a local store, else a temporary copy."""
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
        """Turn a storage error into one sentence that names the store and the remedy:
        ServiceUnavailable for failures that may pass, else ArtifactError.
        """
        try:
            yield
        except FileExistsError:
            raise
        except PermissionError as error:
            raise ArtifactError(
                f"store {self.url}: no permission to {verb} {name}; check the folder's "
                "permissions or the credentials"
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
        """Return the path of a file of this artifact, relative to the store."""
        return posixpath.join(self.folder, path)

    def files(self, prefix: str = "", suffix: str = "") -> list[FileEntry]:
        return [
            f for f in self.manifest.files if f.path.startswith(prefix) and f.path.endswith(suffix)
        ]

    def has(self, path: str) -> bool:
        """Whether the manifest lists a file of this name."""
        return any(entry.path == path for entry in self.manifest.files)

    def entry(self, path: str) -> FileEntry:
        """Return the entry of a file. Raises ArtifactError if the manifest does not list it."""
        for entry in self.manifest.files:
            if entry.path == path:
                return entry
        stage = self.manifest.stage
        raise ArtifactError(
            f"{self.url} lists no {path}; run `ladd-pipeline run --force {stage}` to make it again"
        )

    def verify(self, *, contents: bool) -> list[str]:
        """Return a sentence per damaged file: missing, of another size or, with `contents`, of
        another sha256.
        """
        sizes = self.store.list(self.folder)
        wrong = []
        for entry in self.manifest.files:
            where = f"{self.url}/{entry.path}"
            if entry.path not in sizes:
                wrong.append(f"{where} is missing")
            elif sizes[entry.path] != entry.size:
                wrong.append(f"{where} has {sizes[entry.path]} bytes instead of {entry.size}")
            elif contents and self._digest(entry) != entry.sha256:
                wrong.append(f"{where} has changed: its sha256 is not the manifest's")
        return wrong

    @contextlib.contextmanager
    def checked(self, entry: FileEntry) -> Iterator[Path]:
        """Give a local path of a file after checking it against the manifest. Raises ArtifactError
        naming the file.
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
        """Give a local path of a folder of the artifact: the folder itself in a local store, else a
        checked temporary copy.
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


def _create_local(path: str, content: bytes) -> bool:
    """Write a temporary file, then link it: the name appears once, with its whole content."""
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
    """Whether the service failed, not the request: a retry may work."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & _PASSING_KINDS) or getattr(error, "errno", None) in _PASSING


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def to_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
