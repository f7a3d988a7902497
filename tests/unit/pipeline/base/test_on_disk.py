"""Files of a folder: whole or not there, also on file systems that lack something."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pipeline.base import on_disk
from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError
from tests.support.limits import limits

NO_LINKS = ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV", "EACCES", "EINVAL")


def raising(number: int):
    def answer(*_, **__):
        raise OSError(number, os.strerror(number))

    return answer


@pytest.fixture(params=NO_LINKS)
def without_links(request, monkeypatch):
    monkeypatch.setattr(os, "link", raising(getattr(errno, request.param)))


@pytest.mark.parametrize("links", ["links", *NO_LINKS])
def test_only_one_of_many_creates(tmp_path, monkeypatch, links):
    if links in NO_LINKS:
        monkeypatch.setattr(os, "link", raising(getattr(errno, links)))
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


def test_what_is_then_not_promised_is_said_before_work(tmp_path, without_links):
    (text,) = limits(ArtifactStore(str(tmp_path)))
    assert "has no hard links" in text and "artifacts verify" in text


def test_a_sound_folder_has_no_limits(tmp_path):
    assert limits(ArtifactStore(str(tmp_path / "new"))) == []
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_nfs_may_answer_that_its_own_link_exists(tmp_path, monkeypatch):
    """Bug: believe it; then nobody has committed, and the run says that another one has."""
    link = os.link

    def repeated(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    store = ArtifactStore(str(tmp_path))
    assert store.create("a", b"mine") is True
    assert store.create("a", b"other") is False and store.read("a") == b"mine"


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", raising(errno.EPERM))
        flush = on_disk._flush
        monkeypatch.setattr(
            on_disk,
            "_flush",
            lambda path: flush(path) if path.endswith(".partial") else raising(errno.ENOSPC)(),
        )
    else:
        monkeypatch.setattr(on_disk, "_flush", raising(errno.ENOSPC))
        with pytest.raises(ArtifactError, match=r"cannot write b: the disk is full"):
            ArtifactStore(str(tmp_path)).write("b", b"content")
    with pytest.raises(ArtifactError, match="the disk is full; free some space"):
        ArtifactStore(str(tmp_path)).create("a", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("EDQUOT", "your disk quota is used up"),
        ("EROFS", "the file system is read-only"),
        ("EACCES", "no permission"),
    ],
)
def test_why_a_folder_cannot_be_written_is_said(tmp_path, monkeypatch, number, message):
    monkeypatch.setattr(on_disk.shutil, "copyfile", raising(getattr(errno, number)))
    local = tmp_path / "local"
    local.write_bytes(b"x")
    store = ArtifactStore(str(tmp_path / "store"))
    with pytest.raises(ArtifactError, match=message) as error:
        store.put(local, "a/b")
    assert str(error.value).startswith(f"store {store.url}: cannot write a/b: ")
    assert list((tmp_path / "store/a").iterdir()) == []


def test_a_file_system_that_cannot_flush_one_file_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(errno.EINVAL))
    ArtifactStore(str(tmp_path)).write("a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name",
    ["._a", ".DS_Store", "a/._b/c", "a.txt~", "#a#", "Thumbs.db", "a/desktop.ini", "a.x.partial"],
)
def test_files_of_systems_and_editors_are_not_listed(tmp_path, name):
    store = ArtifactStore(str(tmp_path))
    store.write(f"x/{name}", b"foreign")
    store.write("x/ours", b"1")
    assert store.list("x") == {"ours": 1}
    store.remove("x")
    assert not (tmp_path / "x").exists()


def test_odd_letters_in_a_folder_are_letters(tmp_path):
    """Bug: read and remove through calls that take `[` or `*` for a pattern."""
    store = ArtifactStore(str(tmp_path / "my [run] *? #1 %20 é+ü"))
    store.write("a/b", b"1")
    assert store.read_all(["a/b", "a/c"]) == {"a/b": b"1"}
    assert store.list("a") == {"b": 1}
    store.remove("a")
    assert store.list("") == {}


def test_broken_links_and_folders_named_like_files_are_no_traceback(tmp_path):
    store = ArtifactStore(str(tmp_path))
    store.write("x/ours", b"1")
    (tmp_path / "x" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x" / "folder.json").mkdir()
    assert store.list("x") == {"ours": 1}
    with pytest.raises(ArtifactError, match=r"cannot read x/folder\.json"):
        store.read("x/folder.json")
    store.remove("x")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named_with_the_stage_that_makes_it(store):
    with (
        pytest.raises(ArtifactError, match=r"a\.tar is missing; run `ladd-pipeline run --force en"),
        store.local("artifacts/encode/k/shards/a.tar"),
    ):
        pass


def test_what_the_block_raises_is_not_the_stores(store):
    store.write("artifacts/encode/k/a", b"x")
    with pytest.raises(FileNotFoundError), store.local("artifacts/encode/k/a"):
        Path("/nowhere/at/all").read_bytes()


@pytest.mark.slow
def test_a_folder_that_another_process_removes_as_empty_is_made_again(tmp_path):
    """Bug: make the folder once; of eight runs that meet in one, some then cannot write."""
    store = ArtifactStore(str(tmp_path))
    ended = threading.Event()

    def sweep():
        while not ended.is_set():
            store.remove_empty("a")

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for i in range(300):
            assert store.create(f"a/b/c/{i}", b"x")
            store.write(f"a/b/d/{i}", b"x")
            store.remove_files([f"a/b/c/{i}", f"a/b/d/{i}"])
    finally:
        ended.set()
        sweeper.join()
