"""An unfinished stage goes on only where its inputs are still the same; what a manifest records."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.stage_task import _begin, environment
from tests.support.manifests import manifest_of


def test_a_manifest_needs_no_git(monkeypatch):
    """Bug: let the missing program end the stage when its work is done; images have no git."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment().git_commit is None
    assert environment().packages["torch"]


HALF = ("artifacts/synthesize/k/shards/64x64/000000.tar", "training/synthesize/k/checkpoint")


@pytest.mark.parametrize("changed", [False, True])
def test_shards_of_other_prompts_are_thrown_away(tmp_path, changed):
    """Bug: after `--force prompts` with an edited file, half the pictures show the old prompts."""

    def prompts(name: str, digest: str):
        store = ArtifactStore(str(tmp_path / name))
        return store.commit(manifest_of("prompts", {"train.parquet": (1, digest)}))

    warnings = []
    store = ArtifactStore(str(tmp_path / "store"))
    _begin(store, "synthesize", "k", {"prompts": prompts("before", "a" * 64)}, warnings.append)
    for name in HALF:
        store.write(name, b"made")
    _begin(
        store,
        "synthesize",
        "k",
        {"prompts": prompts("after", ("b" if changed else "a") * 64)},
        warnings.append,
    )
    assert [store.read(name) is None for name in HALF] == [changed, changed]
