"""Preference pairs from files: Pick-a-Pic's parquet columns, or a jsonl of prompts and pictures.

A file is cut into parts of at most N rows, which are read independently. A row that cannot be used
is returned with the reason; a file that cannot be used raises ConfigError.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.addresses import expand, shown, without_query
from schemas.errors import ConfigError
from stages.texts.identity import clean

FORMATS = ("jsonl", "parquet")
COLUMNS = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
"""Columns of Pick-a-Pic (Kirstain et al. 2023); a label of 0.5 is a tie."""
FIELDS = ("prompt", "winner", "loser")
"""Fields of a jsonl row; an optional field `judge` says who preferred the winner."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a file."""

    url: str
    first: int
    """Index of the first row in the file."""
    rows: int
    offset: int = 0
    """Byte offset of the first row, in a jsonl file."""
    number: int = 0
    """Index of the file among all files."""


@dataclass(frozen=True)
class SourcePair:
    """A row: the prompt, two encoded pictures, and what the source says about them."""

    key: str
    """Identifies the file and the row."""
    judge: str
    prompt: str | None = None
    winner: bytes = b""
    loser: bytes = b""
    winner_score: float | None = None
    loser_score: float | None = None
    tie: bool = False
    problem: str | None = None
    """Why the row cannot be used; None if it can."""


def require_pair_files(url: str) -> None:
    """Raise ConfigError if no file matches `url` or a file's format is unknown."""
    for file in _files(url):
        _format_of(file)


def parts_of(url: str, rows: int) -> list[Part]:
    """Cut a file, or all files that a glob matches, into parts of at most `rows` rows.

    Raises ConfigError if a file is missing, empty or malformed.
    """
    parts = []
    for number, file in enumerate(_files(url)):
        count, offsets = _COUNTERS[_format_of(file)](file, rows)
        if count == 0:
            raise ConfigError(f"pairs.url: {file} holds no pairs")
        for first, offset in zip(range(0, count, rows), offsets, strict=False):
            parts.append(Part(file, first, min(rows, count - first), offset, number))
    return parts


def read_part(part: Part) -> Iterator[SourcePair]:
    """The rows of a part in order."""
    yield from _READERS[_format_of(part.url)](part)


def _files(url: str) -> list[str]:
    return expand([url], "pairs.url", tuple(f".{ending}" for ending in FORMATS))


def _format_of(url: str) -> str:
    ending = PurePosixPath(without_query(url)).suffix.lower().lstrip(".")
    if ending not in FORMATS:
        raise ConfigError(f"pairs.url: {shown(url)} must end in .jsonl or .parquet")
    return ending


def _count_lines(url: str, rows: int) -> tuple[int, list[int]]:
    """Count the rows of a jsonl file and find the byte offset of each part. Raises ConfigError if
    the first row is not a pair.
    """
    count, offset, offsets = 0, 0, []
    with fsspec.open(url, "rb") as file:
        for line in file:
            if line.strip():
                if count == 0:
                    _require_pair(url, line)
                if count % rows == 0:
                    offsets.append(offset)
                count += 1
            offset += len(line)
    return count, offsets


def _require_pair(url: str, line: bytes) -> None:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"pairs.url: the first line of {url} is not JSON: {error}") from error
    missing = _missing(row)
    if missing:
        raise ConfigError(
            f"pairs.url: the first line of {url} has no text field {missing!r}; a pair has "
            f"{', '.join(FIELDS)}"
        )


def _missing(row: Any) -> str | None:
    if not isinstance(row, dict):
        return FIELDS[0]
    return next((name for name in FIELDS if not isinstance(row.get(name), str)), None)


