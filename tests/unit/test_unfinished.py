"""What an unfinished stage left is gone on with only where its inputs are still the same."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.stage_task import _begin
from tests.manifests import manifest_of

HALF = ("artifacts/synthesize/k/shards/64x64/000000.tar", "training/synthesize/k/checkpoint")


@pytest.mark.parametrize("changed", [False, True])
def test_shards_of_other_prompts_are_thrown_away(tmp_path, changed):
    """Bug: after `--force prompts` with an edited file, half the pictures show the old prompts."""

    def prompts(name: str, digest: str):
        store = ArtifactStore(str(tmp_path / name))
        return store.commit(manifest_of("prompts", {"train.parquet": (1, digest)}))

    store = ArtifactStore(str(tmp_path / "store"))
    _begin(store, "synthesize", "k", {"prompts": prompts("before", "a" * 64)})
    for name in HALF:
        store.write(name, b"made")
    _begin(store, "synthesize", "k", {"prompts": prompts("after", ("b" if changed else "a") * 64)})
    assert [store.read(name) is None for name in HALF] == [changed, changed]
