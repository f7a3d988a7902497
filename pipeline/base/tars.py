"""Reads the samples of any WebDataset tar, whoever packed it.

A damaged tar is refused as a whole. What is wrong with one sample is said for that sample. Knows
nothing of what a sample means.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from schemas.errors import ArtifactError

LARGEST_SAMPLE = 2**30
"""Bytes above which a sample's members are not read into memory. Where names hold dots of their
own, a whole tar is one sample.
"""
_BLOCK = 512


class Sample(NamedTuple):
    """The members of a tar whose names are the same up to the first dot."""

    key: str
    """Folder and name up to the first dot, as in stock webdataset."""
    members: dict[str, bytes]
    """What follows that dot, in lower case, to the bytes."""
    problem: str | None
    """Why the sample cannot be used; then it has no members."""


def read_samples(path: Path, where: str) -> Iterator[Sample]:
    """Yield each sample once, in the order of their first members; members need not be neighbours.

    Raises ArtifactError naming `where` if the tar is damaged or cut short.
    """
    try:
        with tarfile.open(path, "r:*") as tar:
            samples = _grouped(tar)
            _require_end(tar)
            for key, found in samples.items():
                problem = _problem(found)
                yield Sample(key, {}, problem) if problem else _read(tar, key, found)
    except Exception as error:  # tarfile raises what it meets: ValueError, zlib.error, KeyError
        raise ArtifactError(
            f"shard {where} is damaged or cut short ({error}); make or fetch it again"
        ) from error


def _grouped(tar: tarfile.TarFile) -> dict[str, list[tuple[str, tarfile.TarInfo]]]:
    """Group the members by key, in order, without their contents."""
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError(f"negative size of {_text(member.name)}")
        folder, _, name = _text(member.name).rpartition("/")
        is_file = member.isreg() or member.islnk() or member.issym()
        if is_file and not _is_foreign(folder, name):
            stem, _, ending = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            samples.setdefault(key, []).append((ending.lower(), member))
    return samples


def _is_foreign(folder: str, name: str) -> bool:
    """Whether an archiver or a file manager put the file there: macOS's `._*`, hidden files,
    extended headers that were unpacked as files.
    """
    return name.startswith(".") or any(
        part == "__MACOSX" or part.startswith("PaxHeader") for part in folder.split("/")
    )


def _problem(found: list[tuple[str, tarfile.TarInfo]]) -> str | None:
    names: dict[str, str] = {}
    for ending, member in found:
        name = _text(member.name)
        if ending in names:
            return f"its shard holds two members of one name: {names[ending]} and {name}"
        names[ending] = name
    size = sum(member.size for _, member in found)
    if size > LARGEST_SAMPLE:
        return f"its members are larger than {LARGEST_SAMPLE:,} bytes: {size:,}"
    return None


def _read(tar: tarfile.TarFile, key: str, found: list[tuple[str, tarfile.TarInfo]]) -> Sample:
    members: dict[str, bytes] = {}
    for ending, member in found:
        content = _content(tar, member)
        if content is None:
            return Sample(key, {}, f"its shard holds a link to nothing: {_text(member.name)}")
        members[ending] = content
    return Sample(key, members, None)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """Return a member's bytes, or those of the member that it links to; None if there is none."""
    try:
        file = tar.extractfile(member)
    except (KeyError, RecursionError):
        return None
    if file is None:
        return None
    content = file.read(LARGEST_SAMPLE)
    if member.isreg() and len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _require_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError unless the reader stopped at the mark of the tar's end, with nothing
    behind it: tarfile itself takes a damaged header, or a file cut between two members, for the
    end, and never sees a second tar behind the first.
    """
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError("its end is missing")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"bad header at byte {tar.offset:,}")
    while block := file.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("more bytes stand behind its end, as in two tars joined")


def _text(name: str) -> str:
    """A member's name as text that can be stored, also where it is not UTF-8."""
    return name.encode(errors="backslashreplace").decode()