def _count_rows(url: str, rows: int) -> tuple[int, Iterator[int]]:
    """Count the rows of a parquet file; offsets are 0. Raises ConfigError unless it has
    Pick-a-Pic's columns.
    """
    try:
        with fsspec.open(url, "rb") as file:
            table = pq.ParquetFile(file)
            names, count = table.schema_arrow.names, table.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"pairs.url: {url} cannot be read as parquet: {reason}") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ConfigError(
            f"pairs.url: {url} lacks Pick-a-Pic's columns {', '.join(missing)}; it has "
            f"{', '.join(names)}"
        )
    return count, itertools.repeat(0)


def _read_lines(part: Part) -> Iterator[SourcePair]:
    with fsspec.open(part.url, "rb") as file:
        file.seek(part.offset)
        lines = itertools.islice((line for line in file if line.strip()), part.rows)
        for place, line in enumerate(lines, part.first):
            yield _from_line(part, place, line)


def _from_line(part: Part, place: int, line: bytes) -> SourcePair:
    key, judge = _key(part, place), PurePosixPath(part.url).name
    try:
        row = json.loads(line)
    except ValueError as error:
        return SourcePair(key, judge, problem=f"not JSON: {error}")
    missing = _missing(row)
    if missing:
        return SourcePair(key, judge, problem=f"no text field {missing!r}")
    judge, prompt = str(row.get("judge") or judge), clean(row["prompt"])
    pictures = []
    for side in ("winner", "loser"):
        try:
            with fsspec.open(_beside(part.url, row[side]), "rb") as file:
                pictures.append(file.read())
        except (OSError, ValueError, ImportError) as error:
            problem = f"its {side} cannot be read: {' '.join(str(error).split())}"
            return SourcePair(key, judge, prompt, problem=problem)
    winner, loser = pictures
    return SourcePair(key, judge, prompt, winner, loser)


def _beside(url: str, path: str) -> str:
    """Location of a picture that a row names by URL, full path, or path relative to the file."""
    if "://" in path or path.startswith("/"):
        return path
    return posixpath.join(posixpath.dirname(url), path)


def _read_rows(part: Part) -> Iterator[SourcePair]:
    with fsspec.open(part.url, "rb") as file:
        table = pq.ParquetFile(file)
        groups, start, skip = [], 0, 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if start <= part.first < start + rows:
                skip = part.first - start
            if start < part.first + part.rows and start + rows > part.first:
                groups.append(group)
            start += rows
        batches = table.iter_batches(16, row_groups=groups, columns=list(COLUMNS))
        table_rows = (row for batch in batches for row in batch.to_pylist())
        for place, row in enumerate(
            itertools.islice(table_rows, skip, skip + part.rows), part.first
        ):
            yield _from_row(part, place, row)


def _from_row(part: Part, place: int, row: dict[str, Any]) -> SourcePair:
    key, judge = _key(part, place), PurePosixPath(part.url).name
    if not isinstance(row["caption"], str):
        return SourcePair(key, judge, problem="no caption")
    prompt = clean(row["caption"])
    labels = [row["label_0"], row["label_1"]]
    pictures = [_bytes_of(row["jpg_0"]), _bytes_of(row["jpg_1"])]
    for side, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        if not isinstance(label, (int, float)) or label != label:
            return SourcePair(key, judge, prompt, problem=f"no label_{side}")
        if not picture:
            return SourcePair(key, judge, prompt, problem=f"no jpg_{side}")
    winner = 0 if labels[0] >= labels[1] else 1
    loser = 1 - winner
    return SourcePair(
        key,
        judge,
        prompt,
        pictures[winner],
        pictures[loser],
        float(labels[winner]),
        float(labels[loser]),
        tie=labels[0] == labels[1],
    )


def _bytes_of(cell: Any) -> bytes:
    """Bytes of a picture, stored plainly or wrapped as `datasets` does."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) else b""


def _key(part: Part, place: int) -> str:
    return f"{part.number:04d}-{place:08d}"


_COUNTERS = {"jsonl": _count_lines, "parquet": _count_rows}
_READERS = {"jsonl": _read_lines, "parquet": _read_rows}
