"""A store, and a configuration that keeps its artifacts there."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.commands.opening import open_config


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def config(store):
    return open_config(preset="shapes", settings=[f"store={store.url}"], environment={})
