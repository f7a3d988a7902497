"""Ctrl-C and SIGTERM in each stage: a sentence, an exit code, nothing half written, and the same
bytes after the run that goes on. A part of `make proofs-storage`.
"""

from __future__ import annotations

import shutil
import signal

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES
from tests.support import chaos

PRESET = ["--preset", "shapes-smoke"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_in_any_stage(smoke_store, tmp_path, stage, number):
    folder, log = tmp_path / "store", tmp_path / "log"
    before = list(STAGES)[: list(STAGES).index(stage)]
    for made in before:
        shutil.copytree(smoke_store / "artifacts" / made, folder / "artifacts" / made)
    arguments = ["run", *PRESET, "--set", f"store={folder}", "--until", stage]
    with chaos.running(arguments, log) as run:
        assert chaos.until(lambda: list(folder.glob(f"artifacts/{stage}/*/inputs.json")), run)
        run.send_signal(number)
        code = run.wait(timeout=120)
    said = log.read_text()
    assert code == 128 + number, said
    assert "to resume: ladd-pipeline run" in said and "Traceback" not in said
    store = ArtifactStore(str(folder))
    assert not chaos.problems(store) and stage not in chaos.made(store)
    with chaos.running(arguments, log) as run:
        assert run.wait() == 0, log.read_text()
    undisturbed = chaos.made(ArtifactStore(str(smoke_store)))
    assert chaos.made(store)[stage] == undisturbed[stage]
    assert not chaos.left_over(store, arguments[1:5])
