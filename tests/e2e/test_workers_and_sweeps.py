"""Ray Train with two workers, one of them killed in the middle; several configurations at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.command import artifact, call_here, start_until
from tests.support.tiny_sd3 import build_pipeline, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> tuple[Path, Path]:
    """Configuration and store with everything but the student."""
    folder = tmp_path_factory.mktemp("workers")
    config = write_config(
        folder,
        build_pipeline(folder / "model", t5=False),
        folder / "store",
        prompts={"count": 60, "samples_per_shard": 8},
        distill={"steps": 12, "precision": "float32", "checkpoint_every": 2},
    )
    result = call_here("run", "-c", config, "--until", "encode")
    assert result.returncode == 0, result.stderr
    return config, folder / "store"


def settings(store: Path, **distill: object) -> list[str]:
    values = {"store": store} | {f"distill.{name}": value for name, value in distill.items()}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def trace(store: Path) -> list[dict]:
    lines = (artifact(store, "distill") / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def train_workers() -> list[int]:
    """Process ids of Ray Train's workers on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"RayTrainWorker" in command:
                found.append(int(folder.name))
    return sorted(found)


def descends(pid: int, ancestor: int) -> bool:
    """Other tests' workers may run beside ours."""
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def test_a_killed_worker_of_two_does_not_stop_the_run(encoded, tmp_path):
    config, store = encoded
    alone, together = tmp_path / "alone", tmp_path / "together"
    for copy in (alone, together):
        subprocess.run(["cp", "-r", store, copy], check=True)
    result = call_here("distill", "-c", config, *settings(alone))
    assert result.returncode == 0, result.stderr
    sharded = settings(together, workers=2, shard_over=2, shard_teacher="true")
    process = start_until(
        lambda: list(together.glob("training/distill/*/checkpoint_*/state/*.safetensors")),
        *("distill", "-c", config, *sharded),
    )
    workers = [pid for pid in train_workers() if descends(pid, process.pid)]
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    one, two = trace(alone), trace(together)
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for expected, found in zip(one, two, strict=True):
        for name in ("student_loss", "discriminator_loss"):
            assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-4)
    last = max(together.glob("training/distill/*/checkpoint_*/work.json"))
    spent = json.loads(last.read_text())
    manifest = json.loads((artifact(together, "distill") / "manifest.json").read_text())
    assert 0 < manifest["device_hours"] == round(spent["device_hours"], 6)


def test_a_sweep_makes_an_artifact_for_each_combination(encoded, tmp_path):
    config, store = encoded
    copy = tmp_path / "store"
    subprocess.run(["cp", "-r", store, copy], check=True)
    table = tmp_path / "table.json"
    result = call_here(
        *("sweep", "distill", "-c", config, "--out", table, "--set", f"store={copy}"),
        *("--set", "distill.renoise.mean=0,1", "--set", "distill.steps=2"),
        ray=True,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(table.read_text())
    assert sorted(row["trial"] for row in rows) == ["renoise.mean=0", "renoise.mean=1"]
    made = {path.parent.name for path in copy.glob("artifacts/distill/*/manifest.json")}
    assert {row["artifact"] for row in rows} == made
    assert len({row["student_loss"] for row in rows}) == 2


def test_a_stopped_sweep_does_not_wait_for_its_trainings(encoded, tmp_path):
    config, store = encoded
    copy = tmp_path / "store"
    subprocess.run(["cp", "-r", store, copy], check=True)
    process = start_until(
        lambda: list(copy.glob("artifacts/distill/*/tensorboard/*")),
        *("sweep", "distill", "-c", config, "--set", f"store={copy}"),
        *("--set", "distill.renoise.mean=0,1", "--set", "distill.steps=100000"),
    )
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "to resume: ladd-pipeline sweep" in errors and "Traceback" not in errors
