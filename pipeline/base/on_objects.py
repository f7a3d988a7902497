"""The files of a store that is an object store, or anything else that fsspec opens."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import posixpath
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import retries
from pipeline.base.answers import answers, was_cut_short

if TYPE_CHECKING:
    import asyncio

    import fsspec

_CONFLICT, _EXISTS = 409, 412
"""HTTP status of a conditional write: another is under way; the object is there."""
_REFUSALS = {400, 405, 501}
"""HTTP status of stores that know no conditional writes."""
_TRIES = 5
_BLOCK = 8 * 2**20
_AT_ONCE = 64
"""Files that are read at the same time."""


def create(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
    """Write an object unless it is there, by the store's own condition (`If-None-Match`)."""
    for attempt in range(1, _TRIES + 1):
        try:  # no makedirs: object stores have no folders, and it may need more permissions
            filesystem.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            status = answers(error).status
            if status == _EXISTS:  # some stores leave out what s3fs knows it by
                return False
            if status != _CONFLICT:
                raise
            time.sleep(0.05 * 2**attempt)
        else:
            return True
    return False


def try_conditions(filesystem: fsspec.AbstractFileSystem, probe: str) -> str:
    """Find out what a store makes of a conditional write: "" if it heeds the condition, else
    "refuses" or "ignores". The object `probe` stays, so most tries are one request.

    Raises what fails for another reason, and what a plain write raises, if that fails too.
    """
    content = b"ladd-pipeline writes this to learn whether the store heeds If-None-Match\n"
    try:
        if not create(filesystem, probe, content) or not create(filesystem, probe, content):
            return ""
    except Exception as error:
        found = answers(error)
        if found.may_pass or (found.status and found.status not in _REFUSALS):
            raise
        filesystem.pipe_file(probe, content)
        return "refuses"
    return "ignores"


def read_all(
    filesystem: fsspec.AbstractFileSystem, paths: Sequence[str]
) -> list[bytes | BaseException]:
    """Read whole files in parallel where the store can, by one request each. Not by `cat`, which
    takes `[` or `*` in a path for a pattern, nor by `cat_ranges`, which asks for each size first.
    """
    if not filesystem.async_impl:
        return [_read(filesystem, path) for path in paths]

    async def read(path: str) -> bytes:
        return bytes(await filesystem._cat_file(path))

    return _at_once(filesystem, read, paths)


def fetch(filesystem: fsspec.AbstractFileSystem, path: str, local: Path) -> None:
    """Copy an object to a local file. What ends too soon is fetched again: s3fs does not do so for
    the parts of a large file, which it reads at the same time.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            filesystem.get_file(path, str(local))
            return
        except Exception as error:
            if attempt == _TRIES or not was_cut_short(error):
                raise
            retries.note()
            time.sleep(0.1 * 2**attempt)


def digest(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Return the sha256 of an object, of which few blocks are in memory at a time."""
    content = hashlib.sha256()
    with filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as file:
        while block := file.read(_BLOCK):
            content.update(block)
    return content.hexdigest()


def remove_files(filesystem: fsspec.AbstractFileSystem, paths: Sequence[str]) -> None:
    """Remove files, many with one request where the store can. Those that are missing are no
    error.
    """
    if not any(map(glob.has_magic, paths)):  # `rm` takes them for patterns
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(list(paths))
            return
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(path)


def _at_once(
    filesystem: fsspec.AbstractFileSystem,
    work: Callable[[str], Awaitable[Any]],
    paths: Sequence[str],
) -> list[Any]:
    """Return what the work on each path gives, or the exception that it raises."""
    import asyncio

    from fsspec.asyn import sync

    async def one(path: str, room: asyncio.Semaphore) -> Any:
        async with room:
            try:
                return await work(path)
            except Exception as error:  # drivers raise what they like; whoever asked sorts them
                return error

    async def all_of_them() -> list[Any]:
        room = asyncio.Semaphore(_AT_ONCE)
        return await asyncio.gather(*(one(path, room) for path in paths))

    found: list[Any] = sync(filesystem.loop, all_of_them)
    return found


def _read(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes | BaseException:
    try:
        return bytes(filesystem.cat_file(path))
    except Exception as error:
        return error


def files_below(filesystem: fsspec.AbstractFileSystem, folder: str) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its path relative to the folder."""
    if hasattr(filesystem, "invalidate_cache"):
        filesystem.invalidate_cache()
    try:
        found: dict[str, Any] = filesystem.find(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    above = folder.rstrip("/") + "/"
    return {
        # Not by `relpath`, which asks for the working folder: it may be gone.
        path.removeprefix(above): int(info.get("size") or 0)
        for path, info in found.items()
        if info.get("type") != "directory"  # SeaweedFS keeps a folder a while after its last file
    }


def folders_in(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Names of the folders directly in a folder, sorted: the common prefixes of its objects."""
    try:
        found = filesystem.ls(folder, detail=True, refresh=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        posixpath.basename(info["name"].rstrip("/"))
        for info in found
        if info["type"] == "directory"
    )


def remove(filesystem: fsspec.AbstractFileSystem, path: str, first: str) -> None:
    """Remove a file, or a folder with all that is in it, the file `first` before all others."""
    if filesystem.exists(posixpath.join(path, first)):
        filesystem.rm_file(posixpath.join(path, first))
    if not filesystem.exists(path):
        return
    with contextlib.suppress(FileNotFoundError):  # another process removes it too
        if not glob.has_magic(path):
            filesystem.rm(path, recursive=True)
            return
        for file in filesystem.find(path):  # `rm` takes the path for a pattern
            filesystem.rm_file(file)
