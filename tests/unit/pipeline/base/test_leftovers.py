"""What killed processes leave in a bucket, and what it costs to find."""

from __future__ import annotations

import json

import pytest

from pipeline import probe
from pipeline.base import lease
from pipeline.base.leftovers import leftovers
from pipeline.base.store import ArtifactStore

KILLED = "probes/0123456789abcdef0123456789abcdef"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    return ArtifactStore(f"memory://{tmp_path.name}/store")


def test_a_killed_probe_is_left_over_and_a_live_one_is_not(bucket):
    """Bug: know nothing of `probes/`; what a killed `plan --probe` has drawn stays for ever."""
    holder = {"token": "t", "process": 1, "machine": "other boot", "space": "", "host": "h"}
    bucket.write(f"{KILLED}/lease.json", json.dumps(holder).encode())
    bucket.write(f"{KILLED}/artifacts/synthesize/k/shards/0.tar", b"drawn")
    with probe._scratch(bucket) as small:
        small.write("artifacts/synthesize/k/shards/0.tar", b"being drawn")
        (left,) = leftovers(bucket, 0, busy=())
        assert left.what == f"probe {KILLED}" and left.size > len(b"drawn")
        left.remove()
        assert len(small.list("artifacts")) == 1
    assert bucket.list("") == {}


def test_of_a_bucket_only_the_folders_of_doctor_are_listed(bucket, monkeypatch):
    """Bug: hold the names of all files of the store in memory."""
    bucket.write(".doctor-0123456789ab/few/0", b"1")
    bucket.write("artifacts/synthesize/k/shards/0.tar", b"made")
    listed, all_files = [], ArtifactStore.all_files
    monkeypatch.setattr(
        ArtifactStore, "all_files", lambda s, n: listed.append(n) or all_files(s, n)
    )
    (left,) = leftovers(bucket, 0, busy=())
    assert left.what == "half-written .doctor-0123456789ab/few/0"
    assert "" not in listed and "artifacts" not in listed
