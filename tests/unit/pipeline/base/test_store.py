"""The store: one commit, no overwriting, damage named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.base.checking import damaged
from pipeline.base.on_disk import PARTIAL
from pipeline.base.storage_errors import explained
from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError, ConfigError, ServiceUnavailable
from schemas.manifest import Manifest
from tests.support.manifests import manifest_of


def test_store_without_a_driver(refused):
    code, text = refused("plan", store="nosuch://bucket")
    assert code == 2, text
    assert "store: 'nosuch://bucket' cannot be opened" in text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:/bucket/x", "two slashes"),
        ("gs:bucket", "two slashes"),
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
    ],
)
def test_a_url_that_is_cut_short_is_no_folder_and_no_bucket(url, words):
    """Bug: make a folder named `s3:`, or write into a bucket named `artifacts`."""
    with pytest.raises(ConfigError, match=words):
        ArtifactStore(url).read("artifacts/x")


def test_a_folder_with_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ArtifactStore("./a:b").write("x", b"1")
    assert (tmp_path / "a:b" / "x").read_bytes() == b"1"


def manifest(key="abc", files=None, seconds=1.0) -> Manifest:
    return manifest_of("prompts", files, key=key, seconds=seconds)


def test_commit_and_find(store):
    assert store.find("prompts", "abc") is None
    store.commit(manifest())
    assert store.find("prompts", "abc").manifest == manifest()


def test_first_commit_wins_and_is_never_overwritten(store):
    store.commit(manifest(seconds=1.0))
    assert store.commit(manifest(seconds=2.0)).manifest.seconds == 1.0


def test_put_reports_size_and_digest_and_list_shows_it(store, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(b"content")
    assert store.put(local, "x/y.bin") == (7, hashlib.sha256(b"content").hexdigest())
    assert store.list("x") == {"y.bin": 7}
    assert store.read("x/y.bin") == b"content" and store.read("x/z.bin") is None


def test_what_a_killed_process_left_half_written_is_not_listed(tmp_path):
    store = ArtifactStore(str(tmp_path))
    store.write("a/b/lora/adapters.safetensors", b"whole")
    whole = tmp_path / "a/b/lora/adapters.safetensors"
    Path(f"{whole}.0123456789ab{PARTIAL}").write_bytes(b"who")
    assert store.list("a/b/lora") == {"adapters.safetensors": 5}


def test_a_copy_has_the_same_bytes(store):
    store.write("a/b/x", b"content")
    store.copy("a/b/x", "c/d/e/y")
    assert store.read("c/d/e/y") == b"content" == store.read("a/b/x")


def test_verify_names_what_is_wrong(store):
    files = dict.fromkeys("abcd", (4, hashlib.sha256(b"good").hexdigest()))
    for name, content in (("a", b"good"), ("b", b"evil"), ("c", b"short!")):
        store.write(f"artifacts/prompts/abc/{name}", content)
    artifact = store.commit(manifest(files=files))
    wrong = [damage.text for damage in damaged(artifact, deep=True)]
    assert [text.split("/")[-1].split(" ")[0] for text in wrong] == ["b", "c", "d"]
    with (
        pytest.raises(ArtifactError, match="b is damaged: its sha256"),
        artifact.checked(artifact.entry("b")),
    ):
        pass
    with (
        pytest.raises(ArtifactError, match="d is missing; run `ladd-pipeline run --force prompts`"),
        artifact.checked(artifact.entry("d")),
    ):
        pass
    with pytest.raises(ArtifactError, match="lists no e; run `ladd-pipeline run --force prompts`"):
        artifact.entry("e")


def test_remove_takes_the_manifest_first(store):
    store.write("artifacts/prompts/abc/data", b"x")
    store.commit(manifest())
    store.remove("artifacts/prompts/abc")
    assert store.find("prompts", "abc") is None and store.list("artifacts/prompts/abc") == {}


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ConnectionResetError("reset"), ServiceUnavailable),
        (TimeoutError("slow"), ServiceUnavailable),
        (OSError(16, "SlowDown"), ServiceUnavailable),
        (OSError(28, "No space left on device"), ArtifactError),
        (PermissionError("denied"), ArtifactError),
    ],
)
def test_only_what_may_pass_is_worth_another_try(store, raised, kind):
    with pytest.raises(ArtifactError) as failure, explained(store.url, "write", "a.bin"):
        raise raised
    assert type(failure.value) is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("EndpointConnectionError", ServiceUnavailable),
        ("ReadTimeoutError", ServiceUnavailable),
        ("NoCredentialsError", ArtifactError),
    ],
)
def test_what_botocore_raises_is_told_apart(store, name, kind):
    import botocore.exceptions

    error = getattr(botocore.exceptions, name)(endpoint_url="http://store")
    with pytest.raises(ArtifactError) as failure, explained(store.url, "write", "a.bin"):
        raise error
    assert type(failure.value) is kind
