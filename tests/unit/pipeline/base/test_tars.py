"""Tars of others: what is a sample, what is left out, and what is wrong with which sample."""

from __future__ import annotations

import io
import tarfile

import pytest

from pipeline.base import tars
from pipeline.base.shards import read_tar
from pipeline.base.tars import read_samples
from schemas.errors import ArtifactError
from tests.support.foreign_tars import pack


def read(path):
    return {sample.key: sample for sample in read_samples(path, "s3://b/x.tar")}


@pytest.mark.parametrize(
    "name",
    [
        "._a.png",
        "data/._a.png",
        "__MACOSX/._a.png",
        "__MACOSX/a.png",
        "PaxHeaders.123/a.png",
        "./PaxHeader/a.png",
        ".DS_Store",
    ],
)
def test_what_an_archiver_adds_is_no_sample(tmp_path, name):
    path = pack(tmp_path / "x.tar", [(name, b"junk"), ("a.png", b"1"), ("a.txt", b"t")])
    assert [*read(path).values()] == [("a", {"png": b"1", "txt": b"t"}, None)]


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "a.txt", "a.png", "a.txt"),
        ("a.jpg", "a.JPG", "a.txt"),
        ("a.png", "a.txt", "b.png", "b.txt", "a.png"),  # not neighbours
        ("a.json", "b.png", "b.txt", "a.Json"),
    ],
)
def test_a_member_that_comes_twice_costs_its_sample_and_says_so(tmp_path, names):
    path = pack(tmp_path / "x.tar", [(name, str(i).encode()) for i, name in enumerate(names)])
    found = read(path)
    assert found["a"].members == {} and "two members of one name: a." in found["a"].problem
    assert "b.png" not in names or (found["b"].problem, len(found["b"].members)) == (None, 2)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_of_a_sample_need_not_be_neighbours(tmp_path, mode):
    names = ("a.png", "b.png", "a.txt", "b.txt")
    path = pack(tmp_path / "x.tar", [(name, name.encode()) for name in names], mode)
    assert {key: sorted(sample.members) for key, sample in read(path).items()} == {
        "a": ["png", "txt"],
        "b": ["png", "txt"],
    }


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("b.png", tarfile.LNKTYPE, "its shard holds a link instead of a file: b.png"),
        ("b.png", tarfile.SYMTYPE, "its shard holds a link instead of a file: b.png"),
        ("b.png", tarfile.CHRTYPE, "its shard holds a device or a pipe instead of a file"),
        ("b.png", tarfile.BLKTYPE, "its shard holds a device or a pipe instead of a file"),
        ("b.png", tarfile.FIFOTYPE, "its shard holds a device or a pipe instead of a file"),
        ("../b.png", tarfile.REGTYPE, "a name in its shard leads out of its folder: ../b.png"),
        ("x/../../b.png", tarfile.REGTYPE, "a name in its shard leads out of its folder"),
        ("/etc/b.png", tarfile.REGTYPE, "a name in its shard leads out of its folder: /etc/b.png"),
    ],
)
def test_what_is_no_plain_file_costs_its_sample(tmp_path, name, kind, problem):
    """Bug: follow a link, or take a name for a path."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
        hostile = tarfile.TarInfo(name)
        hostile.type, hostile.linkname = kind, "a.txt" if kind == tarfile.LNKTYPE else "/etc/passwd"
        tar.addfile(hostile)
    found = read(tmp_path / "x.tar")
    assert found.pop("a").members == {"txt": b"one"}
    (sample,) = found.values()
    assert sample.members == {} and problem in sample.problem


def test_a_packed_tar_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    """A bomb of four gigabytes in four megabytes would be read to its end otherwise."""
    monkeypatch.setattr(tars, "LARGEST_SAMPLE", 10_000)
    monkeypatch.setattr(tars, "LARGEST_RATIO", 20)
    members = [(f"{i}.png", bytes(9_000)) for i in range(20)]
    path = pack(tmp_path / "x.tar", members, "w:gz")
    with pytest.raises(ArtifactError, match="it decompresses to more than"):
        read(path)
    assert len(read(pack(tmp_path / "y.tar", members))) == 20, "a plain tar is as large as it is"


def test_a_file_with_holes_is_refused(tmp_path):
    """A header of one block may promise a terabyte of zeros."""
    import subprocess

    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**20)
        file.write(b"end")
    subprocess.run(["tar", "--sparse", "-cf", "x.tar", "a.png"], cwd=tmp_path, check=True)
    (sample,) = read(tmp_path / "x.tar").values()
    assert sample.problem == "its shard holds a sparse file instead of a file: a.png"


def test_a_name_that_is_not_utf8_can_be_stored(tmp_path):
    with tarfile.open(
        tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1"
    ) as tar:
        info = tarfile.TarInfo("caf\xe9.txt")
        tar.addfile(info, io.BytesIO())
    (key,) = read(tmp_path / "x.tar")
    assert key.encode() == b"caf\\udce9"


def test_a_sample_too_large_for_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "LARGEST_SAMPLE", 10)
    names = ("a.1.mp4", "a.2.mp4", "b.txt")
    found = read(pack(tmp_path / "x.tar", [(name, b"x" * 6) for name in names]))
    assert found["a"].problem == "its members are larger than 10 bytes: 12"
    assert found["b"].members == {"txt": b"x" * 6}


def damaged(content: bytes, how: str) -> bytes:
    if how == "cut between members":  # without the mark of the end
        return content[:1024]
    if how == "cut in a header":
        return content[:1100]
    if how == "a bad header":
        return content[:1024] + b"\xff" * 512 + content[1536:]
    return content + content  # two tars, one behind the other


@pytest.mark.parametrize(
    "how", ["cut between members", "cut in a header", "a bad header", "joined"]
)
def test_samples_behind_a_damage_are_never_lost_in_silence(tmp_path, how):
    """tarfile itself takes each of these for the end of the tar."""
    whole = pack(tmp_path / "x.tar", [("a.txt", b"1"), ("b.txt", b"2")]).read_bytes()
    (tmp_path / "x.tar").write_bytes(damaged(whole, how))
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert len(tar.getnames()) in (1, 2)
    with pytest.raises(ArtifactError, match=r"s3://b/x\.tar is damaged or cut short"):
        read(tmp_path / "x.tar")


def test_a_shard_that_is_not_as_we_write_it_is_refused(tmp_path):
    path = pack(tmp_path / "x.tar", [("a.txt", b"1"), ("a.txt", b"2")])
    with pytest.raises(ArtifactError, match=r"s3://b/x\.tar cannot be ours: sample a: .* two"):
        list(read_tar(path, "s3://b/x.tar"))
