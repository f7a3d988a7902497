"""Markers fold into segments as a stage proceeds; what is done stays done, and is read cheaply."""

from __future__ import annotations

import pytest

from pipeline.base import markers
from pipeline.base.markers import Folding, finished_shards, forget, marker_of, scan
from pipeline.base.store import ArtifactStore
from tests.support.shards import make_shard, shard_names

FOLDER = "artifacts/synthesize/k"
NAMES = shard_names(8)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(markers, "SEGMENT", 3)


def made(store: ArtifactStore, names: list[str], *, is_alone: bool = True) -> dict:
    """Makes shards as a run does, and returns their statistics."""
    folding = Folding(store, FOLDER, lambda: is_alone)
    stats = {}
    for name in names:
        stats[name] = make_shard(store, FOLDER, name)
        folding.add(stats[name])
    return stats


def loose_in(store: ArtifactStore) -> list[str]:
    return [name for name in store.list(FOLDER) if name.endswith(".json")]


def segments_in(store: ArtifactStore) -> list[str]:
    return [name for name in store.list(FOLDER) if name.startswith("segments/")]


def test_folded_markers_say_what_they_said(store):
    stats = made(store, NAMES)
    assert len(segments_in(store)) == 2 and len(loose_in(store)) == 2
    assert finished_shards(store, FOLDER) == stats
    found = scan(store, FOLDER)
    assert found.loose == set(NAMES[6:]) and not found.stale


def test_a_resume_reads_a_segment_and_not_its_markers(store, monkeypatch):
    """Bug: one request for each shard, whatever has been folded."""
    stats = made(store, NAMES, is_alone=False)
    assert len(loose_in(store)) == len(NAMES)
    read: list[str] = []
    plain, many, listed = type(store).read, type(store).read_all, type(store).list
    monkeypatch.setattr(type(store), "read", lambda s, n: read.append(n) or plain(s, n))
    monkeypatch.setattr(type(store), "read_all", lambda s, n: read.extend(n) or many(s, n))
    monkeypatch.setattr(type(store), "list", lambda s, n: read.append("list") or listed(s, n))
    assert finished_shards(store, FOLDER) == stats
    wanted = [*(f"{FOLDER}/{name}" for name in segments_in(store))]
    wanted += [marker_of(FOLDER, name) for name in NAMES[6:]]
    assert set(read) == {"list", *wanted}


def test_while_another_run_is_there_markers_stay(store):
    """It may have listed them, and would take their shards for missing."""
    made(store, NAMES, is_alone=False)
    assert len(segments_in(store)) == 2 and len(loose_in(store)) == len(NAMES)


def test_a_marker_that_is_folded_between_listing_and_reading_is_found(store, monkeypatch):
    stats = made(store, NAMES[:2])
    many = type(store).read_all
    folding = Folding(store, FOLDER, lambda: True)
    meanwhile = [lambda: folding._fold(list(stats.values()))]

    def read_all(self, names):
        if meanwhile:
            meanwhile.pop()()
        return many(self, names)

    monkeypatch.setattr(type(store), "read_all", read_all)
    assert finished_shards(store, FOLDER) == stats


def test_a_folded_shard_without_its_files_is_made_again_with_other_bytes(store):
    """Bug: leave it in its segment; a shard of the same size made elsewhere then has the old
    sha256 in the manifest.
    """
    made(store, NAMES[:3])
    store.remove(f"{FOLDER}/{NAMES[1]}.tar")
    assert scan(store, FOLDER).stale == {NAMES[1]}
    forget(store, FOLDER, {NAMES[1]})
    again = make_shard(store, FOLDER, NAMES[1], b"x" * len(NAMES[1]))
    found = scan(store, FOLDER)
    assert not found.stale and found.done[NAMES[1]] == again
    assert found.done.keys() == set(NAMES[:3])


def test_forgetting_the_last_of_a_segment_leaves_none(store):
    made(store, NAMES[:4])
    forget(store, FOLDER, NAMES)
    assert finished_shards(store, FOLDER) == {}
    assert not segments_in(store) and not loose_in(store)


def test_a_flipped_byte_in_a_segment_costs_one_shard(store):
    made(store, NAMES[:3])
    (name,) = segments_in(store)
    content = bytearray(store.read(f"{FOLDER}/{name}"))
    content[content.index(b'"ok":1') + 5] ^= 1
    store.write(f"{FOLDER}/{name}", bytes(content))
    assert len(finished_shards(store, FOLDER)) == 2


@pytest.mark.parametrize(
    "name", ["segments/notes.jsonl", "segments/000003-0.jsonl", "segments/._a"]
)
def test_strange_files_beside_segments_are_ignored(store, name):
    stats = made(store, NAMES[:3])
    store.write(f"{FOLDER}/{name}", b"\0\5\26\7")
    assert finished_shards(store, FOLDER) == stats


def test_what_a_kill_between_segment_and_markers_leaves_counts_once(store):
    stats = made(store, NAMES[:3], is_alone=False)
    assert finished_shards(store, FOLDER) == stats
    assert scan(store, FOLDER).loose == set()
