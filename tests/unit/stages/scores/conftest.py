"""A tiny CLIP, and two sets of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.scores import save_clip


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features that differ in number, place and spread."""
    rng = np.random.default_rng(0)
    mix = np.eye(24) + 0.2 * rng.normal(size=(24, 24))
    return rng.normal(size=(300, 24)), rng.normal(size=(250, 24)) @ mix + 0.1


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))
