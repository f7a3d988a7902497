"""The long parts of a large artifact's manifest in columns: its files, and long details.

Each is a Parquet file beside the manifest, which names it with its sha256. Parquet files are named
after their contents, so that two runs that commit at once never write over each other's.
"""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from schemas.manifest import FileEntry, Manifest, Table, Tables

LARGE = 10_000
"""Files from which on a manifest has tables."""
_LONG = 65_536
"""Characters of JSON from which on one of the details of such a manifest is in a table."""


class FileList(Sequence[FileEntry]):
    """The files of an artifact, sorted by path. Holds columns, not an object each."""

    def __init__(self, paths: Sequence[str], sizes: Sequence[int], digests: Sequence[str]) -> None:
        order = range(len(paths))
        if any(paths[i] > paths[i + 1] for i in order[:-1]):
            order = sorted(order, key=paths.__getitem__)  # type: ignore[assignment]
            paths, sizes = [paths[i] for i in order], [sizes[i] for i in order]
            digests = [digests[i] for i in order]
        self.paths, self.sizes, self.digests = paths, sizes, digests

    @classmethod
    def of(cls, entries: Iterable[FileEntry]) -> FileList:
        entries = list(entries)
        return cls(
            [e.path for e in entries], [e.size for e in entries], [e.sha256 for e in entries]
        )

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, place: int) -> FileEntry: ...

    @overload
    def __getitem__(self, place: slice) -> list[FileEntry]: ...

    def __getitem__(self, place: int | slice) -> FileEntry | list[FileEntry]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return FileEntry(path=self.paths[place], size=self.sizes[place], sha256=self.digests[place])

    def find(self, path: str) -> FileEntry | None:
        """Return the entry of a path, or None."""
        place = bisect_left(self.paths, path)
        return self[place] if self.paths[place : place + 1] == [path] else None

    def select(self, prefix: str = "", suffix: str = "") -> Iterator[FileEntry]:
        """Yield the entries whose path begins and ends so."""
        for place in range(bisect_left(self.paths, prefix), len(self)):
            if not self.paths[place].startswith(prefix):
                return
            if self.paths[place].endswith(suffix):
                yield self[place]


def split(manifest: Manifest) -> tuple[Manifest, dict[str, bytes]]:
    """Return a manifest without its long parts, and their tables' contents by path. A manifest that
    is not large is returned as it is.
    """
    if len(manifest.files) < LARGE:
        return manifest, {}
    files = FileList.of(manifest.files)
    columns = {"path": files.paths, "size": files.sizes, "sha256": files.digests}
    contents = {}

    def table(name: str, content: bytes) -> Table:
        digest = hashlib.sha256(content).hexdigest()
        path = f"manifest.{name}.{digest[:16]}.parquet"
        contents[path] = content
        return Table(path=path, size=len(content), sha256=digest)

    long = {k: v for k, v in manifest.details.items() if _is_long(v) and _fits_columns(v)}
    tables = Tables(
        files=table("files", _write(columns)),
        count=len(files),
        bytes=sum(files.sizes),
        details=table("details", _pack(long)) if long else None,
    )
    kept = {name: value for name, value in manifest.details.items() if name not in long}
    update = {"files": [], "details": kept, "tables": tables}
    return manifest.model_copy(update=update), contents


def read_files(content: bytes) -> FileList:
    """Read a table of files. Raises ValueError if it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content), columns=["path", "size", "sha256"])
        columns = [table[name].to_pylist() for name in ("path", "size", "sha256")]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"it is no table of files: {error}") from error
    for column, kind in zip(columns, (str, int, str), strict=True):
        if not all(type(value) is kind for value in column):
            raise ValueError("it is no table of files: a value is missing or of another kind")
    return FileList(*columns)


def read_details(content: bytes) -> dict[str, Any]:
    """Read a table of details. Raises ValueError if it is not one."""
    import pyarrow as pa

    try:
        (details,) = _unpack(content)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"it is no table of details: {error}") from error
    return details


def _is_long(value: Any) -> bool:
    return isinstance(value, (list, dict)) and len(json.dumps(value)) > _LONG


def _fits_columns(value: Any) -> bool:
    """Whether columns give a value back as it was: they have one type each."""
    import pyarrow as pa

    try:
        (back,) = _unpack(_pack({"value": value}))
    except (pa.ArrowException, TypeError):
        return False
    return json.dumps(back["value"], sort_keys=True) == json.dumps(value, sort_keys=True)


def _pack(row: dict[str, Any]) -> bytes:
    import pyarrow as pa

    return _write(pa.Table.from_pylist([row]))


def _unpack(content: bytes) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def _write(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink, compression="zstd")
    return sink.getvalue()
