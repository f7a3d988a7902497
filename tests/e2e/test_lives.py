"""The life of a training: killed on Ray, gone on with there, cut short, decayed, and begun again
from its student. The decayed result, killed in trunk and tail, and the one begun again, killed too,
have the bytes of those that were left alone, without Ray; tests/unit/stages/test_distill.py
compares the others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, call_here, run_and_kill
from tests.support.made_files import digests
from tests.support.tiny_sd3 import build_pipeline, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LOOK = {
    "every": 4,
    "prompts": 3,
    "scores": [{"name": "layout"}],
    "features": {"name": "judge_features"},
}
LENGTHS = {
    "precision": "float32",
    "cpus_per_worker": 1,  # as without Ray: another number of threads sums in another order
    "checkpoint_every": 2,
    "keep_every": 4,
    "sample_every": 4,
    "look": LOOK,
}
WHOLE, HALF = ("distill.steps=11",), ("distill.steps=9",)
"""12 updates, and 10: the sample grid behind the last is drawn only for this length."""
DECAYED = (*WHOLE, "distill.decay_share=0.5")
BEGUN_AGAIN = ("distill.steps=5", "distill.init=latest")


def settings(store: Path, *values: str) -> list[str]:
    return [part for value in (f"store={store}", *values) for part in ("--set", value)]


def made(store: Path) -> dict[str, Path]:
    """The folders of students by key."""
    return {
        path.parent.name: path.parent for path in store.glob("artifacts/distill/*/manifest.json")
    }


def planned(config: Path, store: Path, *values: str) -> str:
    """What the plan says of the student."""
    result = call_here("plan", "--json", "-c", config, *settings(store, *values))
    return next(row["why"] for row in json.loads(result.stdout) if row["stage"] == "distill")


def run(config: Path, *options: object, ray: bool = False) -> None:
    result = call_here("distill", *options, "-c", config, ray=ray)
    assert result.returncode == 0, result.stderr


def train_and_die(config: Path, *options: object, lives: int) -> None:
    """Train without Ray in a process that SIGKILL ends right after so many checkpoints."""
    command = [sys.executable, "-m", "tests.support.without_ray", "distill", *options, "-c", config]
    died = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"LIVES": str(lives)},
        timeout=600,
    )
    assert died.returncode == -signal.SIGKILL


def test_a_training_killed_and_divided_has_the_bytes_of_one_left_alone(tmp_path):
    model = build_pipeline(tmp_path / "model", t5=False)
    config = write_config(tmp_path, model, tmp_path / "store", distill=LENGTHS)
    result = call_here("run", "-c", config, "--until", "encode")
    assert result.returncode == 0, result.stderr
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "store", parts)

    run_and_kill(
        ["distill", "-c", config, *settings(parts, *WHOLE)],
        lambda: any(
            "checkpoint_000000002" in path.read_text()
            for path in parts.glob("training/distill/*/checkpoint_manager_snapshot.json")
        ),
    )
    assert not made(parts)
    assert re.search(r"; continues at update ([2468]|10) of 12$", planned(config, parts, *WHOLE))
    run(config, *settings(parts, *WHOLE), ray=True)
    assert "; takes update 10 of the training " in planned(config, parts, *HALF)
    run(config, "export", "--step", 9, *settings(parts))
    # The first two checkpoints are the trunk's.
    train_and_die(config, *settings(parts, *DECAYED), lives=3)
    assert re.search(r"; continues at update 8 of 12$", planned(config, parts, *DECAYED))
    run(config, *settings(parts, *DECAYED), ray=True)
    train_and_die(config, *settings(parts, *BEGUN_AGAIN), lives=1)
    run(config, *settings(parts, *BEGUN_AGAIN))
    refused = call_here("distill", "export", "--step", 4, "-c", config, *settings(parts))
    assert refused.returncode == 4 and "for 4 steps, but for 3, " in refused.stderr

    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "store", alone)
    for values in (DECAYED, BEGUN_AGAIN):
        run(config, *settings(alone, *values))
    undisturbed = made(alone)
    assert len(undisturbed) == 2 and len(made(parts)) == 4
    for key, folder in undisturbed.items():
        assert digests(made(parts)[key]) == digests(folder)
