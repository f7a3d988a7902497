"""A store behind a network that drops, delays and spoils requests."""

from __future__ import annotations

import pytest
import s3fs

from pipeline.base import retries
from pipeline.base.claims import Crew
from pipeline.base.markers import finished_shards
from pipeline.base.store import ArtifactStore
from tests.support.context import ignore
from tests.support.fault_proxy import fault_proxy
from tests.support.manifests import manifest_of
from tests.support.shards import make_shard, shard_names

pytestmark = pytest.mark.slow

FOLDER, NAMES = "artifacts/synthesize/k", shard_names(6)


def test_what_was_made_through_faults_is_whole_and_they_are_counted(bucket, endpoint, monkeypatch):
    """Bug: take the answer to a repeated create, whose first answer was lost, for another run's."""
    with fault_proxy(endpoint, 0.2, seed=3, stall_seconds=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        s3fs.S3FileSystem.clear_instance_cache()
        before, store = retries.total(), ArtifactStore(bucket)
        with Crew(store, "synthesize", "k", "share", ignore) as crew:
            claims = crew.join()
            for name in NAMES:
                assert claims.take(name)
                make_shard(store, FOLDER, name)
                claims.give_back(name)
            crew.finish()
            assert sorted(finished_shards(store, FOLDER)) == NAMES
            committed = store.commit(manifest_of("synthesize"))
    spoilt = sum(proxy.faults.values())
    # aiohttp repeats some by itself on another connection, and a late answer is none to repeat.
    assert spoilt > 10 and 0 < retries.total() - before <= spoilt
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    direct = ArtifactStore(bucket)
    assert direct.find("synthesize", "k").digest == committed.digest
    assert direct.list("claims") == {}
    for name in NAMES:
        assert direct.read(f"{FOLDER}/{name}.tar") == name.encode()
