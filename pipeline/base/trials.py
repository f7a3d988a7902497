"""Tries on a store, as it is configured, every operation that the pipeline relies on, and says what
is not promised where one does not work.

What it writes is in one folder of its own, which it removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.base import on_disk, on_objects
from pipeline.base.lease import held
from pipeline.base.storage_errors import explained
from pipeline.base.store import ArtifactStore
from schemas.errors import LaddError

Outcome = Literal["yes", "no", "failed", "not tried"]
_PART = 5 * 2**20
"""Bytes of a part of an upload: the least that S3 takes."""
_RIVALS = 8
"""How many create one file at the same moment."""
_ROUNDS = 3
_FEW = 5
_SWITCHES: dict[str, dict[str, Any]] = {
    "AWS_REQUEST_CHECKSUM_CALCULATION=when_required "
    "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required": {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
    """FSSPEC_S3='{"config_kwargs": {"s3": {"addressing_style": "path"}}}'""": {
        "s3": {"addressing_style": "path"}
    },
    """FSSPEC_S3='{"config_kwargs": {"s3": {"addressing_style": "virtual"}}}'""": {
        "s3": {"addressing_style": "virtual"}
    },
}
"""What some stores that speak S3 need: settings of the environment, and the same for botocore."""


class _Unlike(Exception):
    """A store that answers, but not as the pipeline relies on; the text says how."""


@dataclass(frozen=True)
class Trial:
    """One operation that was tried."""

    name: str
    outcome: Outcome
    """`no`: it works in another way than relied on; `failed`: it does not work."""
    text: str
    """What was seen."""
    then: str
    """What is not promised without it; empty if it works."""
    essential: bool
    """Whether nothing can be made without it."""


@dataclass(frozen=True)
class _Wanted:
    name: str
    how: Callable[[ArtifactStore, str], str]
    """Tries it in a folder of the store; returns what was seen. Raises _Unlike or LaddError."""
    then: str
    essential: bool = False
    of: Literal["all", "folders", "objects", "s3"] = "all"
    """The kind of store that it is about."""


def try_store(store: ArtifactStore) -> Iterator[Trial]:
    """Try everything, one after another. If a plain write fails, the rest is not tried."""
    folder, gone = f".doctor-{uuid.uuid4().hex[:12]}", False
    is_new = store.is_local and not os.path.isdir(store.root)
    try:
        for wanted in _WANTED:
            if not _concerns(wanted, store):
                continue
            if gone:
                yield Trial(wanted.name, "not tried", "", wanted.then, wanted.essential)
                continue
            found = _tried(wanted, store, folder)
            gone = wanted.how is _write and found.outcome != "yes"
            yield found
    finally:
        with contextlib.suppress(LaddError):
            store.remove(folder)
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(store.root)


def needed_switches(store: ArtifactStore) -> str | None:
    """Return the setting of the environment with which a write to an S3 store works that fails
    without it, or None if none helps.
    """
    if not store.url.startswith("s3://"):
        return None
    import s3fs

    name = store.path(f".doctor-{uuid.uuid4().hex[:12]}")
    for setting, options in _SWITCHES.items():
        with contextlib.suppress(Exception):  # drivers raise what they like
            filesystem = s3fs.S3FileSystem(config_kwargs=options, skip_instance_cache=True)
            filesystem.pipe_file(name, b"1")
            if filesystem.cat_file(name) == b"1":
                filesystem.rm_file(name)
                return setting
    return None


def _concerns(wanted: _Wanted, store: ArtifactStore) -> bool:
    return {
        "all": True,
        "folders": store.is_local,
        "objects": not store.is_local,
        "s3": store.url.startswith("s3://"),
    }[wanted.of]


def _tried(wanted: _Wanted, store: ArtifactStore, folder: str) -> Trial:
    def outcome(kind: Outcome, text: str, then: str) -> Trial:
        return Trial(wanted.name, kind, text, then, wanted.essential)

    try:
        return outcome("yes", wanted.how(store, folder), "")
    except _Unlike as found:
        return outcome("no", str(found), wanted.then)
    except LaddError as error:
        return outcome("failed", str(error), wanted.then)


def _write(store: ArtifactStore, folder: str) -> str:
    content, started = os.urandom(1000), time.monotonic()
    for number in range(_FEW):
        store.write(f"{folder}/few/{number}", content)
    per_write = (time.monotonic() - started) / _FEW
    started = time.monotonic()
    for number in range(_FEW):
        if store.read(f"{folder}/few/{number}") != content:
            raise _Unlike("what is read is not what was written")
    per_read = (time.monotonic() - started) / _FEW
    return f"{1000 * per_write:.1f} ms a small write, {1000 * per_read:.1f} ms a read"


def _overwrite(store: ArtifactStore, folder: str) -> str:
    for number in range(_FEW):
        content = str(number).encode()
        store.write(f"{folder}/same", content)
        if store.read(f"{folder}/same") != content:
            raise _Unlike("a read gave what was there before")
    return ""


def _listing(store: ArtifactStore, folder: str) -> str:
    for number in range(_FEW):
        store.write(f"{folder}/listed/{number}", b"1" * (number + 1))
        if (found := len(store.all_files(f"{folder}/listed"))) != number + 1:
            raise _Unlike(f"a listing gave {found} of {number + 1} files")
    store.write(f"{folder}/listed/0", b"longer")
    if store.all_files(f"{folder}/listed").get("0") != 6:
        raise _Unlike("a listing gave the size that a file had before")
    store.remove(f"{folder}/listed/0")
    if "0" in store.all_files(f"{folder}/listed"):
        raise _Unlike("a listing gave a file that was removed")
    return ""


def _pages(store: ArtifactStore, folder: str) -> str:
    bucket, _, prefix = store.path(f"{folder}/few/").partition("/")
    found: set[str] = set()
    more: dict[str, str] = {}
    with explained(store.url, "list", folder):
        for _ in range(2 * _FEW):
            page = store.filesystem.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=2, **more
            )
            found |= {entry["Key"] for entry in page.get("Contents", ())}
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
    if len(found) != _FEW:
        raise _Unlike(f"pages of two held {len(found)} of {_FEW} files")
    return ""


def _exclusive(store: ArtifactStore, folder: str) -> str:
    """Let several create one file at once; one must win, and its content stay."""

    def create(name: str, content: bytes) -> bool:
        path = store.path(name)
        with explained(store.url, "write", name):
            if store.is_local:
                return on_disk.create(path, content)
            return on_objects.create(store.filesystem, path, content)

    contents = [str(number).encode() for number in range(_RIVALS)]
    with ThreadPoolExecutor(_RIVALS) as pool:
        for turn in range(_ROUNDS):
            name = f"{folder}/one-of-many-{turn}"
            try:
                won = list(pool.map(create, [name] * _RIVALS, contents))
            except LaddError as error:
                raise _Unlike(f"it refuses conditional writes (If-None-Match): {error}") from error
            winners = [content for content, is_won in zip(contents, won, strict=True) if is_won]
            if len(winners) != 1:
                raise _Unlike(f"{len(winners)} of {_RIVALS} at once were told that theirs is it")
            if store.read(name) != winners[0]:
                raise _Unlike("the content is not that of the one who was told so")
    return f"{_ROUNDS} rounds of {_RIVALS} at once"


def _links(store: ArtifactStore, folder: str) -> str:
    with explained(store.url, "write", folder):
        if not on_disk.has_links(store.path(folder)):
            raise _Unlike("the file system has no hard links")
    return ""


def _parts(store: ArtifactStore, folder: str) -> str:
    content, name = os.urandom(100_000), f"{folder}/whole"
    store.write(name, content)
    path, places = store.path(name), [(0, 10), (5_000, 70_001), (99_990, 100_000)]
    with explained(store.url, "read", name):
        found = store.filesystem.cat_ranges(
            [path] * len(places), [first for first, _ in places], [end for _, end in places]
        )
    if [bytes(part) for part in found] != [content[first:end] for first, end in places]:
        raise _Unlike("a range gave other bytes than were asked for")
    return ""


def _many(store: ArtifactStore, folder: str) -> str:
    names = [f"{folder}/few/{number}" for number in range(_FEW)]
    found = store.read_all([*names, f"{folder}/few/none"])
    if sorted(found) != names:
        raise _Unlike(f"{len(found)} of {_FEW} came, and a missing one must be left out")
    return ""


def _large(store: ArtifactStore, folder: str) -> str:
    """Upload a file that S3 takes in parts, read it back, and compare."""
    block = os.urandom(2**20)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "large"
        with path.open("wb") as file:
            for number in range(2 * _PART // 2**20 + 1):
                file.write(part := bytes([number]) + block[1:])
                digest.update(part)
        name, size = f"{folder}/large", path.stat().st_size
        started = time.monotonic()
        with explained(store.url, "write", name):
            in_parts = {"chunksize": _PART} if store.url.startswith("s3://") else {}
            store.filesystem.put_file(str(path), store.path(name), **in_parts)
        up = size / (time.monotonic() - started)
        started = time.monotonic()
        with store.local(name) as copy, copy.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        down = size / (time.monotonic() - started)
    if found != digest.hexdigest():
        raise _Unlike("what is read is not what was written in parts")
    return f"{up / 1e6:.0f} MB/s up, {down / 1e6:.0f} MB/s down"


def _copy(store: ArtifactStore, folder: str) -> str:
    content = os.urandom(1000)
    store.write(f"{folder}/source", content)
    store.copy(f"{folder}/source", f"{folder}/below/copy")
    if store.read(f"{folder}/below/copy") != content:
        raise _Unlike("the copy is not the file")
    return ""


def _lease(store: ArtifactStore, folder: str) -> str:
    with held(store, f"{folder}/training", "doctor") as lease:
        lease.check()
        if lease.name.rpartition("/")[2] not in store.all_files(f"{folder}/training"):
            raise _Unlike("a lease that is held is not there")
    if store.all_files(f"{folder}/training"):
        raise _Unlike("a lease that was given back is still there")
    return ""


def _remove(store: ArtifactStore, folder: str) -> str:
    store.remove(folder)
    if left := store.all_files(folder):
        raise _Unlike(f"{len(left)} files are still there")
    return ""


_WANTED = (
    _Wanted("write and read", _write, "nothing can be made here", essential=True),
    _Wanted(
        "overwrite",
        _overwrite,
        "a lease looks dead while its holder lives, so two runs may train the same",
        essential=True,
    ),
    _Wanted(
        "list what was just written",
        _listing,
        "a run makes again what is there, or takes for done what is not",
        essential=True,
    ),
    _Wanted(
        "list in pages",
        _pages,
        "of a folder with more than 1,000 files some are overlooked",
        essential=True,
        of="s3",
    ),
    _Wanted(
        "create, and of many one wins",
        _exclusive,
        "two runs that end at the same moment may overwrite each other's manifest, and two that "
        "start one training at the same moment may both train for some seconds; start one run at "
        "a time",
    ),
    _Wanted(
        "hard links",
        _links,
        "a power cut at the moment of a commit may leave a damaged manifest, which `ladd-pipeline "
        "artifacts verify` names",
        of="folders",
    ),
    _Wanted(
        "read parts of a file",
        _parts,
        "distill cannot read latents from here",
        essential=True,
        of="objects",
    ),
    _Wanted(
        "read many files at once", _many, "resume cannot read the shards' markers", essential=True
    ),
    _Wanted(
        "upload in parts",
        _large,
        "no file of more than 100 MB can be written: make shards smaller",
        essential=True,
        of="objects",
    ),
    _Wanted("copy within the store", _copy, "eval cannot copy the students", essential=True),
    _Wanted("hold a lease", _lease, "nothing can be trained here", essential=True),
    _Wanted(
        "remove",
        _remove,
        "leases end only after three missed beats, and --force, `artifacts gc` and `artifacts "
        "drop` cannot remove anything",
    ),
)
