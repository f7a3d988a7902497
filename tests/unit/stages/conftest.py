"""Artifacts that tests of several stages read: prompts to latents, and pairs."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from stages import encode, prompts, synthesize
from tests.support.context import commit, make_context
from tests.support.pairs import made_pairs, made_prompts, pairs_config, put_stand_ins
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.without_ray import map_in_this_process


@pytest.fixture
def stand_ins(monkeypatch):
    put_stand_ins(monkeypatch)


@pytest.fixture(scope="session")
def drawn(tiny_sd3, tmp_path_factory):
    """Pairs drawn by the tiny teacher: configuration, prompts and pairs."""
    config = pairs_config(tiny_sd3, tmp_path_factory.mktemp("pairs") / "store")
    planned = made_prompts(config)
    with pytest.MonkeyPatch.context() as patch:
        put_stand_ins(patch)
        return config, planned, made_pairs(config, planned)


@pytest.fixture
def chain(tiny_sd3, tmp_path, monkeypatch):
    """Runs prompts, synthesize and encode in this process; gives the config and the artifacts."""
    map_in_this_process(monkeypatch)

    def run(**sections):
        config = make_tiny_config(tiny_sd3, tmp_path / "store", **sections)
        store, artifacts = ArtifactStore(config.store), {}
        for name, module in (("prompts", prompts), ("synthesize", synthesize), ("encode", encode)):
            context = make_context(name, config, store, artifacts.values())
            artifacts[name] = commit(context, module.run(context))
        return config, artifacts

    return run
