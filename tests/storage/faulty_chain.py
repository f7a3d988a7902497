"""The whole graph on a real object store behind a proxy that spoils one request in twenty.

`make proofs-storage` runs it; `make test` has a short form, test_faults.py.
"""

from __future__ import annotations

import json

import pytest
import s3fs

from pipeline.base.store import ArtifactStore
from tests.support import chaos
from tests.support.command import call
from tests.support.fault_proxy import KINDS, fault_proxy

pytestmark = pytest.mark.timeout(7200)


def test_the_whole_chain_completes_behind_faults(
    bucket, endpoint, smoke_store, monkeypatch, capsys
):
    arguments = ["--preset", "shapes-smoke", "--set", f"store={bucket}"]
    with fault_proxy(endpoint, 0.05, seed=1, stall_seconds=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        result = call("run", *arguments)
        assert result.returncode == 0, result.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    checked = call("artifacts", "verify", "--deep", *arguments)
    assert checked.returncode == 0, checked.stderr
    store = ArtifactStore(bucket)
    assert chaos.made(store) == chaos.made(ArtifactStore(str(smoke_store)))
    (record,) = [name for name in store.list("runs") if name.endswith("run.json")]
    stages = json.loads(store.read(f"runs/{record}"))["stages"]
    retries = {row["stage"]: row["retries"] for row in stages}
    with capsys.disabled():
        print(f"\n{proxy.requests} requests, faults {dict(proxy.faults)}, retries {retries}")
    assert set(proxy.faults) == set(KINDS)
    assert 0 < sum(retries.values()) <= sum(proxy.faults.values())
