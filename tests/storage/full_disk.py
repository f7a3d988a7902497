"""A disk that fills up under a run: a file system of a few hundred kilobytes. Needs root for the
mount. A part of `make proofs-storage`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.base.store import ArtifactStore
from tests.support import chaos
from tests.support.command import call

UNTIL_FULL, ENOUGH = "400k", "100m"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, UNTIL_FULL)
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(folder: Path, size: str, *options: str) -> None:
    chosen = ",".join([f"size={size}", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", folder], check=True)


def test_a_full_disk_ends_the_run_in_a_sentence_and_the_next_goes_on(small_disk, smoke_store):
    url = str(small_disk / "store")
    arguments = ["run", "--preset", "shapes-smoke", "--set", f"store={url}", "--until", "encode"]
    arguments += ["--set", "costs.check_room=false"]
    full = call(*arguments)
    assert full.returncode == 4, full.stderr
    assert "the disk is full; free some space" in full.stderr
    assert "Traceback" not in full.stderr
    store = ArtifactStore(url)
    assert not chaos.problems(store)
    mount(small_disk, ENOUGH, "remount")
    again = call(*arguments)
    assert again.returncode == 0, again.stderr
    undisturbed = chaos.made(ArtifactStore(str(smoke_store)))
    made = chaos.made(store)
    assert {"prompts", "synthesize", "encode"} <= made.keys()
    assert all(made[stage] == undisturbed[stage] for stage in made)


def test_a_run_that_will_not_fit_is_refused_before_it_starts(small_disk):
    url = str(small_disk / "store")
    refused = call("run", "--preset", "shapes-smoke", "--set", f"store={url}", "--until", "encode")
    assert refused.returncode == 2, refused.stderr
    assert "GB left; make room" in refused.stderr and not (small_disk / "store").exists()
