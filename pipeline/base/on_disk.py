"""The files of a store that is a folder of this machine: each appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PARTIAL = ".partial"
_TRIES = 10
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""errno of file systems that cannot flush one file."""


def is_foreign(name: str) -> bool:
    """Whether a path relative to the store is not ours: what a killed process left half-written,
    and what systems and editors put beside files (`._a`, `.DS_Store`, `Thumbs.db`, `a~`, `#a#`).
    """
    return name.endswith(PARTIAL) or any(
        part.startswith((".", "#")) or part.endswith("~") or part in ("Thumbs.db", "desktop.ini")
        for part in name.split("/")
    )


def create(path: str, content: bytes) -> bool:
    """Create a file with its whole content. Returns False and changes nothing if it exists.

    Without hard links the name appears first and the content after it: see `has_links`.
    """
    with _partial_of(path) as partial:
        _in_its_folder(path, lambda: Path(partial).write_bytes(content))
        _flush(partial)
        try:
            os.link(partial, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and then finds its own link.
            return os.stat(partial).st_nlink == 2
        except OSError:
            return _create_in_place(path, content)
        return True


def _create_in_place(path: str, content: bytes) -> bool:
    try:
        file = open(path, "xb")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
        _flush(path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return True


def has_links(folder: str) -> bool:
    """Whether the file system of a folder, which is made, has hard links: found out by trying."""
    os.makedirs(folder, exist_ok=True)
    with _partial_of(os.path.join(folder, "links")) as partial:
        Path(partial).write_bytes(b"")
        linked = f"{partial}{PARTIAL}"
        try:
            os.link(partial, linked)
        except OSError:
            return False
        os.unlink(linked)
        return True


def put(source: Path | bytes, path: str) -> None:
    """Write a file, or copy one, in one atomic step. It is on the disk before it has its name."""
    with _partial_of(path) as partial:
        if isinstance(source, bytes):
            _in_its_folder(path, lambda: Path(partial).write_bytes(source))
        else:
            _in_its_folder(path, lambda: shutil.copyfile(source, partial))
        _flush(partial)
        os.replace(partial, path)


def files_below(folder: str) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its path relative to the folder."""
    sizes = {}
    for where, _, names in os.walk(folder, onerror=_unless_missing, followlinks=True):
        for name in names:
            path = os.path.join(where, name)
            with contextlib.suppress(FileNotFoundError):  # a broken link, or just removed
                sizes[os.path.relpath(path, folder)] = os.stat(path).st_size
    return sizes


def folders_in(folder: str) -> list[str]:
    """Names of the folders directly in a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_empty(folder: str) -> None:
    """Remove a folder and those in it as far as no file is in them."""
    for where, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(where)


def remove(path: str, first: str) -> None:
    """Remove a file, or a folder with all that is in it, the file `first` before all others."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(os.path.join(path, first))
    while os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def _in_its_folder(path: str, write: Callable[[], object]) -> None:
    """Write a file of a folder that is made, again if another process removes it as empty."""
    for left in reversed(range(_TRIES)):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write()
            return
        except (FileNotFoundError, FileExistsError):  # a folder came or went while it was made
            if not left:
                raise


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@contextlib.contextmanager
def _partial_of(path: str) -> Iterator[str]:
    """A name beside a file for its half-written content, which is removed at the end."""
    partial = f"{path}.{uuid.uuid4().hex[:12]}{PARTIAL}"
    try:
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _flush(path: str) -> None:
    """Wait until a file's content is on the disk: a power cut must not leave zeros in its place."""
    with open(path, "rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
