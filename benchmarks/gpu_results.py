"""What `gpu.py` writes after each case: JSON, and a Markdown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = ("batch", "first_seconds", "seconds", "per_second", "tflops_per_second")
COLUMNS += ("share_of_matrix_rate", "peak_gib", "predicted_gib")


def write(folder: Path, machine: Row, rows: dict[str, Row]) -> None:
    """Write both files, each in one step, so that a kill leaves whole ones."""
    facts = [f"- {name}: {value}" for name, value in machine.items()]
    heads = " | ".join(["case", *COLUMNS, "remarks"]).replace("_", " ")
    table = [f"| {heads} |", "|---" + "|---:" * len(COLUMNS) + "|---|"]
    table += [line(name, row) for name, row in rows.items()]
    pages = {
        "gpu.json": json.dumps({"machine": machine, "cases": rows}, indent=2),
        "gpu.md": "\n".join([*facts, "", *table]),
    }
    for name, text in pages.items():
        (folder / f"{name}.new").write_text(text + "\n")
        (folder / f"{name}.new").replace(folder / name)


def line(name: str, row: Row) -> str:
    """One row of the Markdown table."""
    cells = [format(row[column], ".4g") if column in row else "" for column in COLUMNS]
    remarks = [] if row["status"] == "done" else [row["status"]]
    remarks += [f"out of memory at batch {batch}" for batch in row.get("out_of_memory", ())]
    remarks += [row["remark"].replace("|", "/")] if "remark" in row else []
    return f"| {' | '.join([name, *cells, '; '.join(remarks)])} |"
