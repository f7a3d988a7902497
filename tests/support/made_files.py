"""What two runs that make the same must have in common, byte by byte."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    """Of all that a stage has made, but for what holds times (TensorBoard's files, signals and what
    lists them, statistics, report, model card).
    """
    apart = (
        "tensorboard/",
        "signals.jsonl",
        "manifest.json",
        "config.yaml",
        "inputs.json",
        "report.",
    )
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if not name.startswith(apart)
        and not name.endswith("README.md")
        and not (name.startswith("shards/") and name.endswith(".json"))
    }
