"""Rows of several `.npy` files as one array: files in a local folder are memory-mapped, others are
fetched by byte range through a bounded local cache.

Knows nothing about latents or prompts. Only one thread at a time may use a cache and its readers.
"""

from __future__ import annotations

import io
import os
import tempfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import fsspec
import numpy as np
import torch

from schemas.errors import ArtifactError

BLOCK_BYTES = 512 * 1024
"""Approximate size of a request for small rows; larger rows are fetched one by one."""
_HEADER_BYTES = 1024


class Rows(Protocol):
    """Rows of one shape and dtype."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a new array (n, ...) of these rows."""
        ...


def map_bytes(path: Path, size: int) -> np.ndarray:
    """Memory-map a file of `size` bytes: uint8 (size,).

    Unlike NumPy's memmap, the mapping keeps no file descriptor open: a large artifact has more
    files than a process may have open.
    """
    return torch.from_file(str(path), size=size, dtype=torch.uint8).numpy()


def map_file(path: Path, size: int) -> np.ndarray:
    """Memory-map the array in a `.npy` file of `size` bytes, as `map_bytes` does. Raises
    ArtifactError unless it is a plain `.npy` file of that size.
    """
    content = map_bytes(path, size)
    offset, shape, dtype = _header(str(path), content[:_HEADER_BYTES].tobytes(), size)
    return content[offset:].view(dtype).reshape(shape)


class MappedRows:
    """Memory-mapped arrays, concatenated."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._ends = list(accumulate(len(array) for array in arrays))

    def __len__(self) -> int:
        return self._ends[-1]

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self._arrays[0].shape[1:]), self._arrays[0].dtype)
        for place, row in enumerate(rows):
            file = bisect_right(self._ends, row)
            out[place] = self._arrays[file][row - self._ends[file] + len(self._arrays[file])]
        return out


class Span(NamedTuple):
    """Bytes `start` to `stop` of a file, and the block that is fetched to get them."""

    path: str
    block_start: int
    block_stop: int
    start: int
    stop: int


class RangeCache:
    """Reads byte ranges of remote files and keeps at most `limit` bytes of copies, in a ring in
    which new copies replace the oldest.

    Every epoch visits the rows in a new random order, so dropping the oldest copy costs no more
    than dropping any other. The copies are in one unnamed file, which the system removes when the
    process ends, even if it is killed.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, limit: int) -> None:
        self.filesystem, self.limit = filesystem, limit
        self._file = tempfile.TemporaryFile(prefix="ladd-latents-")  # noqa: SIM115
        self._places: OrderedDict[tuple[str, int], range] = OrderedDict()
        self._head = 0

    @property
    def held(self) -> int:
        """Bytes of copies that the cache holds."""
        return sum(map(len, self._places.values()))

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of each span. Blocks that are not in the cache are fetched concurrently.

        Raises ArtifactError if a block is shorter than expected. Errors of the file system
        propagate unchanged, because a restart may well cure them.
        """
        missing = {
            (span.path, span.block_start): span.block_stop
            for span in spans
            if (span.path, span.block_start) not in self._places
        }
        fetched = dict(zip(missing, self._fetch(missing), strict=True))
        contents = [self._cut(span, fetched) for span in spans]
        for block, content in fetched.items():
            self._keep(block, content)
        return contents

    def close(self) -> None:
        self._file.close()

    def _fetch(self, blocks: dict[tuple[str, int], int]) -> list[bytes]:
        if not blocks:
            return []
        paths, starts = [path for path, _ in blocks], [start for _, start in blocks]
        stops = list(blocks.values())
        contents = self.filesystem.cat_ranges(paths, starts, stops, on_error="raise")
        for path, start, stop, content in zip(paths, starts, stops, contents, strict=True):
            if len(content) != stop - start:
                raise ArtifactError(
                    f"{path} is damaged: it ends before byte {stop}; remove it and run "
                    "`ladd-pipeline run --force encode`"
                )
        return contents

    def _cut(self, span: Span, fetched: dict[tuple[str, int], bytes]) -> bytes:
        block = (span.path, span.block_start)
        skip, length = span.start - span.block_start, span.stop - span.start
        if block in fetched:
            return fetched[block][skip : skip + length]
        return os.pread(self._file.fileno(), length, self._places[block].start + skip)

    def _keep(self, block: tuple[str, int], content: bytes) -> None:
        if len(content) > self.limit:
            return
        if self._head + len(content) > self.limit:
            self._drop_until(self.limit)
            self._head = 0
        self._drop_until(self._head + len(content))
        os.pwrite(self._file.fileno(), content, self._head)
        self._places[block] = range(self._head, self._head + len(content))
        self._head += len(content)

    def _drop_until(self, place: int) -> None:
        """Forget the copies that start between the head and `place`."""
        while self._places:
            oldest = next(iter(self._places.values()))
            if not self._head <= oldest.start < place:
                return
            self._places.popitem(last=False)


class FetchedRows:
    """Remote `.npy` files, concatenated and read through a cache.

    `sizes` maps each path to its expected size in bytes. Raises ArtifactError unless each file is
    a plain `.npy` file of that size.
    """

    def __init__(self, cache: RangeCache, sizes: dict[str, int]) -> None:
        self._cache = cache
        self._paths = list(sizes)
        spans = [
            Span(path, 0, min(size, _HEADER_BYTES), 0, min(size, _HEADER_BYTES))
            for path, size in sizes.items()
        ]
        headers = [
            _header(path, start, size)
            for (path, size), start in zip(sizes.items(), cache.read(spans), strict=True)
        ]
        self._offsets = [offset for offset, _, _ in headers]
        self._ends = list(accumulate(shape[0] for _, shape, _ in headers))
        _, (_, *self._shape), self._dtype = headers[0]
        self._row_bytes = self._dtype.itemsize * int(np.prod(self._shape))
        self._rows_per_block = max(1, BLOCK_BYTES // self._row_bytes)

    def __len__(self) -> int:
        return self._ends[-1]

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self._shape), self._dtype)
        contents = self._cache.read([self._span(int(row)) for row in rows])
        for place, content in enumerate(contents):
            out[place].data.cast("B")[:] = content
        return out

    def _span(self, row: int) -> Span:
        file = bisect_right(self._ends, row)
        before = self._ends[file - 1] if file else 0
        row, rows = row - before, self._ends[file] - before
        first = row - row % self._rows_per_block

        def at(place: int) -> int:
            return self._offsets[file] + place * self._row_bytes

        last = min(first + self._rows_per_block, rows)
        return Span(self._paths[file], at(first), at(last), at(row), at(row + 1))


def _header(path: str, start: bytes, size: int) -> tuple[int, tuple[int, ...], np.dtype]:
    """Byte offset of the rows of a `.npy` file, its shape and dtype, from its first bytes."""
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"its format version is {version}")
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(file)
        expected = file.tell() + dtype.itemsize * int(np.prod(shape))
        if column_major or dtype.hasobject or expected != size:
            raise ValueError(f"{size} bytes do not hold {shape} of {dtype}")
    except ValueError as error:
        raise ArtifactError(f"{path} is not a readable .npy file: {error}") from error
    return file.tell(), shape, dtype
