"""Finds what killed processes leave in a store: half-written files, unfinished uploads, claims of
the dead, checkpoints that were not saved to the end, the small stores of probes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipeline.base.checkpoint_list import whole_checkpoints
from pipeline.base.claims import claims_folder, live_runs
from pipeline.base.lease import LEASE, held, is_held
from pipeline.base.storage_errors import explained
from pipeline.base.store import ArtifactStore, json_object
from schemas.errors import Locked

_CLAIM = re.compile(r"lease\.json(\.[0-9a-f]{16}\.claim)+\Z")
_OURS = re.compile(r"(\.doctor-[0-9a-f]{12}/.*|.*\.[0-9a-f]{12}\.partial)\Z")
_PROBE = re.compile("[0-9a-f]{32}")
_AT_ONCE = 32
"""Leases that are watched at the same time."""


@dataclass(frozen=True)
class Leftover:
    """Something that nobody will use any more."""

    what: str
    """What it is, and where."""
    size: int
    """Bytes, as far as they are known."""
    remove: Callable[[], Any]


def runs_under_way(store: ArtifactStore) -> dict[str, dict[str, Any]]:
    """Return the records (`run.json`) of the runs that are under way on any machine, by their
    folder. Takes up to three beats of a lease to tell.
    """
    names = [n for n in store.list("runs") if n.count("/") == 1 and n.endswith(f"/{LEASE}")]
    folders = [f"runs/{name.split('/')[0]}" for name in names]
    alive = [
        folder
        for folder, is_alive in zip(folders, watched(store, folders), strict=True)
        if is_alive
    ]
    return {folder: json_object(store.read(f"{folder}/run.json") or b"") or {} for folder in alive}


def crews_at_work(store: ArtifactStore) -> set[tuple[str, str]]:
    """Return stage and key of the artifacts on which a live run works."""
    found = [
        (stage, key)
        for stage in store.folders("claims")
        for key in store.folders(f"claims/{stage}")
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        alive = list(pool.map(lambda one: live_runs(store, claims_folder(*one)), found))
    return {one for one, runs in zip(found, alive, strict=True) if runs}


def watched(store: ArtifactStore, folders: Sequence[str]) -> list[bool]:
    """Return for each folder whether a live process holds its lease; all are watched at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(partial(is_held, store), folders))


def leftovers(store: ArtifactStore, hours: float, *, busy: Collection[str]) -> Iterator[Leftover]:
    """Yield what is left over: half-written files and unfinished uploads that are older than
    `hours`; and in the folders of runs and trainings that nobody holds (`busy` are those that are
    held) leases, claims and checkpoints that were not saved to the end; and the stores of probes.
    """
    yield from _half_written(store, hours)
    yield from _uploads(store, hours)
    yield from _leases_of_runs(store, busy)
    yield from _of_trainings(store, busy)
    yield from _claims(store, busy)
    yield from _probes(store)


def _half_written(store: ArtifactStore, hours: float) -> Iterator[Leftover]:
    now = datetime.now(UTC).timestamp()
    for name, size in sorted(_unfinished(store).items()):
        if _OURS.match(name) and now - store.modified(name) >= 3600 * hours:
            yield Leftover(f"half-written {name}", size, partial(store.remove, name))


def _unfinished(store: ArtifactStore) -> dict[str, int]:
    """List what may be half-written, and more. An object appears whole, so that of object stores,
    which may hold millions, only the folders of `doctor` are looked at.
    """
    if store.is_local:
        return store.all_files("")
    tried = [name for name in store.all_folders("") if name.startswith(".doctor-")]
    return {f"{name}/{path}": n for name in tried for path, n in store.all_files(name).items()}


def _probes(store: ArtifactStore) -> Iterator[Leftover]:
    """Yield the stores of probes (`plan --probe`) that were killed."""
    names = [f"probes/{name}" for name in store.folders("probes") if _PROBE.fullmatch(name)]
    for name, is_alive in zip(names, watched(store, names), strict=True):
        if not is_alive:
            size = sum(store.all_files(name).values())
            yield Leftover(f"probe {name}", size, partial(store.remove, name))


def _uploads(store: ArtifactStore, hours: float) -> Iterator[Leftover]:
    """Yield unfinished uploads in parts: S3 keeps their parts, and charges for them, for ever."""
    if not store.url.startswith("s3://"):
        return
    bucket, _, folder = store.root.partition("/")
    prefix = f"{folder}/" if folder else ""
    now, call = datetime.now(UTC), store.filesystem.call_s3
    more: dict[str, str] = {}
    while True:
        with explained(store.url, "list", "unfinished uploads"):
            page = call("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
        for upload in page.get("Uploads", ()):
            if (now - upload["Initiated"]).total_seconds() >= 3600 * hours:
                which = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                name = upload["Key"].removeprefix(prefix)
                abort = partial(call, "abort_multipart_upload", **which)
                yield Leftover(f"unfinished upload of {name}", 0, abort)
        if not page.get("IsTruncated"):
            return
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _leases_of_runs(store: ArtifactStore, busy: Collection[str]) -> Iterator[Leftover]:
    for name, size in sorted(store.list("runs").items()):
        run, _, path = name.partition("/")
        if f"runs/{run}" not in busy and (path == LEASE or _CLAIM.match(path)):
            yield Leftover(f"lease runs/{name}", size, partial(store.remove, f"runs/{name}"))


def _of_trainings(store: ArtifactStore, busy: Collection[str]) -> Iterator[Leftover]:
    folders: dict[str, dict[str, int]] = {}
    for name, size in store.all_files("training").items():
        stage, key, *rest = name.split("/")
        if rest:
            folders.setdefault(f"training/{stage}/{key}", {})["/".join(rest)] = size
    for folder, files in sorted(folders.items()):
        if folder in busy:
            continue
        for path in sorted(filter(_CLAIM.match, files)):
            name = f"{folder}/{path}"
            remove = partial(_remove_from_training, store, folder, path)
            yield Leftover(f"claim {name}", files[path], remove)
        whole = whole_checkpoints(store, folder)
        if whole is None:  # the list is damaged, and the next start repairs it
            continue
        saved = {path.split("/")[0] for path in files if "/" in path}
        for one in sorted(saved - set(whole)):
            if one.startswith("checkpoint_"):
                size = sum(n for path, n in files.items() if path.startswith(f"{one}/"))
                remove = partial(_remove_from_training, store, folder, one)
                yield Leftover(f"orphaned checkpoint {folder}/{one}", size, remove)


def _remove_from_training(store: ArtifactStore, folder: str, name: str) -> None:
    """Remove what is left over of a training, unless a run has taken it up meanwhile."""
    with contextlib.suppress(Locked), held(store, folder, "artifacts gc"):
        whole = whole_checkpoints(store, folder)
        if whole is not None and name not in whole:
            store.remove(f"{folder}/{name}")


def _claims(store: ArtifactStore, busy: Collection[str]) -> Iterator[Leftover]:
    """Yield the claims on artifacts on which no live run works."""
    for name, size in sorted(store.all_files("claims").items()):
        stage, key, *_ = name.split("/")
        if claims_folder(stage, key) not in busy:
            yield Leftover(f"claim claims/{name}", size, partial(store.remove, f"claims/{name}"))
