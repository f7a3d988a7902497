"""Manifests of large artifacts: the long parts in columns, the rest as ever."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import tables
from pipeline.base.checking import damaged
from pipeline.base.store import ArtifactStore
from pipeline.base.tables import FileList, split
from schemas.errors import ArtifactError
from schemas.manifest import FileEntry, Manifest, read_manifest
from tests.support.command import ROOT
from tests.support.manifests import manifest_of

FOLDER = "artifacts/encode/k"
FILES = {f"shards/64x64/{i:06d}.tar": (i, f"{i:064x}") for i in range(50)}
SHARDS = [name.removesuffix(".tar") for name in FILES]
DETAILS = {
    "shards": SHARDS,
    "buckets": {"64x64": [{"file": name, "rows": i} for i, name in enumerate(SHARDS)], "8x8": []},
    "null_tokens": 3,
    "odd": [{"a": 1}, {}, "text" * 20],
    "model": "model",
}


@pytest.fixture
def large(monkeypatch, tmp_path):
    """A store, and an artifact in it that counts as large."""
    monkeypatch.setattr(tables, "LARGE", 50)
    monkeypatch.setattr(tables, "_LONG", 50)
    store = ArtifactStore(str(tmp_path))
    return store, store.commit(manifest_of("encode", FILES, details=DETAILS))


def test_a_large_manifest_reads_as_it_was_written(large):
    store, committed = large
    found = store.find("encode", "k")
    assert found.digest == committed.digest
    assert [(f.path, (f.size, f.sha256)) for f in found.listed] == list(FILES.items())
    assert found.details == DETAILS
    assert found.manifest.total_bytes == sum(range(50))
    assert found.entry("shards/64x64/000007.tar").size == 7
    assert found.has("shards/64x64/000007.tar") and not found.has("shards/64x64/7.tar")
    assert len(found.files("shards/", ".tar")) == 50 and found.files("latents/") == []
    assert len(damaged(found)) == 50  # none of them was ever written


def test_of_a_large_manifest_the_json_stays_small(large):
    """What is short stays where `plan` and `run` read it, and what columns cannot hold."""
    store, _ = large
    written = json.loads(store.read(f"{FOLDER}/manifest.json"))
    assert written["files"] == [] and written["schema_version"] == 3
    assert written["tables"]["count"] == 50 and written["tables"]["bytes"] == sum(range(50))
    assert written["details"].keys() == {"null_tokens", "model", "odd"}
    assert written["tables"]["details"]["path"].startswith("manifest.details.")


def test_details_that_columns_would_change_stay_in_the_json(monkeypatch):
    monkeypatch.setattr(tables, "LARGE", 1)
    monkeypatch.setattr(tables, "_LONG", 5)
    for odd in ([{"a": 1}, {}], [1, "a"], [1, 2.5], {"a": {}}, [[], [None]]):
        manifest = manifest_of("encode", FILES, details={"odd": odd, "short": 1})
        small, contents = split(manifest)
        held = small.details
        if small.tables.details is not None:
            held = held | tables.read_details(contents[small.tables.details.path])
        assert json.dumps(held, sort_keys=True) == json.dumps(manifest.details, sort_keys=True)


def test_a_small_manifest_is_written_as_ever(tmp_path):
    store = ArtifactStore(str(tmp_path))
    store.commit(manifest_of("prompts", {"a": (1, "0")}))
    written = json.loads(store.read("artifacts/prompts/k/manifest.json"))
    assert "tables" not in written and written["schema_version"] == 2
    assert store.list("artifacts/prompts/k").keys() == {"manifest.json"}


@pytest.mark.parametrize("version", [1, 2])
def test_manifests_of_older_versions_are_read(version):
    text = json.loads(manifest_of("prompts", {"a": (1, "0")}).to_json())
    found = read_manifest(json.dumps(text | {"schema_version": version}), "m.json")
    assert [file.path for file in found.files] == ["a"] and found.tables is None


@pytest.mark.parametrize("spoil", ["remove", "flip"])
def test_a_damaged_table_is_named(large, spoil):
    store, _ = large
    found = store.find("encode", "k")
    name = f"{FOLDER}/{found.manifest.tables.files.path}"
    if spoil == "remove":
        store.remove(name)
    else:
        store.write(name, b"PAR1" + store.read(name)[4:-1] + b"?")
    with pytest.raises(
        ArtifactError, match=r"manifest\.files\..* (is missing|is damaged).*--force"
    ):
        _ = found.listed
    assert found.manifest.total_bytes  # the plan needs no table


def test_two_commits_of_other_bytes_do_not_mix(large):
    """Bug: name the table by the artifact alone; then the loser's lies beside the winner's JSON."""
    store, first = large
    other = {name: (size, "f" * 64) for name, (size, _) in FILES.items()}
    kept = store.commit(manifest_of("encode", other, details=DETAILS))
    assert kept.digest == first.digest
    assert [file.sha256 for file in kept.listed] == [digest for _, digest in FILES.values()]


def test_a_worker_reads_the_tables_by_itself(large):
    """Bug: send what was read along with each task."""
    _, committed = large
    before = len(pickle.dumps(committed))
    assert len(committed.listed) == 50
    assert len(pickle.dumps(committed)) == before
    assert pickle.loads(pickle.dumps(committed)).details == DETAILS


PATHS = st.lists(st.text("ab/.", min_size=1, max_size=5), unique=True)


@given(paths=PATHS, prefix=st.text("ab/.", max_size=3), suffix=st.text("ab/.", max_size=2))
def test_a_list_of_files_finds_what_a_search_finds(paths, prefix, suffix):
    entries = [FileEntry(path=path, size=i, sha256="0") for i, path in enumerate(paths)]
    listed = FileList.of(entries)
    assert list(listed) == sorted(entries, key=lambda entry: entry.path)
    assert all(listed.find(entry.path) == entry for entry in entries)
    assert listed.find(prefix) == next((e for e in entries if e.path == prefix), None)
    wanted = [e for e in listed if e.path.startswith(prefix) and e.path.endswith(suffix)]
    assert list(listed.select(prefix, suffix)) == wanted


def test_nobody_reads_of_a_manifest_what_a_large_one_leaves_out():
    """`Artifact.details` and `Artifact.listed` have it wherever it is."""
    allowed = {"pipeline/base/artifact.py", "pipeline/base/tables.py", "pipeline/commands/run.py"}
    for folder in ("pipeline", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name not in allowed:
                assert not re.search(r"manifest\.(details|files)\b", path.read_text()), name


def test_manifest_of_all_defaults_round_trips():
    manifest = manifest_of("prompts", FILES)
    assert Manifest.model_validate_json(manifest.to_json()) == manifest
