"""The store on a real S3 server on loopback."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError

pytestmark = pytest.mark.slow


def test_store_on_s3(bucket):
    store = ArtifactStore(bucket)
    assert store.create("a/manifest.json", b"one") is True
    assert store.create("a/manifest.json", b"two") is False
    assert store.read("a/manifest.json") == b"one"
    store.write("a/data.bin", b"12345")
    assert store.list("a") == {"manifest.json": 3, "data.bin": 5}
    with store.local("a/data.bin") as path:
        assert path.read_bytes() == b"12345"
    store.remove("a")
    assert store.list("a") == {}


def test_missing_bucket_is_named(bucket):
    with pytest.raises(ArtifactError, match="store s3://no-such-bucket-here/x: cannot write"):
        ArtifactStore("s3://no-such-bucket-here/x").write("a", b"b")
