"""Manifests of artifacts that no engine has made, for tests of what reads them."""

from __future__ import annotations

from typing import Any

from schemas.manifest import Environment, FileEntry, Manifest


def manifest_of(
    stage: str, files: dict[str, tuple[int, str]] | None = None, *, key: str = "k", **fields: Any
) -> Manifest:
    """A manifest of files as `StageResult.files` has them; `fields` set what else matters."""
    plain: dict[str, Any] = {
        "version": 1,
        "inputs": [],
        "identity": {},
        "config": {},
        "environment": Environment(python="3", packages={}),
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
    }
    entries = [
        FileEntry(path=path, size=size, sha256=digest)
        for path, (size, digest) in sorted((files or {}).items())
    ]
    return Manifest(stage=stage, key=key, files=entries, **(plain | fields))
