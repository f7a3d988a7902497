"""Preference pairs from files: Pick-a-Pic's parquet columns, or a jsonl of prompts and pictures.

A file is cut into parts of at most N rows, which are read independently. A row that cannot be used
is returned with the reason; a file that cannot be used raises ConfigError.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from pipeline.base.addresses import expand, opened, shown, without_query
from schemas.errors import ConfigError, LaddError, text_of
from stages.texts.identity import clean

if TYPE_CHECKING:
    import pyarrow as pa

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
    """Raise ConfigError if no file matches `url`, a file's format is unknown, or the first file is
    of parquet without the columns of pairs.
    """
    first, *others = _files(url)
    for file in others:
        _format_of(file)
    if _format_of(first) == "parquet":
        _count_rows(first, 1)


def parts_of(url: str, rows: int) -> list[Part]:
    """Cut a file, or all files that a glob matches, into parts of at most `rows` rows.

    Raises ConfigError if a file is missing, empty or malformed.
    """
    parts = []
    for number, file in enumerate(_files(url)):
        count, offsets = _COUNTERS[_format_of(file)](file, rows)
        if count == 0:
            raise ConfigError(f"pairs.url: {shown(file)} holds no pairs")
        for first, offset in zip(range(0, count, rows), offsets, strict=False):
            parts.append(Part(file, first, min(rows, count - first), offset, number))
    return parts


def read_part(part: Part) -> Iterator[SourcePair]:
    """The rows of a part in order."""
    yield from _READERS[_format_of(part.url)](part)


def _files(url: str) -> list[str]:
    return expand([url], "pairs.url", tuple(f".{ending}" for ending in FORMATS))


@contextmanager
def _reading(url: str) -> Iterator[IO[bytes]]:
    """Open a file of pairs. Raises LaddError, naming the file, for whatever file systems, networks
    and pyarrow raise.
    """
    try:
        with opened(url, "pairs.url") as file:
            yield file
    except LaddError:
        raise
    except Exception as error:
        raise ConfigError(
            f"pairs.url: {shown(url)} is damaged, or cannot be read: {text_of(error)}"
        ) from error


def _format_of(url: str) -> str:
    ending = PurePosixPath(without_query(url)).suffix.lower().lstrip(".")
    if ending not in FORMATS:
        raise ConfigError(f"pairs.url: {shown(url)} must end in .jsonl or .parquet")
    return ending


def _count_lines(url: str, rows: int) -> tuple[int, list[int]]:
    """Count the rows of a jsonl file and find the byte offset of each part. Raises ConfigError,
    naming what is wrong with the first row, if no row is a pair.
    """
    count, offset, offsets = 0, 0, []
    problem: str | None = None
    has_pair = False
    with _reading(url) as file:
        for line in file:
            if line.strip():
                if not has_pair:
                    wrong = _problem(line)
                    has_pair, problem = wrong is None, problem or wrong
                if count % rows == 0:
                    offsets.append(offset)
                count += 1
            offset += len(line)
    if count and not has_pair:
        raise ConfigError(
            f"pairs.url: the first line of {shown(url)} {problem}, and no other is a pair either; "
            f"a pair has the text fields {', '.join(FIELDS)}"
        )
    return count, offsets


def _problem(line: bytes) -> str | None:
    """Say why a line is not a pair; None if it is."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    missing = _missing(row)
    return f"has no text field {missing!r}" if missing else None


def _missing(row: Any) -> str | None:
    if not isinstance(row, dict):
        return FIELDS[0]
    return next((name for name in FIELDS if not _is_text(row.get(name))), None)


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be stored: JSON can spell halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _count_rows(url: str, rows: int) -> tuple[int, Iterator[int]]:
    """Count the rows of a parquet file; offsets are 0. Raises ConfigError unless it has
    Pick-a-Pic's columns.
    """
    import pyarrow.parquet as pq

    with _reading(url) as file:
        table = pq.ParquetFile(file)
        names, count = table.schema_arrow.names, table.metadata.num_rows
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ConfigError(
            f"pairs.url: {shown(url)} lacks Pick-a-Pic's columns {', '.join(missing)}; it has "
            f"{', '.join(names)}"
        )
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise ConfigError(f"pairs.url: {shown(url)} has the column {twice[0]} twice")
    return count, itertools.repeat(0)


def _read_lines(part: Part) -> Iterator[SourcePair]:
    with _reading(part.url) as file:
        file.seek(part.offset)
        lines = itertools.islice((line for line in file if line.strip()), part.rows)
        for place, line in enumerate(lines, part.first):
            yield _from_line(part, place, line)


def _from_line(part: Part, place: int, line: bytes) -> SourcePair:
    key, judge = _key(part, place), PurePosixPath(part.url).name
    problem = _problem(line)
    if problem:
        return SourcePair(key, judge, problem=f"its line {problem}")
    row = json.loads(line)
    judge = clean(str(row.get("judge") or "")) or judge
    prompt = clean(row["prompt"])
    pictures = []
    for side in ("winner", "loser"):
        try:
            pictures.append(_content_of(_beside(part.url, row[side])))
        except OSError as error:
            return SourcePair(key, judge, prompt, problem=f"its {side} cannot be read: {error}")
    winner, loser = pictures
    return SourcePair(key, judge, prompt, winner, loser)


def _content_of(url: str) -> bytes:
    """Return a file's bytes. Raises OSError, whatever its file system raises."""
    import fsspec  # not at the top: `plan` does without it

    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except Exception as error:
        raise OSError(text_of(error)) from error


def _beside(url: str, path: str) -> str:
    """Location of a picture that a row names by URL, full path, or path relative to the file."""
    if "://" in path or path.startswith("/"):
        return path
    return posixpath.join(posixpath.dirname(url), path)


def _read_rows(part: Part) -> Iterator[SourcePair]:
    import pyarrow.parquet as pq

    with _reading(part.url) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        groups, start, skip = [], 0, 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if start <= part.first < start + rows:
                skip = part.first - start
            if start < part.first + part.rows and start + rows > part.first:
                groups.append(group)
            start += rows
        batches = table.iter_batches(16, row_groups=groups, columns=list(COLUMNS))
        table_rows = (row for batch in batches for row in _rows_of(batch))
        for place, row in enumerate(
            itertools.islice(table_rows, skip, skip + part.rows), part.first
        ):
            yield _from_row(part, place, row)


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch; one whose text is not UTF-8 has the problem in place of a caption."""
    for place in range(batch.num_rows):
        try:
            yield batch.slice(place, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield dict.fromkeys(COLUMNS) | {"caption": error}


def _from_row(part: Part, place: int, row: dict[str, Any]) -> SourcePair:
    key, judge = _key(part, place), PurePosixPath(part.url).name
    if isinstance(row["caption"], UnicodeDecodeError):
        return SourcePair(key, judge, problem=f"its text is not UTF-8: {row['caption']}")
    if not isinstance(row["caption"], str):
        return SourcePair(key, judge, problem="no caption")
    prompt = clean(row["caption"])
    labels = [row["label_0"], row["label_1"]]
    pictures = [_bytes_of(row["jpg_0"]), _bytes_of(row["jpg_1"])]
    for side, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        if not isinstance(label, (int, float)) or label != label:
            return SourcePair(key, judge, prompt, problem=f"no label_{side}")
        if not picture:
            cell = row[f"jpg_{side}"]
            path = cell.get("path") if isinstance(cell, dict) else None
            elsewhere = f": only the path {path!r}, not its bytes" if path else ""
            return SourcePair(key, judge, prompt, problem=f"no jpg_{side}{elsewhere}")
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
