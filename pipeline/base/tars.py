"""Reads the samples of any WebDataset tar, whoever made it.

A damaged tar, or one that decompresses to far more than its size, is refused as a whole. A problem
of one sample (also a name that leads out of its folder, a link, a device) is reported for that
sample alone. Nothing is ever extracted to files. Knows nothing of what a sample means.
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
LARGEST_RATIO = 200
"""How many times the size of a compressed tar its members may have, above that of one sample:
pictures and latents hardly shrink.
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
            samples = _grouped(tar, LARGEST_SAMPLE + LARGEST_RATIO * path.stat().st_size)
            _require_end(tar)
            for key, found in samples.items():
                problem = _problem(found)
                yield Sample(key, {}, problem) if problem else _read(tar, key, found)
    except Exception as error:  # tarfile raises what it meets: ValueError, zlib.error, KeyError
        raise ArtifactError(
            f"shard {where} is damaged or cut short ({error}); make or fetch it again"
        ) from error


def _grouped(tar: tarfile.TarFile, most: int) -> dict[str, list[tuple[str, tarfile.TarInfo]]]:
    """Group the members by key, in order, without their contents. Raises tarfile.ReadError before
    more than `most` bytes are decompressed.
    """
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError(f"negative size of {_text(member.name)}")
        if member.offset_data + member.size > most:
            raise tarfile.ReadError(f"it decompresses to more than {most:,} bytes")
        folder, _, name = _text(member.name).rpartition("/")
        if not member.isdir() and not _is_foreign(folder, name):
            stem, _, ending = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            samples.setdefault(key, []).append((ending.lower(), member))
    return samples


def _is_foreign(folder: str, name: str) -> bool:
    """Whether an archiver or a file manager put the file there: macOS's `._*`, hidden files,
    extended headers that were extracted as files.
    """
    return name.startswith(".") or any(
        part == "__MACOSX" or part.startswith("PaxHeader") for part in folder.split("/")
    )


def _problem(found: list[tuple[str, tarfile.TarInfo]]) -> str | None:
    names: dict[str, str] = {}
    for ending, member in found:
        name = _text(member.name)
        if name.startswith("/") or ".." in name.split("/"):
            return f"a name in its shard leads out of its folder: {name}"
        if not member.isreg() or member.issparse():
            return f"its shard holds {_kind(member)} instead of a file: {name}"
        if ending in names:
            return f"its shard holds two members of one name: {names[ending]} and {name}"
        names[ending] = name
    size = sum(member.size for _, member in found)
    if size > LARGEST_SAMPLE:
        return f"its members are larger than {LARGEST_SAMPLE:,} bytes: {size:,}"
    return None


def _kind(member: tarfile.TarInfo) -> str:
    if member.islnk() or member.issym():
        return "a link"
    return "a sparse file" if member.issparse() else "a device or a pipe"


def _read(tar: tarfile.TarFile, key: str, found: list[tuple[str, tarfile.TarInfo]]) -> Sample:
    members: dict[str, bytes] = {}
    for ending, member in found:
        file = tar.extractfile(member)
        assert file is not None  # it is a regular file
        content = file.read(LARGEST_SAMPLE)
        if len(content) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        members[ending] = content
    return Sample(key, members, None)


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
