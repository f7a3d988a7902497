"""Tables on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError


def print_table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def print_records(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print a table of rows that may lack some columns; also write them as JSON to `out`."""
    columns = list({name: None for row in rows for name in row})
    print_table(columns, [[str(row.get(name, "")) for name in columns] for row in rows])
    if out is not None:
        write_json(rows, out)


def write_json(content: Any, out: Path) -> None:
    """Write what `--out` asks for. Raises ConfigError if it cannot be written."""
    try:
        out.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {error.strerror}; name another file, and run the same "
            "command again: what it made is in the store"
        ) from error


def counts_text(counts: dict[str, int]) -> str:
    """Return `1,430 ok, 12 near tie`: the counts above zero, without those of single buckets."""
    shown = [(name, n) for name, n in counts.items() if n and not name.startswith("bucket_")]
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in shown)
