"""Fingerprints of files and models outside the store."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.base import fingerprints
from pipeline.base.fingerprints import Digests, Unseen, fingerprint, open_digests

OLD = time.time() - 60


@pytest.fixture
def digests(tmp_path):
    return Digests(tmp_path / "memory" / "fingerprints.json")


@pytest.fixture
def reads(monkeypatch):
    """The files whose contents are read."""
    seen: list[Path] = []
    read = fingerprints._read

    def noted(path):
        seen.append(path)
        return read(path)

    monkeypatch.setattr(fingerprints, "_read", noted)
    return seen


def write(path: Path, content: bytes, changed: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (changed, changed))
    return path


def settle(monkeypatch):
    """Take files as long unchanged, for a file's ctime cannot be set."""
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -(10**12))


def test_a_file_is_its_sha256_with_size_and_lines(digests, tmp_path):
    seen = fingerprint("files", str(write(tmp_path / "p.txt", b"a\nb\n")), digests)
    assert (seen.digest, seen.size, seen.lines) == (hashlib.sha256(b"a\nb\n").hexdigest(), 4, 2)


def test_files_that_were_seen_before_are_not_read_again(digests, tmp_path, reads, monkeypatch):
    settle(monkeypatch)
    paths = [str(write(tmp_path / f"{i}.tar", bytes([i]))) for i in range(3)]
    first = fingerprint("files", paths, digests)
    digests.save()
    assert len(reads) == 3
    again = fingerprint("files", paths, Digests(digests.path))
    assert again == first
    assert len(reads) == 3
    write(tmp_path / "1.tar", b"x")
    assert fingerprint("files", paths, Digests(digests.path)) != first
    assert len(reads) == 4


def test_contents_changed_behind_the_same_time_and_size_are_seen(digests, tmp_path, monkeypatch):
    """Bug: remember by size and time of change alone; `touch -r` and `rsync -t` set the time."""
    settle(monkeypatch)
    path = write(tmp_path / "p.txt", b"a")
    first = fingerprint("files", str(path), digests)
    write(path, b"b")
    assert path.stat().st_mtime == pytest.approx(OLD)
    assert fingerprint("files", str(path), digests) != first


def test_a_file_that_has_just_changed_is_not_remembered(digests, tmp_path):
    """Bug: remember it; a second change within the clock's tick is then never seen."""
    path = write(tmp_path / "p.txt", b"a", changed=time.time())
    fingerprint("files", str(path), digests)
    digests.save()
    assert not digests.path.exists()


@pytest.mark.parametrize("content", [b"", b"\0\0", b"[]", b'{"/p": 3}', b'{"/p": [1, 2, 3]}', b"{"])
def test_a_spoilt_memory_is_made_again(tmp_path, content):
    path = write(tmp_path / "memory.json", content)
    file = str(write(tmp_path / "p.txt", b"a"))
    assert fingerprint("files", file, Digests(path)).digest == hashlib.sha256(b"a").hexdigest()


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch):
    settle(monkeypatch)
    blocked = write(tmp_path / "a_file", b"")
    digests = Digests(blocked / "memory.json")
    assert fingerprint("files", str(write(tmp_path / "p.txt", b"a")), digests).size == 1
    digests.save()


def test_files_that_are_gone_are_forgotten(digests, tmp_path, monkeypatch):
    settle(monkeypatch)
    first, second = (write(tmp_path / name, b"a") for name in ("a.txt", "b.txt"))
    digests.of([first])
    first.unlink()
    digests.of([second])
    digests.save()
    assert list(json.loads(digests.path.read_text())) == [str(second)]


def test_a_model_is_what_its_files_hold_wherever_it_lies(digests, tmp_path):
    for folder in ("here", "there"):
        write(tmp_path / folder / "vae" / "w.safetensors", b"w")
        write(tmp_path / folder / "model_index.json", b"{}")
    first, second = (fingerprint("model", str(tmp_path / f), digests) for f in ("here", "there"))
    assert first == second
    assert (first.files, first.size) == (2, 3)
    (tmp_path / "there/vae/w.safetensors").rename(tmp_path / "there/vae/v.safetensors")
    assert fingerprint("model", str(tmp_path / "there"), digests) != first


def test_a_model_of_the_hub_has_no_fingerprint(digests):
    assert fingerprint("model", "maker/model", digests) is None


def test_shards_that_joined_or_changed_their_names_are_seen(digests, tmp_path):
    write(tmp_path / "a.tar", b"1")
    write(tmp_path / "b.tar", b"2")
    pattern = [f"{tmp_path}/*.tar"]
    first = fingerprint("files", pattern, digests)
    (tmp_path / "b.tar").rename(tmp_path / "c.tar")
    renamed = fingerprint("files", pattern, digests)
    write(tmp_path / "d.tar", b"3")
    joined = fingerprint("files", pattern, digests)
    assert len({first.digest, renamed.digest, joined.digest}) == 3
    assert joined.files == 3


def test_files_here_and_files_elsewhere_are_one_input(digests, tmp_path):
    """Bug: ask for the folder that they share, which raises ValueError."""
    here = str(write(tmp_path / "a.tar", b"here"))
    fsspec.filesystem("memory").pipe_file("/mixed/b.tar", b"elsewhere")
    seen = fingerprint("files", [here, "memory://mixed/b.tar"], digests)
    assert len(seen.parts) == 2 and seen.size == 13


def test_remote_files_are_what_the_store_says_of_them(digests, bucket):
    url = f"{bucket}/prompts.txt"
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(path, b"a red circle\n")
    first = fingerprint("files", url, digests)
    filesystem.pipe_file(path, b"a red circle\n")
    assert fingerprint("files", url, digests) == first
    filesystem.pipe_file(path, b"a red square\n")
    assert fingerprint("files", url, digests) != first


def test_small_remote_files_of_a_store_without_checksums_are_read(digests):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/outside/p.txt", b"a")
    first = fingerprint("files", "memory://outside/p.txt", digests)
    memory.pipe_file("/outside/p.txt", b"b")
    assert fingerprint("files", "memory://outside/p.txt", digests) != first


def test_what_cannot_be_looked_at_says_why(digests, tmp_path):
    seen = fingerprint("files", str(tmp_path / "gone.txt"), digests)
    assert isinstance(seen, Unseen)
    assert "gone.txt" in seen.why


def test_the_user_is_told_before_much_is_read(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(fingerprints, "_WORTH_A_NOTICE", 3)
    digests = Digests(tmp_path / "memory.json", said.append)
    fingerprint("files", str(write(tmp_path / "p.txt", b"abcd")), digests)
    assert len(said) == 1


def test_the_memory_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_digests().path == tmp_path / "ladd-pipeline" / "fingerprints.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_digests().path.is_relative_to(tmp_path / "home" / ".cache")
