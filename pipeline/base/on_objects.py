"""The files of a store that is an object store, or anything else that fsspec opens."""

from __future__ import annotations

import contextlib
import glob
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.base.storage_errors import answers

if TYPE_CHECKING:
    import fsspec

_CONFLICT, _EXISTS = 409, 412
"""HTTP status of a conditional write: another is under way; the object is there."""
_TRIES = 5


def create(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
    """Write an object unless it is there, by the store's own condition (`If-None-Match`)."""
    for _ in range(_TRIES):
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
        else:
            return True
    return False


def try_conditions(filesystem: fsspec.AbstractFileSystem, probe: str) -> str:
    """Find out what a store makes of a conditional write: "" if it heeds the condition, else
    "refuses" or "ignores". The object `probe` stays, so most tries are one request.

    Raises what a plain write raises, if that fails too.
    """
    content = b"ladd-pipeline writes this to learn whether the store heeds If-None-Match\n"
    try:
        if not create(filesystem, probe, content) or not create(filesystem, probe, content):
            return ""
    except Exception:
        filesystem.pipe_file(probe, content)
        return "refuses"
    return "ignores"


def read_all(
    filesystem: fsspec.AbstractFileSystem, paths: Sequence[str]
) -> list[bytes | BaseException]:
    """Read whole files in parallel where the store can. Not by `cat`, which takes `[` or `*` in a
    path for a pattern.
    """
    contents: list[bytes | BaseException] = filesystem.cat_ranges(
        list(paths), [None] * len(paths), [None] * len(paths), on_error="return"
    )
    return contents


def files_below(filesystem: fsspec.AbstractFileSystem, folder: str) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its path relative to the folder."""
    if hasattr(filesystem, "invalidate_cache"):
        filesystem.invalidate_cache()
    try:
        found: dict[str, Any] = filesystem.find(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        posixpath.relpath(path, folder): int(info.get("size") or 0) for path, info in found.items()
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
