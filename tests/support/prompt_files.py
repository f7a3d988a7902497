"""A small sound file of prompts in each format."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq


def written(name: str, prompts: list[str]) -> bytes:
    """The bytes of a file of this name with a column `prompt`."""
    kind, _, packed = name.partition(".")[2].partition(".")
    return PACKERS[packed](_WRITERS[kind](prompts))


def _table(delimiter: str) -> Callable[[list[str]], bytes]:
    def write(prompts: list[str]) -> bytes:
        text = io.StringIO(newline="")
        rows = [["id", "prompt"], *([i, p] for i, p in enumerate(prompts))]
        csv.writer(text, delimiter=delimiter).writerows(rows)
        return text.getvalue().encode()

    return write


def _lines(prompts: list[str]) -> bytes:
    return "".join(json.dumps({"prompt": p, "id": 1}) + "\n" for p in prompts).encode()


def _parquet(prompts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": prompts}), file)
    return file.getvalue()


def _zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


_WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    "txt": lambda prompts: "".join(f"{p}\n" for p in prompts).encode(),
    "csv": _table(","),
    "tsv": _table("\t"),
    "json": lambda prompts: json.dumps([{"prompt": p} for p in prompts]).encode(),
    "jsonl": _lines,
    "ndjson": _lines,
    "parquet": _parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    "gz": lambda content: gzip.compress(content, mtime=0),
    "bz2": bz2.compress,
    "zst": _zst,
}
