"""Which shards of an artifact are done: the only record of a stage's progress.

A shard is done if its marker `<shard>.json` is there and its files have the marked sizes. As a
stage proceeds, its markers are folded into segments, files of many markers, one a line: then a
resume takes one listing and a request for each segment, not one for each shard.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from pipeline.base.store import ArtifactStore
from schemas.records import ShardStats

SEGMENT = 1_000
"""Markers in a segment."""
_SEGMENTS = "segments/"
_SEGMENT_NAME = re.compile(r"segments/\d{6}-[0-9a-f]{16}\.jsonl")
"""How many markers it holds, and its sha256: two runs never write over each other's."""
_LOOKS = 3
"""How often a folder is listed again while another run folds its markers."""


def marker_of(folder: str, shard: str) -> str:
    """Return the name of a shard's marker, relative to the store."""
    return f"{folder}/{shard}.json"


def finished_shards(store: ArtifactStore, folder: str) -> dict[str, ShardStats]:
    """Return the statistics of the shards that are done.

    Any other file there is ignored, and so is a damaged marker: its shard is made again.
    """
    return scan(store, folder).done


def read_marker(store: ArtifactStore, folder: str, shard: str) -> ShardStats | None:
    """Return what a shard's own marker says, or None if it has none that is intact. The sizes of
    its files are not looked at.
    """
    stats = _marked(store.read(marker_of(folder, shard)) or b"")
    return stats if stats is not None and stats.shard == shard else None


@dataclass
class Scan:
    """What one look at an artifact's folder finds."""

    done: dict[str, ShardStats] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)
    """Those of the done whose marker is in no segment."""
    stale: set[str] = field(default_factory=set)
    """Shards that have a marker, but not their files."""
    segments: dict[str, list[ShardStats]] = field(default_factory=dict)
    """The intact segments by name."""


def scan(store: ArtifactStore, folder: str) -> Scan:
    """Look which shards are done. Makes one listing, and reads each segment and each marker that is
    in none; another run that folds its markers meanwhile costs one more listing.
    """
    for _ in range(_LOOKS):
        listing = store.list(folder)
        found = Scan(segments=_read_segments(store, folder, listing))
        folded = {stats.shard: stats for rows in found.segments.values() for stats in rows}
        shards = (name.removesuffix(".json") for name in listing if _is_marker(name))
        names = {marker_of(folder, shard): shard for shard in shards if shard not in folded}
        loose, vanished = _read_markers(store, names)
        if not vanished:
            break
    for stats in (*folded.values(), *loose):
        if all(listing.get(file) == size for file, size in stats.sizes.items()):
            found.done[stats.shard] = stats
        else:
            found.stale.add(stats.shard)
    found.loose = {stats.shard for stats in loose} - found.stale
    return found


def forget(store: ArtifactStore, folder: str, shards: Iterable[str]) -> None:
    """Remove the markers of shards, wherever they are: these are made again."""
    wanted = set(shards)
    for name, rows in _read_segments(store, folder, store.list(folder)).items():
        kept = [stats for stats in rows if stats.shard not in wanted]
        if len(kept) < len(rows):
            if kept:
                _write_segment(store, folder, kept)
            store.remove(f"{folder}/{name}")
    store.remove_files([marker_of(folder, shard) for shard in sorted(wanted)])


class Folding:
    """Folds the markers of the shards that a run has made, a segment at a time.

    `is_alone` says whether no other run works in the folder: only then are markers removed that a
    segment holds. A run that comes later sees the segment, one that is there sees the markers.
    """

    def __init__(self, store: ArtifactStore, folder: str, is_alone: Callable[[], bool]) -> None:
        self._store, self._folder, self._is_alone = store, folder, is_alone
        self._loose: list[ShardStats] = []

    def add(self, stats: ShardStats) -> None:
        """Take note of a shard that has a marker of its own."""
        self._loose.append(stats)
        if len(self._loose) >= SEGMENT:
            self._fold(self._loose)
            self._loose = []

    def _fold(self, rows: list[ShardStats]) -> None:
        _write_segment(self._store, self._folder, rows)
        if self._is_alone():
            self._store.remove_files([marker_of(self._folder, stats.shard) for stats in rows])


def _is_marker(name: str) -> bool:
    return name.startswith("shards/") and name.endswith(".json")


def _write_segment(store: ArtifactStore, folder: str, rows: list[ShardStats]) -> None:
    lines = sorted(stats.model_dump_json() for stats in rows)
    content = "".join(f"{line}\n" for line in lines).encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    store.write(f"{folder}/{_SEGMENTS}{len(rows):06d}-{digest}.jsonl", content)


def _read_segments(
    store: ArtifactStore, folder: str, listing: Mapping[str, int]
) -> dict[str, list[ShardStats]]:
    """Return the rows of the segments. Of a damaged one, the rows that are intact."""
    names = [f"{folder}/{name}" for name in listing if _SEGMENT_NAME.fullmatch(name)]
    found: dict[str, list[ShardStats]] = {}
    for name in names:  # one at a time: a hundred thousand markers are 60 MB
        content = store.read(name) or b""
        found[name.removeprefix(f"{folder}/")] = [*_rows_of(content)]
    return found


def _rows_of(segment: bytes) -> Iterator[ShardStats]:
    for line in segment.splitlines():
        if (stats := _marked(line)) is not None:
            yield stats


def _read_markers(store: ArtifactStore, names: Mapping[str, str]) -> tuple[list[ShardStats], bool]:
    """Return what the intact markers say, and whether one of them has gone."""
    read = store.read_all(list(names))
    marked = ((names[name], _marked(content)) for name, content in read.items())
    return [stats for shard, stats in marked if stats is not None and stats.shard == shard], len(
        read
    ) < len(names)


def _marked(content: bytes) -> ShardStats | None:
    """Return the statistics in a marker if they are as they were written."""
    try:
        stats = ShardStats.model_validate_json(content)
    except ValidationError:
        return None
    intact = stats.files.keys() == stats.sizes.keys() and stats.seal in ("", stats.own_seal())
    return stats if intact else None
