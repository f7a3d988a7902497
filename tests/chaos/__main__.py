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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES
from tests.support import chaos
from tests.support.command import call, call_here

_PRESET = ["--preset", "shapes-smoke"]
_POOLED = ("synthesize", "eval")
"""Their workers are two actors; a single worker on this machine is the process of its stage."""
_TRAINED = ("distill", "dpo")
_SECONDS = "seconds.json"
_START_SECONDS = 8.0
"""A run takes about as long to start Ray, and until it looks at its first stage."""
_TARGETS = [
    (stage, kind)
    for stage in STAGES
    for kind in chaos.KINDS
    if not (kind == "actor" and stage not in _POOLED)
    and not (kind in ("training worker", "controller") and stage not in _TRAINED)
]
"""What can be killed in which stage."""


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
        if len(_rows(log, "kill")) < options.kills:
            reference = _undisturbed(options.folder, options.until)
            server = stack.enter_context(_server(options.folder)) if options.s3_share else None
        while len(_rows(log, "kill")) < options.kills:
            chain = len(_rows(log, "chain"))
            is_s3 = random.Random(chain).random() < options.s3_share
            Chain(options, log, chain, server if is_s3 else None, reference).run()
    print(_summary(_rows(log, "kill"), _rows(log, "chain")))


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
        self.seconds: dict[str, float] = json.loads((options.folder / _SECONDS).read_text())
        self.finished: dict[str, Any] = {}
        self.kills = 0
        folder = options.folder / "store"
        shutil.rmtree(folder, ignore_errors=True)
        url = str(folder) if server is None else f"s3://chaos/{time.time_ns()}"
        self.store = ArtifactStore(url)
        self.arguments = [*_PRESET, "--set", f"store={url}", "--until", options.until]
        for stage in _POOLED:
            self.arguments += ["--set", f"{stage}.pool.workers=2"]

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
        left = chaos.left_over(self.store, self.arguments[:4])
        checked = call_here("artifacts", "verify", *self.arguments[:4])
        self._note(what="chain", kills=self.kills, differing=differing, made_again=again, left=left)
        assert not differing and not again and not left, (differing, again, left)
        assert checked.returncode == 0, checked.stderr

    def _live(self, run: subprocess.Popen) -> int:
        """Let a run live, and kill something of it, or several things, at random moments. Returns
        its exit code.
        """
        while run.poll() is None:
            target = self._due(chaos.under_way(self.store))
            if target is None:
                return run.wait()
            stage, kind = target
            if not self._waited(run, stage, kind):
                continue
            found = chaos.processes(run)
            if kind not in found:  # it has ended meanwhile
                kind = self.random.choice(sorted(found))
            before = {stage: chaos.last_update(self.store, stage) for stage in _TRAINED}
            self.finished |= chaos.finished_files(self.store)
            with contextlib.suppress(psutil.Error, ProcessLookupError):  # it ends by itself
                stage = chaos.under_way(self.store)
                title = chaos.kill(run, kind, self.random.choice(found[kind]))
                self._killed(run, kind, {"title": title, "stage": stage, "saved": before})
        return run.returncode

    def _due(self, now: str) -> tuple[str, str] | None:
        """What is to be killed next in this chain: in the first stage of which the log has too few
        kills, what it has least. None if all that comes was killed more often than the mean.
        """
        kills = _rows(self.log, "kill")
        killed = Counter((row["stage"], row["kind"]) for row in kills)
        order = [*STAGES, chaos.NONE]
        for stage in order[order.index(now) :]:
            there = [one for one in _TARGETS if one[0] == stage]
            rarest = min(there, key=lambda one: (killed[one], self.random.random()), default=None)
            if rarest is not None and killed[rarest] <= len(kills) / len(_TARGETS):
                return rarest
        return None

    def _waited(self, run: subprocess.Popen, stage: str, kind: str) -> bool:
        """Wait for a random moment of a stage, from when it has a process of this kind. Returns
        False if the run has ended by then, or the stage had no such process.
        """
        started, order = time.monotonic(), [*STAGES, chaos.NONE]
        while (now := chaos.under_way(self.store)) != stage or kind not in chaos.processes(run):
            if run.poll() is not None or order.index(now) > order.index(stage):
                return False
            time.sleep(0.3)
        seconds = self.seconds.get(stage, 0.0)
        if time.monotonic() < started + 1:  # the stage, or what a killed run left of it, comes yet
            seconds += _START_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(self.random.uniform(0, seconds))
        return run.poll() is None

    def _killed(self, run: subprocess.Popen, kind: str, facts: dict[str, Any]) -> None:
        self.kills += 1
        wrong, starts = chaos.problems(self.store), {}
        if kind in ("driver", "group"):
            for stage, saved in facts["saved"].items():
                start = chaos.planned_start(self.arguments, stage)
                if start is not None:
                    starts[stage] = start
                    if start < saved:
                        wrong.append(f"{stage} goes on at {start}, not at {saved}")
        self._note(what="kill", kind=kind, **facts, starts=starts, wrong=wrong)

    def _note(self, **row: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(self.log, "a") as file:
            file.write(json.dumps({"time": stamp, "chain": self.number, "on": self.kind, **row}))
            file.write("\n")


def _undisturbed(folder: Path, until: str) -> ArtifactStore:
    """The store of a chain that nobody disturbs, made once, and how long its stages took."""
    store = ArtifactStore(str(folder / "undisturbed"))
    if not (folder / _SECONDS).exists():
        result = call("run", *_PRESET, "--set", f"store={store.url}", "--until", until)
        assert result.returncode == 0, result.stderr
        took = {}
        for stage in STAGES:
            for key in store.folders(f"artifacts/{stage}"):
                if (artifact := store.find(stage, key)) is not None:
                    took[stage] = artifact.manifest.seconds
        (folder / _SECONDS).write_text(json.dumps(took))
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


def _rows(log: Path, what: str) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [row for row in map(json.loads, lines) if row["what"] == what]


def _summary(kills: list[dict[str, Any]], chains: list[dict[str, Any]]) -> str:
    """A table of kills by kind and by stage, and the count of what went wrong."""
    stages = [*STAGES, chaos.NONE]
    where = Counter((row["kind"], row["on"]) for row in kills)
    when = Counter((row["kind"], row["stage"]) for row in kills)
    lines = ["| killed | on a folder | on S3 | " + " | ".join(stages) + " |"]
    lines.append("|---" + "|---:" * (2 + len(stages)) + "|")
    for kind in chaos.KINDS:
        counts = [where[kind, "folder"], where[kind, "s3"], *(when[kind, one] for one in stages)]
        lines.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    wrong = sum(len(row["wrong"]) for row in kills)
    spoilt = [row for row in chains if row["differing"] or row["made_again"] or row["left"]]
    lines += ["", f"{len(kills)} kills, {wrong} things found wrong after one;"]
    lines += [f"{len(chains)} finished chains, {len(spoilt)} of them not as they should be."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
