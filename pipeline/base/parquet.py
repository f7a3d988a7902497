"""Rows as Parquet files. Arrow is imported only when one is written: planning does without it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, str]
"""A table's columns: their names, and Arrow's names of their types."""


def schema_of(columns: Columns) -> pa.Schema:
    """Return the schema of a table with these columns."""
    import pyarrow as pa

    return pa.schema(columns)


def table_bytes(rows: list[dict[str, Any]], columns: Columns) -> bytes:
    """Return a small Parquet file; the same rows give the same bytes."""
    sink = io.BytesIO()
    with TableWriter(sink, columns) as table:
        table.write(rows)
    return sink.getvalue()


class TableWriter:
    """Writes a Parquet file in parts: one row group for each call of `write`."""

    def __init__(self, target: Path | io.BytesIO, columns: Columns) -> None:
        import pyarrow.parquet as pq

        self._schema = schema_of(columns)
        self._file = pq.ParquetWriter(target, self._schema, compression="zstd")

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; a missing column is null."""
        import pyarrow as pa

        self._file.write_table(pa.Table.from_pylist(rows, self._schema))

    def close(self) -> None:
        self._file.close()
