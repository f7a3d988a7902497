"""Files of prompts, row by row: txt, tsv, csv, json, jsonl, ndjson and parquet, each also as .gz,
.zst or .bz2 (seen by the contents, not by the name).

A row that is no prompt costs that row: it is given with a reason. A file that cannot be read raises
a LaddError. No file is held in memory but a .json. docs/prompts.md has the rules for users.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from pipeline.base.addresses import opened, shown, without_query
from schemas.errors import ArtifactError, ConfigError
from stages.texts.identity import clean, kind_of, lack_of

FORMATS = ("txt", "tsv", "csv", "json", "jsonl", "ndjson", "parquet")
PACKED = ("gz", "zst", "bz2")
ENDINGS = tuple(f".{name}{end}" for name in FORMATS for end in ("", *(f".{p}" for p in PACKED)))
LONGEST_PROMPT = 10_000
"""Characters: longer ones are two files in one, or a page, or a mark that is not closed."""
LARGEST_UNPACKED, LARGEST_RATIO = 2**30, 1_000
"""A compressed file may hold this many bytes, and this many times what was read of it."""
_LONGEST_LINE = 2**26
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16"}
_MARKS |= {b"\xfe\xff": "utf-16"}
_NOT_DECODED = re.compile("[\udc80-\udcff]")


class Fields(NamedTuple):
    """What the configuration calls the address of a file, and its column."""

    url: str
    column: str


class Row(NamedTuple):
    """A row: its cleaned prompt, or why it is none."""

    prompt: str | None
    reason: str | None
    source: str
    """Name of the file."""
    place: str
    """Which row or line it is."""
    tag: str | None = None
    """Field `tag` of a JSON object, as GenEval has it."""


class _File(NamedTuple):
    """A file that is being read."""

    address: str
    column: str
    fields: Fields

    @property
    def name(self) -> str:
        return posixpath.basename(without_query(self.address))

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.fields.url}: {shown(self.address)} {text}")

    def without_column(self, names: list[str]) -> ConfigError:
        has = ", ".join(name if len(name) <= 40 else f"{name[:39]}…" for name in names[:20])
        return ConfigError(
            f"{self.fields.column}: {shown(self.address)} has no column {self.column!r}; it has "
            f"{has or 'none'}"
        )

    def row(self, value: Any, place: str, tag: Any = None) -> Row:
        """Return the row whose cell is `value`."""
        prompt, reason = _prompt_of(value)
        kept = tag if isinstance(tag, str) else None
        return Row(prompt, reason, self.name, place, kept)

    def lost(self, reason: str, place: str) -> Row:
        return Row(None, reason, self.name, place)


def format_of(address: str, fields: Fields) -> str:
    """Return a file's format by its name. Raises ConfigError for an unknown one."""
    *_, last = parts = posixpath.basename(without_query(address)).lower().split(".")
    ending = parts[-2] if last in PACKED and len(parts) > 2 else last
    if ending not in FORMATS or len(parts) < 2:
        raise ConfigError(
            f"{fields.url}: {shown(address)} must end in one of "
            f"{', '.join(f'.{name}' for name in FORMATS)}, and may then end in "
            f"{', '.join(f'.{name}' for name in PACKED)}"
        )
    return ending


def rows_of(address: str, column: str, fields: Fields) -> Iterator[Row]:
    """Yield a file's rows in order. Blank lines are no rows. Raises ConfigError if it is no such
    file or has no such column, ArtifactError if it is damaged.
    """
    file = _File(address, column, fields)
    kind = format_of(address, fields)
    with opened(address, fields.url) as packed, _unpacked(packed, file) as stream:
        yield from _READERS[kind](stream, file)


def _prompt_of(value: Any) -> tuple[str | None, str | None]:
    """Return the cleaned prompt that a cell holds, or None and why it is none."""
    if not isinstance(value, str):
        return None, f"not text: {kind_of(value)}"
    if len(value) > LONGEST_PROMPT:
        return None, f"too long: {len(value):,} characters"
    reason, prompt = None, clean(value)
    if _NOT_DECODED.search(value):
        reason = "not UTF-8: save the file as UTF-8, for example with iconv"
    elif "\ufffd" in value:
        reason = "not decoded: U+FFFD stands where a letter was lost"
    else:
        reason = lack_of(prompt)
    return (None, reason) if reason else (prompt, None)


@contextlib.contextmanager
def _unpacked(packed: IO[bytes], file: _File) -> Iterator[Any]:
    """Give the stream of what a file holds, compressed or not."""
    import pyarrow as pa

    stream = io.BufferedReader(packed, 1 << 16)  # type: ignore[type-var]
    start, counted = stream.peek(4), _Counted(stream)
    unpacked: Any
    if start.startswith(b"\x1f\x8b"):
        unpacked = gzip.GzipFile(fileobj=counted)
    elif start.startswith(b"\x28\xb5\x2f\xfd"):
        unpacked = pa.CompressedInputStream(pa.PythonFile(counted), "zstd")
    elif re.match(rb"BZh[1-9]1AY&SY", start):
        unpacked = bz2.BZ2File(counted)
    else:
        yield stream
        return

    def check(so_far: int) -> None:
        if so_far > LARGEST_UNPACKED + LARGEST_RATIO * counted.bytes:
            raise file.error(
                f"decompresses to more than {LARGEST_RATIO:,} times its size; decompress it "
                "yourself if that is right"
            )

    yield io.BufferedReader(_Counted(unpacked, check), 1 << 16)


class _Counted(io.RawIOBase):
    """A stream that counts the bytes that are read from another one; `check` is told of them."""

    def __init__(self, source: Any, check: Callable[[int], None] = lambda count: None) -> None:
        self._source, self._check = source, check
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._source.read(len(buffer))
        buffer[: len(content)] = content
        self.bytes += len(content)
        self._check(self.bytes)
        return len(content)


