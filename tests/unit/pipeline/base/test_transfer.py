"""Copies of artifacts: what a stopped copy or a run left in the target is not taken for granted."""

from __future__ import annotations

import hashlib

import pytest

from pipeline.base import lease
from pipeline.base.claims import claims_folder, run_folder
from pipeline.base.lease import held
from pipeline.base.store import ArtifactStore
from pipeline.base.transfer import Parcel, send
from schemas.errors import ArtifactError, Locked
from tests.support.manifests import manifest_of

FILES = {"latents/0.npy": b"of this making", "latents/1.npy": b"another of it!"}
KEY = "0123456789abcdef"


@pytest.fixture
def parcel(tmp_path):
    source = ArtifactStore(str(tmp_path / "source"))
    for name, content in FILES.items():
        source.write(f"artifacts/encode/{KEY}/{name}", content)
    listed = {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in FILES.items()}
    return Parcel.of(source.commit(manifest_of("encode", listed, key=KEY)), (), light=False)


def test_a_file_of_the_right_size_may_be_of_another_making(parcel, tmp_path):
    """Bug: trust the size, and commit a manifest over the other bytes of a run that was stopped."""
    target = ArtifactStore(str(tmp_path / "target"))
    target.write(f"artifacts/encode/{KEY}/latents/0.npy", b"other contents")
    target.write(f"artifacts/encode/{KEY}/latents/1.npy", FILES["latents/1.npy"])
    assert send(parcel, target, lambda: None) == len(FILES["latents/0.npy"])
    for name, content in FILES.items():
        assert target.read(f"artifacts/encode/{KEY}/{name}") == content
    assert send(parcel, target, lambda: None) == 0


def test_nothing_is_copied_where_a_run_makes_the_same(parcel, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    target = ArtifactStore(str(tmp_path / "target"))
    run = run_folder(claims_folder("encode", KEY), "0a")
    with held(target, run, "encode"), pytest.raises(Locked, match="a run is at work on it"):
        send(parcel, target, lambda: None)
    assert not target.all_files("artifacts")
    send(parcel, target, lambda: None)
    assert not target.all_files("claims")


def test_another_making_that_is_committed_stays(parcel, tmp_path):
    target = ArtifactStore(str(tmp_path / "target"))
    target.commit(manifest_of("encode", key=KEY))
    with pytest.raises(ArtifactError):
        send(parcel, target, lambda: None)
    assert not target.all_files(f"artifacts/encode/{KEY}/latents")
