"""The artifact store on any fsspec URL: commit once, never overwrite, load with checks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import on_disk, on_objects, retries
from pipeline.base.artifact import Artifact as Artifact  # who has a store has artifacts
from pipeline.base.artifact import file_digest
from pipeline.base.artifact import require_intact as require_intact
from pipeline.base.scratch import scratch_prefix
from pipeline.base.storage_errors import explained
from pipeline.base.tables import split
from schemas.errors import ArtifactError, ConfigError
from schemas.manifest import Manifest, ManifestError, NewerManifest, read_manifest

if TYPE_CHECKING:
    import fsspec

MANIFEST = "manifest.json"
_PROBE = ".create-exclusive"
"""An object that stays in the store, to learn whether it can be created a second time."""
_LIKE_A_URL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_AGAIN_SECONDS = 0.2
"""Pause before a manifest that cannot be used is read again: it may be just being written."""


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts below `url`. Pickles to its URL, so it can be sent to workers."""

    url: str

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        import fsspec  # not at the top: for a folder, `plan` does without it

        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except Exception as error:  # drivers raise what they like, for settings that they dislike
            raise ConfigError(
                f"store: {self.url!r} cannot be opened: {error}; correct `store`, or the FSSPEC_ "
                "settings in the environment"
            ) from error
        if not root.strip("/") and not self.is_local and not self.url.startswith("memory:"):
            raise ConfigError(f"store: {self.url!r} names no bucket; write {self.url}BUCKET/PREFIX")
        return filesystem, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    @cached_property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        retries.watch(self._opened[0])
        return self._opened[0]

    @cached_property
    def root(self) -> str:
        if "://" in self.url:
            return self._opened[1]
        if _LIKE_A_URL.match(self.url):
            raise ConfigError(
                f"store: {self.url!r} is neither a folder nor a URL; a URL has two slashes after "
                "its colon, and a folder of such a name is written ./NAME"
            )
        return os.path.abspath(os.path.expanduser(self.url))

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

    def tell_limits(self, warn: Callable[[str], None]) -> None:
        """Try what the store can do, and warn of each promise that it cannot keep. Raises the error
        that a write raises.
        """
        if not self.is_exclusive:
            warn(
                f"store {self.url} {self._conditions} conditional writes (If-None-Match): two runs "
                "that end at the same moment may overwrite each other's manifest, and two that "
                "start one training at the same moment may both train for some seconds, until one "
                "of them stops; start one run at a time"
            )
        if not self.is_local:
            return
        with self._explained("write", "runs/"):
            has_links = on_disk.has_links(self.path("runs"))
        if not has_links:
            warn(
                f"the file system of store {self.url} has no hard links: a manifest appears before "
                "its content, so a power cut at that moment may leave a damaged one; "
                "`ladd-pipeline artifacts verify` names it"
            )

    @cached_property
    def is_exclusive(self) -> bool:
        """Whether of many that create one file only one succeeds."""
        return self.is_local or not self._conditions

    @cached_property
    def _conditions(self) -> str:
        """What the store makes of a conditional write: see `on_objects.try_conditions`."""
        with self._explained("write", _PROBE):
            return on_objects.try_conditions(self.filesystem, self.path(_PROBE))

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the committed artifact, or None. Raises ArtifactError if its manifest cannot be
        used.
        """
        try:
            return self._found(stage, key)
        except ManifestError:
            time.sleep(_AGAIN_SECONDS)
        try:
            return self._found(stage, key)
        except NewerManifest as error:
            raise ArtifactError(f"{error}; upgrade ladd-pipeline, or use another store") from error
        except ManifestError as error:
            raise ArtifactError(
                f"{error}; restore the file from a backup, or make the artifact again with "
                f"`ladd-pipeline run --force {stage}`"
            ) from error

    def _found(self, stage: str, key: str) -> Artifact | None:
        folder = self.folder(stage, key)
        text = self.read(posixpath.join(folder, MANIFEST))
        if text is None:
            return None
        where = f"{self.url.rstrip('/')}/{folder}/{MANIFEST}"
        manifest = read_manifest(text, where)
        if (manifest.stage, manifest.key) != (stage, key):
            raise ManifestError(
                f"manifest {where} belongs to another artifact, {manifest.stage}/{manifest.key}"
            )
        return Artifact(self, manifest, hashlib.sha256(text).hexdigest())

    def commit(self, manifest: Manifest) -> Artifact:
        """Write the manifest, its tables before it, unless one exists; return the artifact that is
        then committed.
        """
        folder = self.folder(manifest.stage, manifest.key)
        manifest, tables = split(manifest)
        for path, content in tables.items():
            self.write(posixpath.join(folder, path), content)
        name = posixpath.join(folder, MANIFEST)
        self.create(name, manifest.to_json())
        found = self.find(manifest.stage, manifest.key)
        if found is None:
            raise ArtifactError(
                f"store {self.url} lost {name} right after it was written; check the store"
            )
        return found

    def create(self, name: str, content: bytes) -> bool:
        """Create a file exclusively: returns False and changes nothing if it already exists. In a
        store that is not `is_exclusive`, of several that create at once the last one wins.
        """
        if not self.is_exclusive:
            if self.read(name) is not None:
                return False
            self.write(name, content)
            return self.read(name) == content
        with self._explained("write", name):
            if self.is_local:
                return on_disk.create(self.path(name), content)
            return on_objects.create(self.filesystem, self.path(name), content)

    def put(self, local: Path, name: str) -> tuple[int, str]:
        """Upload a finished file in one atomic step; return its size in bytes and its sha256."""
        with self._explained("write", name):
            size, digest = local.stat().st_size, file_digest(local)
            if self.is_local:
                on_disk.put(local, self.path(name))
            else:
                self.filesystem.put_file(str(local), self.path(name))
        return size, digest

    def write(self, name: str, content: bytes) -> tuple[int, str]:
        """Write bytes as `put` writes a file."""
        with self._explained("write", name):
            if self.is_local:
                on_disk.put(content, self.path(name))
            else:
                self.filesystem.pipe_file(self.path(name), content)
        return len(content), hashlib.sha256(content).hexdigest()

    def copy(self, name: str, target: str) -> None:
        """Copy a file within the store, in one atomic step."""
        with self._explained("write", target):
            if self.is_local:
                on_disk.put(Path(self.path(name)), self.path(target))
            else:
                self.filesystem.cp_file(self.path(name), self.path(target))

    def remove(self, name: str) -> None:
        """Delete a file or folder, its manifest first: a half-deleted artifact must not look
        complete.
        """
        with self._explained("remove", name):
            if self.is_local:
                on_disk.remove(self.path(name), MANIFEST)
            else:
                on_objects.remove(self.filesystem, self.path(name), MANIFEST)

    def remove_files(self, names: Sequence[str]) -> None:
        """Delete many files in few requests. Those that are missing are no error."""
        if not names:
            return
        with self._explained("remove", f"{len(names)} files"):
            if self.is_local:
                for name in names:
                    Path(self.path(name)).unlink(missing_ok=True)
            else:
                on_objects.remove_files(self.filesystem, [self.path(name) for name in names])

    def remove_empty(self, name: str) -> None:
        """Remove a folder and those in it as far as no file is in them. Object stores have none."""
        if self.is_local:
            on_disk.remove_empty(self.path(name))

    def folders(self, name: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted, in one request for each
        thousand of them, whatever lies in them. Leaves out what is not ours, as `list` does.
        """
        found = self.all_folders(name)
        return [folder for folder in found if not on_disk.is_foreign(folder)]

    def all_folders(self, name: str) -> list[str]:
        """List as `folders` does, but whatever is there."""
        with self._explained("list", name):
            if self.is_local:
                return on_disk.folders_in(self.path(name))
            return on_objects.folders_in(self.filesystem, self.path(name))

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of many small files by name, fetched in parallel if the store supports
        it. Leaves out those that are missing.
        """
        if self.is_local:
            contents = {name: self.read(name) for name in names}
            return {name: content for name, content in contents.items() if content is not None}
        read: dict[str, bytes] = {}
        with self._explained("read", f"{len(names)} files"):
            paths = [self.path(name) for name in names]
            found = on_objects.read_all(self.filesystem, paths) if paths else []
            for name, content in zip(names, found, strict=True):
                if isinstance(content, bytes):
                    read[name] = content
                elif not isinstance(content, FileNotFoundError):
                    raise content
        return read

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is missing."""
        with self._explained("read", name):
            try:
                if self.is_local:
                    return Path(self.path(name)).read_bytes()
                return bytes(self.filesystem.cat_file(self.path(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, name: str) -> dict[str, int]:
        """List all files below a folder in one call: path relative to it, and size in bytes. Leaves
        out what is not ours: see `on_disk.is_foreign`.
        """
        found = self.all_files(name).items()
        return {path: size for path, size in found if not on_disk.is_foreign(path)}

    def all_files(self, name: str) -> dict[str, int]:
        """List as `list` does, but whatever is there."""
        with self._explained("list", name):
            if self.is_local:
                return on_disk.files_below(self.path(name))
            return on_objects.files_below(self.filesystem, self.path(name))

    def modified(self, name: str) -> float:
        """Return when a file was last written, in seconds since 1970 by the store's clock; now if
        the store does not say.
        """
        with self._explained("read", name):
            try:
                if self.is_local:
                    return os.stat(self.path(name)).st_mtime
                return float(self.filesystem.modified(self.path(name)).timestamp())
            except (FileNotFoundError, NotImplementedError):
                return time.time()

    def digest(self, name: str) -> str:
        """Return the sha256 of a file, read in blocks."""
        with self._explained("read", name):
            if self.is_local:
                return file_digest(Path(self.path(name)))
            return on_objects.digest(self.filesystem, self.path(name))

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Give a local path of a file: the file itself in a local store, else a temporary copy.
        Raises ArtifactError if it is missing.
        """
        with contextlib.ExitStack() as stack:
            path = Path(self.path(name))
            if not self.is_local:
                with self._explained("read", name):
                    scratch = tempfile.TemporaryDirectory(prefix=scratch_prefix("file"))
                    path = Path(stack.enter_context(scratch)) / posixpath.basename(name)
                    with contextlib.suppress(FileNotFoundError):
                        on_objects.fetch(self.filesystem, self.path(name), path)
            if not path.exists():
                where, stage = f"{self.url.rstrip('/')}/{name}", name.split("/")[1]
                raise ArtifactError(
                    f"{where} is missing; run `ladd-pipeline run --force {stage}` to make it again"
                )
            yield path

    def _explained(self, verb: str, name: str) -> contextlib.AbstractContextManager[None]:
        return explained(self.url, verb, name)


def to_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def json_object(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a state file holds, or None for anything else: an empty or
    half-written file, zeros, other JSON.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
