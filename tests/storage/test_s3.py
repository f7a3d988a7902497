"""The store on a real S3 server on loopback."""

from __future__ import annotations

import os

import pytest

from pipeline.base.lease import held
from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError, ServiceUnavailable
from tests.support.limits import limits
from tests.support.s3_servers import KEYS

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


@pytest.mark.parametrize("prefix", ["my run+1/é ü=%20#x", "a [b]*?", "50%/a&b;c", "日本 語"])
def test_odd_letters_in_a_prefix(bucket, prefix):
    """Bug: read and remove through calls that take `[` or `*` for a pattern."""
    store, beside = ArtifactStore(f"{bucket}/{prefix}"), ArtifactStore(f"{bucket}/a xb")
    beside.write("a/b", b"beside")
    assert limits(store) == []
    assert store.create("a/b", b"one") and not store.create("a/b", b"two")
    store.write("a/c", b"2")
    assert store.read_all(["a/b", "a/c", "a/none"]) == {"a/b": b"one", "a/c": b"2"}
    assert store.list("a") == {"b": 3, "c": 1}
    store.copy("a/b", "d/e")
    store.remove("a")
    assert store.list("a") == {} and store.read("d/e") == b"one"
    assert beside.read("a/b") == b"beside"


def test_keys_and_endpoint_that_fsspec_alone_knows(bucket, endpoint, monkeypatch):
    import s3fs
    from fsspec.config import conf

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ArtifactError, match="no credentials were found for it; set them in"):
        ArtifactStore(bucket).write("a", b"1")
    s3fs.S3FileSystem.clear_instance_cache()
    key, secret = KEYS["writer"]
    known = {"key": key, "secret": secret, "endpoint_url": endpoint}
    monkeypatch.setitem(conf, "s3", known)
    store = ArtifactStore(bucket)
    assert store.create("a", b"1") and store.read("a") == b"1"


def test_an_endpoint_where_nobody_answers_may_answer_later(bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ServiceUnavailable, match="check endpoint and network"):
        limits(ArtifactStore(bucket))


def test_a_lease_is_held_and_given_back(bucket):
    store = ArtifactStore(bucket)
    with held(store, "training/distill/k", "distill") as lease:
        lease.check()
        assert "lease.json" in store.list("training/distill/k")
    assert store.list("training/distill/k") == {}
