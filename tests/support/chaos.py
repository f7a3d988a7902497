"""Kills processes of a running chain, and looks at what the store then holds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.course import saved_in
from pipeline.base.lease import holder_of
from pipeline.base.markers import scan
from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES
from tests.support.command import COMMAND, ROOT, call_here

_STAGE = "|".join(STAGES)
KINDS = {
    "driver": "",
    "group": "",
    "coordinator": rf"ray::({_STAGE})\b",
    "actor": r"ray::.*Map(Worker|Batches)",
    "training worker": r"ray::RayTrainWorker",
    "controller": r"ray::TrainController",
}
"""What can be killed, and how Ray names such a process: the command alone, its process group (with
it all of Ray), the process of a stage, of its shards, of a training, or of who watches over that.
"""
NONE = "none"
"""In place of a stage's name: all are finished."""
_APART = ("report.", "tensorboard/", "signals.jsonl")
"""Files that hold times: see `tests.support.made_files`."""
_GRACE_SECONDS = 5.0


@contextlib.contextmanager
def running(arguments: list[Any], log: Path) -> Iterator[subprocess.Popen]:
    """Run the command in a session of its own, of which nothing is left at the end of the block."""
    with open(log, "ab") as file:
        run = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT,
            start_new_session=True,
            stdout=file,
            stderr=file,
        )
    try:
        yield run
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()
        end(run)


def processes(run: subprocess.Popen) -> dict[str, list[psutil.Process]]:
    """The living processes of a run by kind, without kinds of which there are none."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) != run.pid:
                continue
            title = " ".join(process.info["cmdline"] or ())
            for kind, pattern in KINDS.items():
                if (process.pid == run.pid) if not pattern else re.match(pattern, title):
                    found.setdefault(kind, []).append(process)
    return found


def kill(run: subprocess.Popen, kind: str, process: psutil.Process) -> str:
    """Kill a process, or the run's group, with -9. Returns what it was called."""
    title = "" if not KINDS[kind] else " ".join(process.cmdline()).strip()
    if kind == "group":
        os.killpg(run.pid, signal.SIGKILL)
    else:
        process.kill()
    if kind in ("driver", "group"):
        run.wait()
        end(run)
    return title


def end(run: subprocess.Popen) -> None:
    """Wait for what is left of a run whose command has ended, and kill what stays: a Ray whose
    driver was killed keeps a scheduler and a store in memory.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    while left := _session(run):
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=_GRACE_SECONDS)
            return
        time.sleep(0.5)


def _session(run: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            is_here = os.getsid(process.pid) == run.pid
            if is_here and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def problems(store: ArtifactStore) -> list[str]:
    """What no kill may leave: a marker without its shard, a manifest without its files."""
    found = []
    for stage in STAGES:
        for key in store.folders(f"artifacts/{stage}"):
            stale = scan(store, store.folder(stage, key)).stale
            found += [f"{stage}/{key}: {shard} has a marker, but not its files" for shard in stale]
            artifact = store.find(stage, key)
            if artifact is not None:
                there = store.all_files(artifact.folder)
                found += [
                    f"{artifact.url}/{file.path} is not as the manifest says"
                    for file in artifact.listed
                    if there.get(file.path) != file.size
                ]
    return found


def under_way(store: ArtifactStore) -> str:
    """The first stage that is not finished, or NONE."""
    for stage in STAGES:
        keys = store.folders(f"artifacts/{stage}")
        if not any(store.find(stage, key) for key in keys):
            return stage
    return NONE


def finished_files(store: ArtifactStore) -> dict[str, Any]:
    """The files of finished shards and artifacts, and when each was written."""
    names: list[str] = []
    for stage in STAGES:
        for key in store.folders(f"artifacts/{stage}"):
            folder = store.folder(stage, key)
            for stats in scan(store, folder).done.values():
                names += [store.path(folder, name) for name in stats.files]
            if (artifact := store.find(stage, key)) is not None:
                names += [store.path(folder, file.path) for file in artifact.listed]
    wanted = set(names)
    written = store.filesystem.find(store.path("artifacts"), detail=True) if wanted else {}
    return {
        name: str(info.get("LastModified") or info.get("mtime"))
        for name, info in written.items()
        if name in wanted
    }


def last_update(store: ArtifactStore, stage: str) -> int:
    """The update after which the latest checkpoint of a stage's trainings was saved."""
    folders = [store.training_folder(stage, key) for key in store.folders(f"training/{stage}")]
    return max((one.step for folder in folders for one in saved_in(store, folder)), default=0)


def planned_start(arguments: list[Any], stage: str) -> int | None:
    """The update at which the plan says that a stage's training goes on; None if it does not."""
    result = call_here("plan", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    why = next(row["why"] for row in json.loads(result.stdout) if row["stage"] == stage)
    found = re.search(r"(?:continues at|takes) update ([\d,]+)", why)
    return int(found[1].replace(",", "")) if found else None


def made(store: ArtifactStore) -> dict[str, dict[str, str]]:
    """The sha256 of every file of every artifact by stage, but for files that hold times."""
    found = {}
    for stage in STAGES:
        for key in store.folders(f"artifacts/{stage}"):
            if (artifact := store.find(stage, key)) is not None:
                found[stage] = {
                    file.path: file.sha256
                    for file in artifact.listed
                    if not file.path.startswith(_APART) and not file.path.endswith("README.md")
                } | {"counts": json.dumps(artifact.manifest.counts, sort_keys=True)}
    return found


def left_over(store: ArtifactStore, arguments: list[Any]) -> list[str]:
    """What stays after `artifacts gc` though no finished chain may leave it: claims, live leases,
    half-written files, which `gc` leaves alone for a day by default. `arguments` name the store.
    """
    gone = call_here("artifacts", "gc", "--delete", "--older-than", "0", *arguments)
    assert gone.returncode == 0, gone.stderr
    files = store.all_files("")
    found = [name for name in files if name.startswith("claims/") or name.endswith(".partial")]
    for name in files:
        folder, _, file = name.rpartition("/")
        if file == "lease.json" and holder_of(store, folder) is not None:
            found.append(name)
    return found


def until(ready: Callable[[], Any], run: subprocess.Popen, seconds: float = 900.0) -> bool:
    """Wait until something is so, or the run has ended. Returns whether it is so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready():
            return True
        if run.poll() is not None:
            return bool(ready())
        time.sleep(0.05)
    raise AssertionError("it hangs")