def _decoded(stream: Any, file: _File, newline: str | None = None) -> io.TextIOWrapper:
    """Decode a text: UTF-8, or what its byte order mark says. What is not UTF-8 is marked, and
    costs its rows.
    """
    stream = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    start = stream.peek(4096)[:4096]
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return io.TextIOWrapper(stream, encoding, "replace", newline)
    if start.count(0) * 8 > len(start):
        raise file.error("is no text in UTF-8: it holds zero bytes, as UTF-16 does; convert it")
    return io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline)


def _lines(text: io.TextIOWrapper, file: _File) -> Iterator[str]:
    number = 0
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise file.error(f"line {number} is longer than {_LONGEST_LINE:,} characters")
        yield line


def _txt(stream: Any, file: _File) -> Iterator[Row]:
    for number, line in enumerate(_lines(_decoded(stream, file), file), 1):
        if not line.isspace():
            yield file.row(line, f"line {number}")


def _csv(stream: Any, file: _File, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_LINE)
    lines = _lines(_decoded(stream, file, newline=""), file)
    header = next((line for line in lines if not line.isspace()), "")
    # A spreadsheet writes semicolons where the comma is in numbers.
    for mark in (delimiter, ";", "\t"):
        names = [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]
        if file.column in names:
            break
    else:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        raise file.without_column(names)
    if names.count(file.column) > 1:
        raise file.error(f"has {names.count(file.column)} columns {file.column!r}")
    at = names.index(file.column)
    reader, first = csv.reader(lines, delimiter=mark, strict=True), 1
    while True:
        place = f"line {first + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error) and reader.line_num > first:
                raise file.error(f"{place}: a quotation mark is not closed") from error
            yield file.lost(f"not {'tsv' if mark == chr(9) else 'csv'}: {error}", place)
            cells = []
        first = reader.line_num + 1
        if cells is None:
            return
        if any(cells[len(names) :]):
            yield file.lost(f"more cells than columns: {len(cells)} instead of {len(names)}", place)
        elif cells:
            yield file.row(cells[at] if at < len(cells) else None, place)


def _tsv(stream: Any, file: _File) -> Iterator[Row]:
    return _csv(stream, file, "\t")


def _jsonl(stream: Any, file: _File) -> Iterator[Row]:
    return _json_lines(_lines(_decoded(stream, file), file), file)


def _json_lines(lines: Iterator[str], file: _File) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield file.lost(f"not JSON: {error}", f"line {number}")
        else:
            yield _of_record(record, file, f"line {number}")


def _of_record(record: Any, file: _File, place: str) -> Row:
    if not isinstance(record, dict):
        return file.row(record, place)
    if file.column not in record:
        names = ", ".join(map(str, [*record][:20]))
        return file.lost(f"no field {file.column!r}: only {names or 'nothing'}", place)
    return file.row(record[file.column], place, record.get("tag"))


def _json(stream: Any, file: _File) -> Iterator[Row]:
    """A list of texts or objects, an object that holds one, or objects line by line."""
    text = _decoded(stream, file).read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        first, _, rest = text.lstrip().partition("\n")
        if not (rest.strip() and _is_json(first)):
            raise file.error(f"is not JSON: {error}") from error
        yield from _json_lines(iter(text.splitlines(keepends=True)), file)
        return
    for number, record in enumerate(_list_in(content, file), 1):
        yield _of_record(record, file, f"row {number}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _list_in(content: Any, file: _File) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        wanted = content.get(file.column, content.get(f"{file.column}s"))
        if isinstance(wanted, dict):  # as pandas writes a table: rows by number in each column
            return list(wanted.values())
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if isinstance(wanted, list):
            return wanted
        if len(lists) == 1:
            return next(iter(lists.values()))
        raise file.error(
            f"holds {len(lists)} lists, none of which is called {file.column!r}; it has "
            f"{', '.join(map(str, [*content][:20])) or 'no fields'}"
        )
    raise file.error(f"holds {kind_of(content)} instead of a list")


def _parquet(stream: Any, file: _File) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as scratch:
        if not _can_seek(stream):
            shutil.copyfileobj(stream, scratch)
            stream = scratch
        try:
            table = pq.ParquetFile(stream)
            schema = table.schema_arrow
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise file.error(
                f"cannot be read as parquet: {' '.join(str(error).split())}"
            ) from error
        if file.column not in schema.names:
            raise file.without_column(schema.names)
        kind = schema.field(file.column).type
        _require_text(kind, file)
        number = 0
        try:
            for batch in table.iter_batches(8192, columns=[file.column]):
                column = batch.column(0)
                if pa.types.is_dictionary(kind):
                    column = column.dictionary_decode()
                for value in column.cast(pa.large_binary()).to_pylist():
                    number += 1
                    text = None if value is None else value.decode("utf-8", "surrogateescape")
                    yield file.row(text, f"row {number}")
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{file.fields.url}: {shown(file.address)} is damaged after row {number} "
                f"({' '.join(str(error).split())[:200]}); copy it again"
            ) from error


def _can_seek(stream: Any) -> bool:
    """Whether a stream can be read anywhere: not what is unpacked, nor a page without length."""
    raw = getattr(stream, "raw", None)
    whole = isinstance(stream, io.BufferedReader) and stream.seekable()
    return whole and getattr(raw, "size", 0) is not None


def _require_text(kind: Any, file: _File) -> None:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        raise ConfigError(
            f"{file.fields.column}: {shown(file.address)}: column {file.column!r} holds {kind}, "
            "not text"
        )


_READERS = {
    "txt": _txt,
    "tsv": _tsv,
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "ndjson": _jsonl,
    "parquet": _parquet,
}
