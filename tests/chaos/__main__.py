"""Kills processes of `shapes-smoke` chains at random moments until the log has enough of them; then
prints what the log says. A stopped chaos goes on from its log.

    python -m tests.chaos --kills 100 --folder /var/tmp/chaos [--s3-share 0.3] [--until eval]

Every chain runs until it is finished, whatever is killed. After each kill nothing may be marked
that is not there; a finished chain must have the bytes of one that nobody disturbed, and no file
that was finished at the time of a kill may have been made again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.base.store import ArtifactStore
from tests.support import chaos
from tests.support.command import call, call_here

_PRESET = ["--preset", "shapes-smoke"]
_POOLS = ["--set", "synthesize.pool.workers=2", "--set", "eval.pool.workers=2"]
"""A single worker on this machine is the process of its stage, and no actor."""
_TRAINED = ("distill", "dpo")
_LEAST_SECONDS = 8.0
"""Before it, a run has started Ray at most."""
_AFTER_SECONDS = 5.0
"""At most so long a process lives that is short-lived, and was killed less often than others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("chaos"))
    parser.add_argument("--s3-share", type=float, default=0.3, help="of the chains")
    parser.add_argument("--until", default="eval")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    options.folder = options.folder.resolve()  # the server has a working folder of its own
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "kills.jsonl"
    with contextlib.ExitStack() as stack:
        rows = _rows(log)
        if _kills(rows) < options.kills:
            reference = _undisturbed(options.folder, options.until)
            server = stack.enter_context(_server(options.folder)) if options.s3_share else None
        while _kills(rows) < options.kills:
            chain = len([row for row in rows if row["what"] == "chain"])
            is_s3 = random.Random(chain).random() < options.s3_share
            Chain(options, log, chain, server if is_s3 else None, reference).run()
            rows = _rows(log)
    print(_summary(rows))


