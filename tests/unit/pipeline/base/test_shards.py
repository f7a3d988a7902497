"""Shards: the same bytes for the same samples, readable by others, damage named."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipeline.base.markers import finished_shards
from pipeline.base.shards import ShardWriter, read_tar, write_tar
from schemas.errors import ArtifactError

SAMPLES = [
    ("b", {"txt": b"two", "png": b"2"}),
    ("a", {"png": b"1", "txt": b"one", "latent.npy": b"n"}),
]


def test_same_samples_same_bytes(tmp_path):
    write_tar(tmp_path / "1.tar", SAMPLES)
    write_tar(tmp_path / "2.tar", SAMPLES[::-1])
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["a.latent.npy", "a.png", "a.txt", "b.png", "b.txt"]
    assert {(m.mtime, m.uid, m.gid) for m in members} == {(0, 0, 0)}


def test_stock_webdataset_groups_our_samples(tmp_path):
    write_tar(tmp_path / "1.tar", SAMPLES)
    read = list(webdataset.WebDataset(str(tmp_path / "1.tar"), shardshuffle=False))
    assert [(s["__key__"], s["txt"]) for s in read] == [("a", b"one"), ("b", b"two")]
    assert list(read_tar(tmp_path / "1.tar", "x")) == sorted(SAMPLES)


def test_folders_are_part_of_a_key_as_in_stock_webdataset(tmp_path):
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        for name in ("a/1.jpg", "b/1.jpg", "b/1.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    stock = webdataset.WebDataset(str(tmp_path / "1.tar"), shardshuffle=False)
    ours = list(read_tar(tmp_path / "1.tar", "x"))
    assert [key for key, _ in ours] == [sample["__key__"] for sample in stock] == ["a/1", "b/1"]
    assert ours[1][1] == {"jpg": b"x", "txt": b"x"}


@pytest.mark.parametrize("key", ["a.b", "a/b"])
def test_keys_that_readers_would_split_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="dot or a slash"):
        write_tar(tmp_path / "1.tar", [(key, {})])


@pytest.mark.parametrize("length", [0, 100, 700, 1600])
def test_tar_cut_short_is_named(tmp_path, length):
    write_tar(tmp_path / "1.tar", [("a", {"png": b"x" * 2000, "txt": b"t"})])
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"s3://b/1\.tar is damaged or cut short"):
        list(read_tar(tmp_path / "1.tar", "s3://b/1.tar"))


def test_a_shard_counts_only_with_its_marker_and_whole_files(store):
    writer = ShardWriter(store, "artifacts/synthesize/k", "shards/64x64/000000")
    write_tar(writer.file(".tar"), SAMPLES)
    assert finished_shards(store, "artifacts/synthesize/k") == {}
    stats = writer.commit({"ok": 2})
    assert finished_shards(store, "artifacts/synthesize/k") == {"shards/64x64/000000": stats}
    store.write("artifacts/synthesize/k/shards/64x64/000000.tar", b"cut")
    assert finished_shards(store, "artifacts/synthesize/k") == {}


FOLDER, SHARD = "artifacts/synthesize/k", "shards/64x64/000000"


@pytest.fixture
def made(store):
    """A finished shard: its marker's bytes and statistics."""
    writer = ShardWriter(store, FOLDER, SHARD)
    write_tar(writer.file(".tar"), SAMPLES)
    stats = writer.commit({"ok": 2}, {"prompts_file": "a", "loss": float("nan"), "rows": [1, 2.5]})
    return store.read(f"{FOLDER}/{SHARD}.json"), stats


def text(**fields) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda marker: b"",
        lambda marker: bytes(len(marker)),
        lambda marker: marker[: len(marker) // 2],
        lambda marker: b"[]",
        lambda marker: b"{}",
        lambda marker: b"\xff" + marker,
        lambda marker: marker.replace(b'"ok": 2', b'"ok": 3'),
        lambda marker: marker.replace(b"prompts_file", b"prompts_fil"),
        lambda marker: marker.replace(b"000000", b"000001"),
        lambda marker: text(shard=SHARD, counts={}, files={}, sizes={"x": 1}, seconds=1),
        lambda marker: b"[" * 100_000,
    ],
)
def test_a_damaged_marker_is_no_marker(store, made, spoil):
    """Bug: parse whatever lies there; then each later run ends with a traceback."""
    store.write(f"{FOLDER}/{SHARD}.json", spoil(made[0]))
    assert finished_shards(store, FOLDER) == {}


@pytest.mark.parametrize(
    "name",
    [
        "shards/64x64/._000000.json",
        "shards/64x64/.000000.json.swp",
        "shards/64x64/000000.json~",
        "shards/64x64/notes.json",
        "shards/64x64/000000 (copy).json",
        "shards/.DS_Store",
        "shards/.Trash/000000.json",
        "notes.json",
    ],
)
def test_strange_files_beside_shards_are_ignored(store, made, name):
    marker, _ = made
    for content in (b"\0\5\26\7", b"{}", marker):
        store.write(f"{FOLDER}/{name}", content)
        assert list(finished_shards(store, FOLDER)) == [SHARD]


def test_a_marker_of_an_older_version_counts(store, made):
    """It has no seal."""
    marker = json.loads(made[0])
    del marker["seal"]
    store.write(f"{FOLDER}/{SHARD}.json", json.dumps(marker).encode())
    assert list(finished_shards(store, FOLDER)) == [SHARD]


def test_a_marker_that_vanishes_between_listing_and_reading_is_none(store, made, monkeypatch):
    listing = store.list(FOLDER)
    monkeypatch.setattr(type(store), "list", lambda self, name: listing)
    store.remove(f"{FOLDER}/{SHARD}.json")
    assert finished_shards(store, FOLDER) == {}


def test_a_temporary_folder_without_room_is_named(store, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ShardWriter(store, FOLDER, SHARD)
    monkeypatch.setattr(tarfile, "open", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    for work in (
        lambda: write_tar(writer.file(".tar"), SAMPLES),
        lambda: writer.file(".parquet", b"x"),
    ):
        with pytest.raises(ArtifactError, match=r"temporary folder .* \(No space left.*TMPDIR"):
            work()
    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    with pytest.raises(ArtifactError, match="TMPDIR"):
        ShardWriter(store, FOLDER, SHARD)
