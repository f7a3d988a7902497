"""A store in a folder, and one in memory."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"memory://{tmp_path.name}")
