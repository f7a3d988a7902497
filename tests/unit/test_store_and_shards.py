"""Store and shards: one commit, no overwriting, same bytes, damage named."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from pathlib import Path

import pytest
import webdataset

from pipeline.base.shards import ShardWriter, finished_shards, read_tar, write_tar
from pipeline.base.store import ArtifactStore, _partial
from schemas.errors import ArtifactError
from schemas.manifest import Manifest, ManifestError, read_manifest
from tests.manifests import manifest_of


def manifest(key="abc", files=None, seconds=1.0) -> Manifest:
    return manifest_of("prompts", files, key=key, seconds=seconds)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"memory://{tmp_path.name}")


def test_commit_and_find(store):
    assert store.find("prompts", "abc") is None
    store.commit(manifest())
    assert store.find("prompts", "abc").manifest == manifest()


def test_first_commit_wins_and_is_never_overwritten(store):
    store.commit(manifest(seconds=1.0))
    assert store.commit(manifest(seconds=2.0)).manifest.seconds == 1.0


def test_only_one_of_many_creates(tmp_path):
    store = ArtifactStore(str(tmp_path))
    wins = []
    threads = [
        threading.Thread(target=lambda i=i: wins.append(store.create("a/b.json", bytes([i]))))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]


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
    Path(_partial(str(whole))).write_bytes(b"who")
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
    wrong = artifact.verify(contents=True)
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
    ("text", "message"),
    [
        ("{", "no readable schema_version"),
        ('{"schema_version": 9}', "upgrade ladd-pipeline"),
        ('{"schema_version": 1}', "field stage"),
    ],
)
def test_unusable_manifests_are_named(text, message):
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(text, "s3://b/m.json")
    assert "s3://b/m.json" in str(error.value)


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
