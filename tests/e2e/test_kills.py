"""A chain to the student, killed three times, has the bytes of an undisturbed one. `make chaos`
does so at random moments, in every stage, a hundred times.
"""

from __future__ import annotations

import subprocess

import pytest

from pipeline.base.store import ArtifactStore
from tests.support import chaos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_killed_three_times_it_ends_with_the_same_bytes(smoke_store, tmp_path):
    """In `synthesize` all of it, in `encode` the stage's process, which the run survives, and in
    `distill` the command alone. Bug: make a finished shard again, or train from the beginning.
    """
    store, log = ArtifactStore(str(tmp_path / "store")), tmp_path / "log"
    arguments = ["--preset", "shapes-smoke", "--set", f"store={store.url}", "--until", "distill"]

    def count(pattern: str) -> int:
        return len(list((tmp_path / "store").glob(pattern)))

    def kill(run: subprocess.Popen, kind: str) -> None:
        assert chaos.until(lambda: kind in chaos.processes(run), run)
        chaos.kill(run, kind, chaos.processes(run)[kind][0])
        kept.update(chaos.finished_files(store))  # not before: the moment would pass
        assert not chaos.problems(store)

    kept: dict[str, str] = {}
    with chaos.running(["run", *arguments], log) as run:
        assert chaos.until(lambda: count("artifacts/synthesize/*/shards/*/*.json") >= 3, run)
        kill(run, "group")
    assert not count("artifacts/synthesize/*/manifest.json") and kept

    with chaos.running(["run", *arguments], log) as run:
        assert chaos.until(lambda: count("artifacts/encode/*/inputs.json"), run)
        kill(run, "coordinator")
        assert chaos.until(lambda: chaos.last_update(store, "distill"), run), log.read_text()
        saved = chaos.last_update(store, "distill")
        kill(run, "driver")
    assert "the stage is tried again (1 of 2)" in log.read_text()
    assert chaos.planned_start(arguments, "distill") >= saved

    with chaos.running(["run", *arguments], log) as run:
        assert run.wait() == 0, log.read_text()
    now = chaos.finished_files(store)
    assert {name: now.get(name) for name in kept} == kept
    made, undisturbed = chaos.made(store), chaos.made(ArtifactStore(str(smoke_store)))
    for stage in ("prompts", "synthesize", "encode", "distill"):
        assert made[stage] == undisturbed[stage], stage
    assert not chaos.left_over(store, arguments[:4])