class Chain:
    """One chain, killed until it is finished."""

    def __init__(
        self,
        options: argparse.Namespace,
        log: Path,
        number: int,
        server: str | None,
        reference: ArtifactStore,
    ) -> None:
        self.log, self.number, self.reference = log, number, reference
        self.output = options.folder / "output.txt"
        self.kind = "folder" if server is None else "s3"
        self.random = random.Random(time.time_ns())
        self.expected = float((options.folder / "seconds").read_text())
        self.finished: dict[str, Any] = {}
        self.kills = 0
        folder = options.folder / "store"
        shutil.rmtree(folder, ignore_errors=True)
        url = str(folder) if server is None else f"s3://chaos/{time.time_ns()}"
        self.store = ArtifactStore(url)
        self.arguments = [*_PRESET, "--set", f"store={url}", "--until", options.until, *_POOLS]

    def run(self) -> None:
        """Start the command again and again until it has made everything; then look at it."""
        while True:
            with chaos.running(["run", *self.arguments], self.output) as run:
                code = self._live(run)
            if code == 0:
                break
            # A stage whose process was lost too often ends with code 1, and says so.
            assert code < 0 or code == 1, f"exit code {code}: see {self.output}"
        made, expected = chaos.made(self.store), chaos.made(self.reference)
        differing = sorted(
            f"{stage}/{name}"
            for stage, files in expected.items()
            for name in files.keys() | made.get(stage, {}).keys()
            if files.get(name) != made.get(stage, {}).get(name)
        )
        now = chaos.finished_files(self.store)
        again = sorted(name for name, when in self.finished.items() if now.get(name) != when)
        gone = call_here("artifacts", "gc", "--delete", *self.arguments[:4])
        checked = call_here("artifacts", "verify", *self.arguments[:4])
        left = chaos.left_over(self.store)
        self._note(what="chain", kills=self.kills, differing=differing, made_again=again, left=left)
        assert not differing and not again and not left, (differing, again, left)
        assert gone.returncode == checked.returncode == 0, gone.stderr + checked.stderr

    def _live(self, run: subprocess.Popen) -> int:
        """Let a run live, and kill something of it, or several things, at random moments. Returns
        its exit code.
        """
        while True:
            wanted = self._rarest(chaos.KINDS)
            wait = self.random.uniform(0, self.expected)
            deadline = time.monotonic() + max(wait, _LEAST_SECONDS)
            while run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                if chaos.KINDS[wanted] and wanted in chaos.processes(run):
                    time.sleep(self.random.uniform(0, _AFTER_SECONDS))
                    break
            if run.poll() is not None:
                return run.returncode
            found = chaos.processes(run)
            kind = self._rarest(found)
            before = {stage: chaos.last_update(self.store, stage) for stage in _TRAINED}
            self.finished |= chaos.finished_files(self.store)
            with contextlib.suppress(Exception):  # it may have ended by itself
                title = chaos.kill(run, kind, self.random.choice(found[kind]))
                self._killed(run, kind, title, before)
            if run.poll() is not None:
                return run.returncode

    def _rarest(self, kinds: Collection[str]) -> str:
        """The kind of which the log has the fewest kills; one of them at random."""
        killed = Counter(row["kind"] for row in _rows(self.log) if row["what"] == "kill")
        fewest = min(killed[kind] for kind in kinds)
        return self.random.choice([kind for kind in kinds if killed[kind] == fewest])

    def _killed(self, run: subprocess.Popen, kind: str, title: str, before: dict[str, int]) -> None:
        self.kills += 1
        wrong = chaos.problems(self.store)
        starts = {}
        if kind in ("driver", "group"):
            for stage in _TRAINED:
                start = chaos.planned_start(self.arguments, stage)
                if start is not None:
                    starts[stage] = start
                    if start < before[stage]:
                        wrong.append(f"{stage} goes on at {start}, not at {before[stage]}")
        done = sorted(chaos.made(self.store))
        self._note(
            what="kill", kind=kind, title=title, done=done, saved=before, starts=starts, wrong=wrong
        )

    def _note(self, **row: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(self.log, "a") as file:
            file.write(json.dumps({"time": stamp, "chain": self.number, "on": self.kind, **row}))
            file.write("\n")


def _undisturbed(folder: Path, until: str) -> ArtifactStore:
    """The store of a chain that nobody disturbs, made once; `seconds` says how long it took."""
    store = ArtifactStore(str(folder / "undisturbed"))
    if not (folder / "seconds").exists():
        started = time.monotonic()
        result = call("run", *_PRESET, "--set", f"store={store.url}", "--until", until)
        assert result.returncode == 0, result.stderr
        (folder / "seconds").write_text(f"{time.monotonic() - started:.1f}")
    return store


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """SeaweedFS with a bucket for the chains; its keys are in the environment from here on."""
    import s3fs

    from tests.support.s3_servers import KEYS, environment_of, seaweed_server

    data = folder / f"weed-{os.getpid()}"
    data.mkdir()
    with seaweed_server(data) as address:
        os.environ |= environment_of(address, KEYS["writer"])
        s3fs.S3FileSystem(endpoint_url=address).mkdir("chaos")
        yield address
    shutil.rmtree(data)


def _rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _kills(rows: list[dict[str, Any]]) -> int:
    return len([row for row in rows if row["what"] == "kill"])


def _summary(rows: list[dict[str, Any]]) -> str:
    """A table of kills by kind and by what was done by then, and the count of what went wrong."""
    kills = [row for row in rows if row["what"] == "kill"]
    chains = [row for row in rows if row["what"] == "chain"]
    table = Counter((row["kind"], row["on"]) for row in kills)
    lines = ["| killed | on a folder | on S3 |", "|---|---:|---:|"]
    for kind in chaos.KINDS:
        lines.append(f"| {kind} | {table[kind, 'folder']} | {table[kind, 's3']} |")
    stages = Counter(_under_way(row["done"]) for row in kills)
    lines += ["", "| first stage that was not finished | kills |", "|---|---:|"]
    lines += [f"| {stage} | {count} |" for stage, count in stages.items()]
    wrong = sum(len(row["wrong"]) for row in kills)
    spoilt = [row for row in chains if row["differing"] or row["made_again"] or row["left"]]
    lines += ["", f"{len(kills)} kills, {wrong} things found wrong after one;"]
    lines += [f"{len(chains)} finished chains, {len(spoilt)} of them not as they should be."]
    return "\n".join(lines)


def _under_way(done: list[str]) -> str:
    order = ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval")
    return next((stage for stage in order if stage not in done), "none")


if __name__ == "__main__":
    main()
