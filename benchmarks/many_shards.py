"""What an artifact of many shards on an S3 server costs to plan, look at, resume and verify:
seconds, memory and requests, each in a process of its own.

    python -m benchmarks.many_shards [--shards 1000 10000 100000] [--out docs/many-shards.json]

Starts SeaweedFS on the loopback address. A shard is one file of a few bytes: the number counts.
Their files are copied in by SeaweedFS's own tool; markers, segments and manifests are written by
the code that runs write them with.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.markers import Folding, finished_shards
from pipeline.base.stage import files_of
from pipeline.base.store import ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.planning import Selection, make_plan
from pipeline.stage_task import environment
from schemas.manifest import FileEntry, Manifest
from schemas.records import ShardStats

_PRESET = "shapes-smoke"
_ENDINGS = (".tar",)
_LOOSE = 500
"""Markers that are in no segment yet when a run is stopped."""


def stats_of(number: int) -> ShardStats:
    """What a run notes of a shard."""
    shard = f"shards/64x64/{number:06d}"
    files = {f"{shard}{ending}": content_of(number, ending) for ending in _ENDINGS}
    stats = ShardStats(
        shard=shard,
        counts={"ok": 64, "filtered": 0, "failed": 0},
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        sizes={name: len(content) for name, content in files.items()},
        seconds=12.345,
        details={"failures": {}},
    )
    return stats.model_copy(update={"seal": stats.own_seal()})


def content_of(number: int, ending: str) -> bytes:
    return f"{number:06d}{ending}\n".encode()


def keys(store: ArtifactStore) -> dict[str, str]:
    """The keys of the configuration's artifacts."""
    config = open_config(None, _PRESET, [f"store={store.url}"])
    return {stage.name: stage.key for stage in make_plan(config, store, Selection())}


def fill(store: ArtifactStore, count: int) -> None:
    """Bring the files of so many shards into the store."""
    folder = store.folder("synthesize", keys(store)["synthesize"])
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) / "shards" / "64x64"
        where.mkdir(parents=True)
        for number in range(count):
            for ending in _ENDINGS:
                (where / f"{number:06d}{ending}").write_bytes(content_of(number, ending))
        filer, weed = _filer()
        target = f"http://127.0.0.1:{filer}/buckets/{store.path(folder)}/"
        command = [weed, "filer.copy", "-c=16", str(Path(scratch) / "shards"), target]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def _filer() -> tuple[str, str]:
    """The ports of SeaweedFS's filer as its tool takes them, and the tool."""
    for child in psutil.Process().children():
        options = dict(option.split("=", 1) for option in child.cmdline() if "=" in option)
        if "-filer.port" in options:
            return f"{options['-filer.port']}.{options['-filer.port.grpc']}", child.exe()
    raise AssertionError("SeaweedFS is not running")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of a document."""
    lines = [
        "| shards | what | seconds | of CPU | peak MB | requests |",
        "|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        requests = ", ".join(f"{count:,} {name}" for name, count in row["requests"].items())
        figures = [row[name] for name in ("what", "seconds", "cpu_seconds", "peak_mb")]
        cells = [f"{row['shards']:,}", *map(str, figures), requests]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mark(store: ArtifactStore, count: int) -> None:
    """Leave markers as a run that was stopped after `count` shards: most of them folded."""
    folder = store.folder("synthesize", keys(store)["synthesize"])
    folding = Folding(store, folder, lambda: True)
    for number in range(count):
        stats = stats_of(number)
        if number >= count - _LOOSE:
            store.write(f"{folder}/{stats.shard}.json", stats.model_dump_json(indent=2).encode())
        folding.add(stats)


def commit(store: ArtifactStore, count: int) -> None:
    """Commit `prompts` and `synthesize` as the engine does."""
    for stage in ("prompts", "synthesize"):
        key = keys(store)[stage]
        shards = [stats_of(number) for number in range(count)]
        files = files_of(shards) if stage == "synthesize" else {}
        manifest = Manifest(
            stage=stage,
            key=key,
            version=1,
            inputs=[],
            identity={},
            config={},
            environment=environment(),
            counts={"ok": 64 * count},
            details={"shards": [stats.shard for stats in shards]},
            files=[
                FileEntry(path=path, size=size, sha256=digest)
                for path, (size, digest) in sorted(files.items())
            ],
            started="2026-01-01T00:00:00+00:00",
            seconds=1.0,
        )
        store.commit(manifest)


def resume(store: ArtifactStore) -> None:
    folder = store.folder("synthesize", keys(store)["synthesize"])
    print(len(finished_shards(store, folder)), "shards are done")


def command(store: ArtifactStore, *arguments: str) -> None:
    from pipeline.cli import main

    sys.argv = ["ladd-pipeline", *arguments, "--preset", _PRESET, "--set", f"store={store.url}"]
    with contextlib.suppress(SystemExit):
        main()


MEASURED: dict[str, Callable[[ArtifactStore], None]] = {
    "resume": resume,
    "status": lambda store: command(store, "status"),
    "plan, half done": lambda store: command(store, "plan"),
    "plan": lambda store: command(store, "plan"),
    "status, done": lambda store: command(store, "status"),
    "verify": lambda store: command(
        store, "artifacts", "verify", "synthesize/" + keys(store)["synthesize"]
    ),
}
HALF_DONE = ("resume", "status", "plan, half done")


def measure(what: str, store: ArtifactStore) -> dict[str, Any]:
    """Do one thing in this process; returns what it took."""
    requests: Counter[str] = Counter()

    def count(model: Any, **_: Any) -> None:
        requests[model.name] += 1

    store.filesystem.s3.meta.events.register("before-call.s3", count)
    started, worked = time.perf_counter(), time.process_time()
    MEASURED[what](store)
    return {
        "what": what,
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - worked, 2),
        "peak_mb": _peak_mb(),
        "requests": dict(sorted(requests.items())),
    }


def _peak_mb() -> int:
    """Most memory of this process. `getrusage` would count that of its parent before the start."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["VmHWM"].split()[0]) / 1024)


def in_a_process(what: str, store: ArtifactStore) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--measure", what, "--store", store.url]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, ArtifactStore(options.store))))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    rows = []
    for count, store, copied in stores(options.shards):
        for state, names in (
            (mark, HALF_DONE),
            (commit, [name for name in MEASURED if name not in HALF_DONE]),
        ):
            state(store, count)
            for name in names:
                row = {"shards": count, **in_a_process(name, store)}
                rows.append(row)
                print(json.dumps(row), flush=True)
        print(f"{count} shards: files copied in {copied:.0f} s", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def stores(counts: list[int]) -> Any:
    """Yield stores with the files of so many shards, one after another on one server."""
    import s3fs

    from tests.support.s3_servers import KEYS, environment_of, seaweed_server

    base = Path(tempfile.mkdtemp(prefix="many-shards-"))
    try:
        with seaweed_server(base) as address:
            os.environ |= environment_of(address, KEYS["writer"])
            for count in counts:
                bucket = f"many-{count}"
                s3fs.S3FileSystem(endpoint_url=address).mkdir(bucket)
                store = ArtifactStore(f"s3://{bucket}/store")
                started = time.perf_counter()
                fill(store, count)
                yield count, store, time.perf_counter() - started
                s3fs.S3FileSystem.clear_instance_cache()
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
