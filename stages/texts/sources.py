"""Where prompts come from: the shapes grammar, and text, jsonl, csv or parquet files on any fsspec
URL.

Every source is an iterator; no file is held in memory.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import FileSource, GrammarSource, Source
from schemas.errors import ConfigError
from stages.shapes_world.captions import phrase, sample_spec

FORMATS = ("txt", "jsonl", "csv", "parquet")


def mixed(sources: list[Source], seed: int) -> Iterator[tuple[str, str]]:
    """Yield prompts with their source's name, drawn by weight until every source is exhausted."""
    open_sources = [(source_name(s), read_source(s, seed), s.weight) for s in sources]
    rng = random.Random(f"mix/{seed}")
    while open_sources:
        chosen = (
            rng.choices(open_sources, [weight for _, _, weight in open_sources])[0]
            if len(open_sources) > 1
            else open_sources[0]
        )
        name, iterator, _ = chosen
        try:
            yield next(iterator), name
        except StopIteration:
            open_sources.remove(chosen)


def source_name(source: Source) -> str:
    return "grammar" if isinstance(source, GrammarSource) else PurePosixPath(source.url).name


def read_source(source: Source, seed: int) -> Iterator[str]:
    if isinstance(source, FileSource):
        return read_file(source)
    return read_grammar(seed)


def read_grammar(seed: int) -> Iterator[str]:
    """Yield captions of the shapes world endlessly; caption i depends only on seed and i."""
    index = 0
    while True:
        rng = random.Random(f"grammar/{seed}/{index}")
        yield phrase(sample_spec(rng), rng)
        index += 1


def require_prompt_file(source: FileSource) -> None:
    """Raise ConfigError if the file is missing or its format is unknown."""
    _format_of(source)
    try:
        filesystem, path = fsspec.core.url_to_fs(source.url)
        exists = filesystem.isfile(path)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"prompts.sources: {source.url} cannot be opened: {error}") from error
    if not exists:
        raise ConfigError(f"prompts.sources: there is no file {source.url}")


def read_file(source: FileSource) -> Iterator[str]:
    """Yield the file's prompts in order. Raises ConfigError naming the file and the place that
    cannot be read.
    """
    count = 0
    with fsspec.open(source.url, "rb") as file:
        try:
            for prompt in _READERS[_format_of(source)](file, source):
                count += 1
                yield prompt
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"prompts.sources: {source.url} is not UTF-8 (after {count} prompts: "
                f"{error.reason}); convert it, for "
                "example with iconv"
            ) from error
        except (pa.ArrowInvalid, csv.Error, OSError) as error:
            raise ConfigError(
                f"prompts.sources: {source.url} cannot be read as {_format_of(source)}: {error}"
            ) from error
    if count == 0:
        raise ConfigError(f"prompts.sources: {source.url} holds no prompts")


def _format_of(source: FileSource) -> str:
    ending = PurePosixPath(source.url).suffix.lower().lstrip(".")
    if ending not in FORMATS:
        raise ConfigError(
            f"prompts.sources: {source.url} must end in one of "
            f"{', '.join('.' + f for f in FORMATS)}"
        )
    return ending


def _txt(file: Any, source: FileSource) -> Iterator[str]:
    for line in io.TextIOWrapper(file, "utf-8-sig"):
        if line.strip():
            yield line


def _jsonl(file: Any, source: FileSource) -> Iterator[str]:
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"prompts.sources: {source.url} line {number} is not JSON: {error}"
            ) from error
        yield _field(row, source, f"line {number}")


def _csv(file: Any, source: FileSource) -> Iterator[str]:
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    for row in reader:
        yield _field(row, source, f"line {reader.line_num}")


def _parquet(file: Any, source: FileSource) -> Iterator[str]:
    table = pq.ParquetFile(file)
    if source.column not in table.schema_arrow.names:
        raise ConfigError(
            f"prompts.sources: {source.url} has no column {source.column!r}; it has "
            f"{table.schema_arrow.names}"
        )
    kind = table.schema_arrow.field(source.column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ConfigError(
            f"prompts.sources: {source.url}: column {source.column!r} holds {kind}, not text; set "
            "`column`"
        )
    for batch in table.iter_batches(8192, columns=[source.column]):
        for value in batch.column(0).to_pylist():
            yield value or ""


def _field(row: Any, source: FileSource, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(source.column), str):
        raise ConfigError(
            f"prompts.sources: {source.url} {where} has no text field {source.column!r}; set "
            "`column`"
        )
    return row[source.column]


_READERS = {"txt": _txt, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
