"""Rows of `.npy` files: mapped from a folder, or fetched by range into a cache of bounded size."""

from __future__ import annotations

import io
import os
from contextlib import closing
from itertools import pairwise

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ArtifactError
from stages.data.row_files import FetchedRows, MappedRows, RangeCache, Span, map_file


@given(
    reads=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19)), min_size=1, max_size=6),
        max_size=40,
    ),
    limit=st.integers(0, 300),
)
def test_a_ring_of_any_size_gives_the_bytes_of_the_files(reads, limit):
    """Blocks of three sizes, in any order: right bytes, never more held than allowed."""
    filesystem = fsspec.filesystem("memory")
    rng = np.random.default_rng(0)
    contents = {f"/ring/{i}": rng.bytes(20 * (7 + 30 * i)) for i in range(3)}
    for path, content in contents.items():
        filesystem.pipe_file(path, content)
    with closing(RangeCache(filesystem, limit)) as cache:
        for read in reads:
            spans = []
            for file, block in read:
                size = 7 + 30 * file
                start = block * size
                spans.append(Span(f"/ring/{file}", start, start + size, start + 2, start + 5))
            expected = [contents[span.path][span.start : span.stop] for span in spans]
            assert cache.read(spans) == expected
            assert cache.held <= limit
            places = sorted((p.start, p.stop) for p in cache._places.values())
            assert all(a[1] <= b[0] for a, b in pairwise(places))


class HugeFile:
    """A cache of one file of 3,000 rows of 1 MB; it holds what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Span] = []
        head = io.BytesIO()
        shape = {"descr": "<f2", "fortran_order": False, "shape": (3_000, 500_000)}
        np.lib.format.write_array_header_1_0(head, shape)
        self.head = head.getvalue()
        self.size = len(self.head) + 3_000 * 1_000_000

    def read(self, spans):
        first = not self.asked
        self.asked += spans
        return [self.head if first else b"x" * 1_000_000 for _ in spans]


def test_rows_beyond_two_gigabytes_are_read_where_they_are():
    """Bug: calculate with the int32 that Arrow gives, which is negative there."""
    cache = HugeFile()
    rows = FetchedRows(cache, {"tokens.npy": cache.size})
    rows.take(np.array([2_999], np.int32))
    assert cache.asked[-1].stop == cache.size
    assert cache.asked[-1].start == cache.size - 1_000_000


@pytest.fixture
def files(tmp_path):
    """Twenty arrays of two rows, and where they lie."""
    arrays = np.random.default_rng(0).standard_normal((20, 2, 3, 4)).astype(np.float16)
    paths = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return arrays, paths


def test_rows_of_many_files_are_read_and_no_file_stays_open(files):
    arrays, paths = files
    before = os.listdir("/proc/self/fd")
    rows = MappedRows([map_file(path, path.stat().st_size) for path in paths])
    assert os.listdir("/proc/self/fd") == before
    wanted = [39, 0, 7, 7]
    assert len(rows) == 40 and np.array_equal(rows.take(wanted), arrays.reshape(40, 3, 4)[wanted])


@pytest.mark.parametrize(
    ("part", "instead"), [(b"NUMPY", b"NUMPX"), (b"(2, 3", b"(9, 3"), (b"'<f2'", b"'|O' ")]
)
def test_a_file_that_holds_no_array_is_named(files, part, instead):
    path = files[1][3]
    content = path.read_bytes()
    path.write_bytes(content.replace(part, instead))
    with pytest.raises(ArtifactError, match=r"3\.npy is not a readable \.npy file"):
        map_file(path, len(content))
