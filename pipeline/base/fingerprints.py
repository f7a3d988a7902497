"""Fingerprints of what lies outside the store and enters a result: prompt files, pair files,
shards, models.

A local file's fingerprint is its sha256, remembered as long as the file's size, times and inode
stay the same, so that a folder seen before costs only a look at its entries. A remote file's is
what its store says of its contents: an ETag or a checksum, a generation or a version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base.addresses import (
    expand,
    explained,
    filesystem_of,
    is_local,
    local_path,
    without_query,
)
from pipeline.base.store import json_object
from schemas.cpus import own_cpus
from schemas.errors import LaddError
from schemas.manifest import OutsideInput

Notice = Callable[[str], None]
_MODEL_ENDINGS = {".safetensors", ".json", ".txt", ".model"}
"""A model's files; its README and pictures do not enter a result."""
_TEXT_ENDINGS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"}
_MOST_PARTS = 64
"""With more files than this, a fingerprint does not record each."""
_WORTH_A_NOTICE = 2_000_000_000
"""Bytes to read, about two seconds, above which the user is told."""
_SETTLED_NS = 2_000_000_000
"""A file that changed this recently may change again within one tick of its clock: its digest is
not remembered.
"""
_NAMES_OF_CONTENT = ("ETag", "etag", "md5Hash", "content_md5", "generation", "VersionId")
"""Fields of fsspec's `info` that change with a remote file's contents, the best first: of S3 and
HTTP, of Azure, and of Google Cloud Storage.
"""
_SMALL = 64_000_000
"""Bytes up to which a remote file of a store that says nothing of contents is read instead."""


@dataclass(frozen=True)
class Unseen:
    """An outside input that cannot be looked at now."""

    why: str


@dataclass
class Digests:
    """The sha256 and line counts of local files, remembered on this machine between commands.

    What cannot be read or saved is computed again: losing the memory costs only time.
    """

    path: Path
    notice: Notice = lambda text: None
    _known: dict[str, list[Any]] = field(default_factory=dict)
    _has_new: bool = False

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError):
            known = json_object(self.path.read_bytes()) or {}
            self._known = {name: row for name, row in known.items() if _is_row(row)}

    def of(self, paths: Sequence[Path]) -> list[tuple[int, str, int | None]]:
        """Return bytes, sha256 and, for a text file, lines of each file. Raises OSError."""
        stats = [os.stat(path) for path in paths]
        missing = [
            (path, stat)
            for path, stat in zip(paths, stats, strict=True)
            if self._known.get(_name(path), [None])[0] != _mark(stat)
        ]
        new = sum(stat.st_size for _, stat in missing)
        if new > _WORTH_A_NOTICE:
            self.notice(f"reading {new / 1e9:.1f} GB once, to know later whether they changed")
        with ThreadPoolExecutor(own_cpus()) as threads:
            read = list(threads.map(lambda row: _read(row[0]), missing))
        fresh: dict[str, list[Any]] = {}
        for (path, stat), (digest, lines) in zip(missing, read, strict=True):
            fresh[_name(path)] = [_mark(stat), digest, lines]
            if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
                self._known[_name(path)] = fresh[_name(path)]
                self._has_new = True
        rows = [fresh.get(_name(path)) or self._known[_name(path)] for path in paths]
        return [(stat.st_size, row[1], row[2]) for stat, row in zip(stats, rows, strict=True)]

    def save(self) -> None:
        """Keep what was computed; files that are gone are forgotten."""
        if not self._has_new:
            return
        known = {name: row for name, row in self._known.items() if os.path.exists(name)}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                json.dump(known, file)
            os.replace(file.name, self.path)


def open_digests(notice: Notice = lambda text: None) -> Digests:
    """Open this user's memory of digests: in `$XDG_CACHE_HOME`, or `~/.cache`."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Digests(Path(folder) / "ladd-pipeline" / "fingerprints.json", notice)


class Look:
    """One look at what lies outside: what several stages name is looked at once."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._seen: dict[tuple[str, str | tuple[str, ...]], OutsideInput | Unseen | None] = {}

    def at(self, kind: str, value: str | Sequence[str]) -> OutsideInput | Unseen | None:
        """Return the `fingerprint` of what a field of `kind` names."""
        named = (kind, value if isinstance(value, str) else tuple(value))
        if named not in self._seen:
            self._seen[named] = fingerprint(kind, value, self._digests)
        return self._seen[named]


