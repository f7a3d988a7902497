"""Mapped `.npy` files: what is read, what is refused, what is kept open."""

from __future__ import annotations

import os

import numpy as np
import pytest

from schemas.errors import ArtifactError
from stages.data.row_files import MappedRows, map_file


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
