"""Scratch folders of processes that were killed are removed, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from pipeline.base import scratch

MAKE = """
import tempfile, time
from pipeline.base.scratch import scratch_prefix
print(tempfile.mkdtemp(prefix=scratch_prefix("checkpoint")), flush=True)
time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_removed_and_nothing_else(temporary):
    """Bug: leave a checkpoint of 30 GB behind with every kill."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    killed, alive = (process.stdout.readline().strip() for process in started)
    mine = tempfile.mkdtemp(prefix=scratch.scratch_prefix("file"))
    others = [temporary / "ladd-checkpoint-x", temporary / "tmpabc"]
    elsewhere = os.path.basename(killed).replace(scratch._place(), "0" * 8)
    others.append(temporary / elsewhere)
    for folder in others:
        folder.mkdir()
    started[0].kill()
    started[0].wait()
    scratch.remove_left_over()
    left = {str(path) for path in temporary.iterdir()}
    assert left == {alive, mine, *map(str, others)}
    started[1].kill()
    started[1].wait()
    scratch.remove_left_over()
    assert not os.path.exists(alive) and os.path.exists(mine)
