"""Processes of the cluster are killed in the middle of a run, and the run goes on by itself."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.command import ROOT, artifact, call_here, start_until
from tests.support.tiny_sd3 import write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 12


def processes(title: str, below: int) -> list[psutil.Process]:
    """Ray's processes whose title begins so, among what a process has started."""
    found = []
    for process in psutil.Process(below).children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            if process.name() == title or process.cmdline()[0].startswith(title):
                found.append(process)
    return found


@contextlib.contextmanager
def killed(title: str, when: Callable[[], object] = lambda: True) -> Iterator[list[int]]:
    """Kill the first process of a title as soon as it is there and `when()`."""
    victims: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1) and not victims:
            if when() and (found := processes(title, psutil.Process().pid)):
                found[0].kill()
                victims.append(found[0].pid)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield victims
    finally:
        ended.set()
        watcher.join()


@pytest.fixture
def configured(tiny_sd3, tmp_path) -> tuple[Path, Path]:
    """Configuration and store."""
    store = tmp_path / "store"
    training = {"steps": STEPS, "precision": "float32", "checkpoint_every": 4}
    config = write_config(
        tmp_path, tiny_sd3, store, prompts={"count": 24, "samples_per_shard": 8}, distill=training
    )
    return config, store


def warnings(store: Path) -> str:
    events = [
        json.loads(line)
        for file in sorted(store.glob("runs/*/events.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return "\n".join(event["text"] for event in events if event["event"] == "warning")


def test_a_lost_coordinator_board_and_controller_do_not_end_the_run(configured):
    config, store = configured
    with (
        killed("ray::synthesize") as coordinator,
        killed("ray::ProgressBoard", lambda: list(store.glob("artifacts/prompts/*/*"))) as board,
        killed(
            "ray::TrainController", lambda: list(store.glob("training/distill/*/checkpoint_*"))
        ) as controller,
    ):
        result = call_here("run", "-c", config, "--until", "distill", ray=True)
    assert result.returncode == 0, result.stderr
    assert coordinator and board and controller
    text = warnings(store)
    assert "its process was killed or crashed; the stage is tried again (1 of 2)" in text
    assert "the controller of the training was lost; the stage is tried again (1 of 2)" in text
    lines = (artifact(store, "distill") / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, STEPS + 2))  # the head start, and the student's updates
    assert "Traceback" not in result.stderr and "ray::" not in result.stderr


def test_a_stage_that_is_lost_too_often_ends_the_run_in_one_sentence(configured):
    config, _ = configured
    chosen = ("-c", config, "--set", "ray.stage_retries=0")
    with killed("ray::synthesize") as coordinator:
        result = call_here("run", *chosen, "--until", "synthesize", ray=True)
    assert coordinator and result.returncode == 1
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "synthesize: its process was killed or crashed, 1 times in all" in said
    assert "to resume: ladd-pipeline run" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def surroundings(tmp_path) -> dict[str, Any]:
    """Where nobody would want to start a command: a folder that cannot be written, with modules
    named like ours and like Python's, more of them on Python's path, and a long temporary folder.
    """
    here, path = tmp_path / "here", tmp_path / "path"
    scratch = tmp_path / "a temporary folder" / ("x" * 100)
    scratch.mkdir(parents=True)
    ours = [f"{n}/__init__.py" for n in ("pipeline", "stages")] + ["schemas.py"]
    for folder, names in ((here, [*ours, "random.py", "ray.py"]), (path, ours)):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("raise SystemExit('a module of the user')\n")
    here.chmod(0o555)
    start = f"import runpy; runpy.run_path({str(ROOT / 'ladd_pipeline.py')!r})['main']()"
    return {
        "cwd": here,
        # As an installed command starts: the folder that it is started in is not on its path.
        "command": [sys.executable, "-P", "-c", start],
        "env": {"PYTHONPATH": str(path), "TMPDIR": str(scratch)},
    }


@pytest.mark.parametrize(("helper", "until"), [("gcs_server", "synthesize"), ("raylet", "distill")])
def test_a_ray_that_dies_is_started_again(configured, surroundings, helper, until):
    config, store = configured
    workers = ("--set", "synthesize.pool.workers=2")
    process = start_until(
        lambda: list(store.glob("artifacts/prompts/*/manifest.json")),
        *("run", "-c", config, "--until", until, *workers),
        **surroundings,
    )
    (victim,) = processes(helper, process.pid)
    victim.kill()
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "starting it again (1 of 2)" in errors
    assert "TMPDIR: " in errors and "too long for the sockets" in errors
    assert "Traceback" not in errors and "raylet.out" not in errors
    assert artifact(store, until)
