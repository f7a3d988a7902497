"""Where prompts come from: the shapes grammar, and files (`prompt_files.py`) at any addresses.

Every source is an iterator; no file is held in memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from pipeline.base.addresses import expand, shown
from schemas.config import FileSource, PipelineConfig, Source
from schemas.errors import ConfigError
from stages.shapes_world.captions import phrase, sample_spec
from stages.texts.identity import clean
from stages.texts.prompt_files import ENDINGS, Fields, Row, format_of, rows_of

SOURCES = Fields("prompts.sources", "prompts.sources.column")
EVAL = Fields("eval.url", "eval.column")
_FILES_LOOKED_AT = 16
_ROWS_LOOKED_AT = 100


def mixed(sources: list[Source], seed: int) -> Iterator[Row]:
    """Yield rows, drawn by weight from the sources until every one is exhausted."""
    open_sources = [(read_source(source, seed), source.weight) for source in sources]
    rng = random.Random(f"mix/{seed}")
    while open_sources:
        chosen = (
            rng.choices(open_sources, [weight for _, weight in open_sources])[0]
            if len(open_sources) > 1
            else open_sources[0]
        )
        try:
            yield next(chosen[0])
        except StopIteration:
            open_sources.remove(chosen)


def read_source(source: Source, seed: int) -> Iterator[Row]:
    if isinstance(source, FileSource):
        return read_rows(source)
    captions = enumerate(read_grammar(seed), 1)
    return (Row(clean(text), None, "grammar", f"caption {i}") for i, text in captions)


def read_grammar(seed: int) -> Iterator[str]:
    """Yield captions of the shapes world endlessly; caption i depends only on seed and i."""
    index = 0
    while True:
        rng = random.Random(f"grammar/{seed}/{index}")
        yield phrase(sample_spec(rng), rng)
        index += 1


def evaluated(config: PipelineConfig) -> FileSource | None:
    """Return the files that the evaluation takes its prompts from; None for the held-out ones."""
    if config.eval.url is None:
        return None
    return FileSource(kind="file", url=config.eval.url, column=config.eval.column)


def files_of(source: FileSource, fields: Fields = SOURCES) -> list[str]:
    """Return the addresses of a source's files. Raises ConfigError, naming the field, if there is
    none or one has an unknown format.
    """
    patterns = [source.url] if isinstance(source.url, str) else source.url
    files = expand(patterns, fields.url, ENDINGS)
    for file in files:
        format_of(file, fields)
    return files


def require_prompts(source: FileSource, fields: Fields = SOURCES) -> None:
    """Raise ConfigError if a file is missing, has no such column, or if none of its first rows is a
    prompt. Looks at the first 16 files.
    """
    for file in files_of(source, fields)[:_FILES_LOOKED_AT]:
        rows = list(islice(rows_of(file, source.column, fields), _ROWS_LOOKED_AT))
        if not rows:
            raise ConfigError(f"{fields.url}: {shown(file)} holds no prompts")
        if all(row.prompt is None for row in rows):
            field = fields.column if (rows[0].reason or "").startswith("no field") else fields.url
            raise ConfigError(
                f"{field}: {shown(file)} holds no prompts in its first {len(rows)} rows; "
                f"{rows[0].place} is {rows[0].reason}"
            )


def read_rows(source: FileSource, fields: Fields = SOURCES) -> Iterator[Row]:
    """Yield the rows of a source's files in order, those that are no prompts with the reason.

    Raises a LaddError naming the file that cannot be read, or that holds no rows.
    """
    for file in files_of(source, fields):
        count = 0
        for row in rows_of(file, source.column, fields):
            count += 1
            yield row
        if count == 0:
            raise ConfigError(f"{fields.url}: {shown(file)} holds no prompts")


def read_file(source: FileSource, fields: Fields = SOURCES) -> Iterator[str]:
    """Yield the prompts of a source's files in order, without the rows that are none."""
    return (row.prompt for row in read_rows(source, fields) if row.prompt is not None)