def fingerprint(
    kind: str, value: str | Sequence[str], digests: Digests
) -> OutsideInput | Unseen | None:
    """Fingerprint what a field of `kind` names (see `schemas.base.outside`). None for a model of
    the hub: its revision, pinned to a commit, is in the configuration.
    """
    try:
        if kind == "model":
            folder = Path(str(value))
            return _of_folder(folder, digests) if folder.is_dir() else None
        return _of_files([value] if isinstance(value, str) else list(value), digests)
    except OSError as error:
        return Unseen(f"{error.strerror or error}: {error.filename or value}")
    except LaddError as error:
        return Unseen(str(error).removeprefix(": "))  # whoever asks names the field


def _of_folder(folder: Path, digests: Digests) -> OutsideInput:
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MODEL_ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    rows = digests.of(paths)
    names = [path.relative_to(folder).as_posix() for path in paths]
    return _joined({n: (size, digest) for n, (size, digest, _) in zip(names, rows, strict=True)})


def _of_files(patterns: list[str], digests: Digests) -> OutsideInput:
    addresses = expand(patterns, "", ("",))
    local = [Path(local_path(address)) for address in addresses if is_local(address)]
    rows = dict(zip(local, digests.of(local), strict=True))
    found = [
        rows[Path(local_path(address))] if is_local(address) else _of_remote(address)
        for address in addresses
    ]
    if len(found) == 1:
        ((size, digest, lines),) = found
        parts = {os.path.basename(without_query(addresses[0])): digest}
        return OutsideInput(digest=digest, size=size, lines=lines, parts=parts)
    names = [without_query(address) for address in addresses]
    try:
        shared = len(os.path.commonpath([os.path.dirname(name) for name in names]))
    except ValueError:  # local files and URLs
        shared = 0
    return _joined(
        {
            name[shared:].lstrip("/"): (size, digest)
            for name, (size, digest, _) in zip(names, found, strict=True)
        }
    )


def _of_remote(address: str) -> tuple[int | None, str, None]:
    """Return the size and what the store says of the contents, or a small file's sha256."""
    with explained(address, "", opening=True):
        filesystem, path = filesystem_of(address)
        filesystem.invalidate_cache()
        info = filesystem.info(path)
        size = info.get("size")
        mark = next((str(info[n]).strip('"') for n in _NAMES_OF_CONTENT if info.get(n)), None)
        if mark is None and size is not None and size > _SMALL:
            mark = str(info.get("mtime") or info.get("LastModified") or info.get("Last-Modified"))
        if mark is None:
            content = filesystem.cat_file(path)
            return len(content), hashlib.sha256(content).hexdigest(), None
    return size, hashlib.sha256(f"{size} {mark}".encode()).hexdigest(), None


def _joined(found: dict[str, tuple[int | None, str]]) -> OutsideInput:
    """Fingerprint several files by their names and digests."""
    text = json.dumps(sorted((name, digest) for name, (_, digest) in found.items()))
    few = len(found) <= _MOST_PARTS
    return OutsideInput(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        files=len(found),
        size=sum(size or 0 for size, _ in found.values()),
        parts={name: digest for name, (_, digest) in found.items()} if few else {},
    )


def _read(path: Path) -> tuple[str, int | None]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix.lower() not in _TEXT_ENDINGS:
            return digest, None
        file.seek(0)
        lines = 0
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
        return digest, lines


def _mark(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _name(path: Path) -> str:
    return os.path.abspath(path)


def _is_row(row: Any) -> bool:
    """Whether this is an entry of the memory: a mark, a digest and a number of lines."""
    return isinstance(row, list) and len(row) == 3 and isinstance(row[0], list)
