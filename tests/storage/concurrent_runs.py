"""Several runs of one configuration on one store, started at the same moment: they divide the
shards, wait for what only one can make, and end with the same artifacts.

`make proofs-storage` runs it: two runs with their own Ray on SeaweedFS, and eight without Ray.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES
from tests.support.command import COMMAND, ROOT, call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

NOTING = """
import json, os, runpy, time
from pipeline.base.shards import ShardWriter
begin, commit = ShardWriter.__init__, ShardWriter.commit
def noted_begin(self, *arguments):
    begin(self, *arguments)
    self.cpu = time.process_time()
def noted_commit(self, *arguments):
    stats = commit(self, *arguments)
    row = [self._artifact_folder.split("/")[1], stats.shard, time.process_time() - self.cpu]
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps(row) + chr(10))
    return stats
ShardWriter.__init__, ShardWriter.commit = noted_begin, noted_commit
runpy.run_module("tests.support.without_ray", run_name="__main__")
"""
"""A run without Ray that notes which shards it makes, and the CPU seconds that each has taken."""


def run_together(command: list[str], count: int, store: str, until: str, logs: Path) -> list[str]:
    """Start runs at once and wait for all; returns what each has printed. All must end with 0."""
    arguments = ["run", "--preset", "shapes-smoke", "--until", until, "--set", f"store={store}"]
    runs = []
    for number in range(count):
        with open(logs / f"{number}.txt", "wb") as log:
            runs.append(
                subprocess.Popen(
                    [*command, *arguments],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "NOTES": str(logs / "notes")},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    codes = [run.wait() for run in runs]
    texts = [(logs / f"{number}.txt").read_text() for number in range(count)]
    assert codes == [0] * count, "\n".join(texts)
    return texts


def rows_of(text: str) -> dict[str, tuple[str, str]]:
    """What each stage did, and its key, from the table at the end of a run."""
    rows = (line.split() for line in text.replace("│", " ").splitlines())
    return {row[0]: (row[1], row[-1]) for row in rows if row and row[0] in STAGES and len(row) > 2}


def noted(logs: Path, stage: str) -> tuple[list[str], float]:
    """The shards of a stage that runs have made, and the CPU seconds that these took in all."""
    rows = [json.loads(line) for line in (logs / "notes").read_text().splitlines()]
    mine = [(shard, seconds) for name, shard, seconds in rows if name == stage]
    return sorted(shard for shard, _ in mine), sum(seconds for _, seconds in mine)


def check(store: ArtifactStore, texts: list[str], stages: list[str]) -> None:
    """Each artifact is committed once, under one key, by one of the runs; nothing is left."""
    tables = [rows_of(text) for text in texts]
    for stage in stages:
        assert {table[stage][1] for table in tables} == {*store.folders(f"artifacts/{stage}")}
        assert [table[stage][0] for table in tables].count("ran") == 1, stage
    assert store.list("claims") == {}


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_eight_runs_make_every_shard_once(place, bucket, tmp_path, capsys):
    """Together they take the device time of one: no shard is made twice."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    work = {}
    for logs, count in ((alone, 1), (together, 8)):
        logs.mkdir()
        url = f"{bucket}/{count}" if place == "bucket" else str(logs / "store")
        texts = run_together([sys.executable, "-c", NOTING], count, url, "encode", logs)
        check(ArtifactStore(url), texts, ["prompts", "synthesize", "encode"])
        work[count] = {stage: noted(logs, stage) for stage in ("synthesize", "encode")}
    for stage, (shards, _) in work[8].items():
        assert shards == work[1][stage][0] and len(set(shards)) == len(shards), stage
    (shards, one), (_, eight) = work[1]["synthesize"], work[8]["synthesize"]
    with capsys.disabled():
        print(f"\n{place}: {len(shards)} shards of synthesize; CPU seconds of one run {one:.1f}, ")
        print(f"of eight together {eight:.1f}")
    assert eight < 1.2 * one


def test_two_runs_with_their_own_ray_make_the_whole_chain_once(bucket, tmp_path):
    store = ArtifactStore(bucket)
    texts = run_together(COMMAND, 2, bucket, "eval", tmp_path)
    check(store, texts, list(STAGES))
    checked = call(
        *("artifacts", "verify", "--deep", "--preset", "shapes-smoke", "--set", f"store={bucket}")
    )
    assert checked.returncode == 0, checked.stderr
