"""Samples of an artifact's shards."""

from __future__ import annotations

from pipeline.base.shards import read_tar


def samples_of(artifact):
    found = {}
    for entry in artifact.files("shards/", ".tar"):
        with artifact.checked(entry) as path:
            found |= dict(read_tar(path, "x"))
    return found
