"""Each tracker against its own file or offline mode; what fails is left out, and says no secret."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.base.store import ArtifactStore
from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from stages.training import trackers
from stages.training.trackers import Trackers, check_trackers
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config


def opened(folder: Path, tracker, *, done: int = 0, said: list[str] | None = None) -> Trackers:
    config = make_tiny_config(folder, folder, trackers=[tracker])
    said = [] if said is None else said
    context = make_context("distill", config, ArtifactStore(str(folder)), warn=said.append)
    return Trackers(context, done)


def train_twice(folder: Path, tracker) -> None:
    """Updates 1 to 3, a checkpoint after the second of which is all that a second start has."""
    said: list[str] = []
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        start = opened(folder, tracker, done=done, said=said)
        for step in steps:
            start.log(step, {"loss": 1 / step, "memory_gb": 2.0})
        start.publish()
        start.close()
    assert said == []


def test_tensorboard_shows_the_updates_of_a_resumed_training_once(tmp_path):
    train_twice(tmp_path, "tensorboard")
    board = EventAccumulator(str(tmp_path / "artifacts/distill/k/tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]
    assert board.Scalars("memory_gb")[0].value == 2


@pytest.mark.slow
def test_mlflow_shows_the_updates_of_a_resumed_training_once(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    train_twice(tmp_path, {"kind": "mlflow", "uri": uri, "experiment": "mine"})
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(s, 1 / s) for s in (1, 2, 3, 4)]
    assert run.data.params["discriminator.channels"] == "8"
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_keeps_each_start_of_a_training_under_one_id(tmp_path, monkeypatch):
    """Offline. Which of two values of an update stays is decided by W&B when it uploads them."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train_twice(tmp_path, {"kind": "wandb", "project": "mine", "mode": "offline"})
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-distill-k.wandb"))
    assert [[step for step, _ in history(file)] for file in files] == [[1, 2, 3], [3, 4]]
    assert history(files[1])[1] == (4, 0.25)


def history(file: Path) -> list[tuple[int, float]]:
    """Step and loss of each row of an offline run, whose file another process ends."""
    deadline = time.monotonic() + 30
    while not ((records := wandb_records(file)) and records[-1].HasField("exit")):
        assert time.monotonic() < deadline, "the file has no end"
        time.sleep(0.05)
    rows = []
    for history in (record.history for record in records if record.HasField("history")):
        items = {item.key or item.nested_key[0]: item.value_json for item in history.item}
        rows.append((history.step.num, json.loads(items["loss"])))
    return rows


def wandb_records(file: Path) -> list[Any]:
    """A log in LevelDB's format behind 7 bytes: blocks of 32 KiB, records in one or more parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, records, place, part = file.read_bytes(), [], 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


class Broken:
    """A tracker whose service does not answer, and says so with a key in its words."""

    def __init__(self, *_: object) -> None:
        pass

    def log(self, *_: object) -> None:
        raise ConnectionError("no answer from https://me:pass@host/?key=abcd1234 today")


def test_a_tracker_that_fails_is_left_out_with_one_warning_that_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers._OPEN, "wandb", Broken)
    monkeypatch.setenv("WANDB_API_KEY", "abcd1234")
    said: list[str] = []
    start = opened(tmp_path, "wandb", said=said)
    for step in (1, 2):
        start.log(step, {"loss": 1.0})
    start.close()
    (text,) = said
    assert text == (
        "wandb gets no more curves of this training, which continues: "
        "ConnectionError: no answer from https://host/ today"
    )


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("no API key configured")

    monkeypatch.setitem(trackers._OPEN, "wandb", refuse)
    said: list[str] = []
    opened(tmp_path, "wandb", said=said).log(1, {"loss": 1.0})
    assert len(said) == 1 and "no API key configured" in said[0]


def test_a_missing_package_is_named_before_anything_starts(tmp_path, monkeypatch):
    config = make_tiny_config(tmp_path, tmp_path, trackers=["tensorboard", "mlflow"])
    check_trackers(config)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackers: mlflow is not installed; `pip install mlflow"):
        check_trackers(config)


def test_a_password_in_a_trackers_address_is_refused(tmp_path):
    content = make_tiny_config(tmp_path, tmp_path).model_dump(mode="json")
    content["trackers"] = [{"kind": "mlflow", "uri": "https://me:pass@host"}]
    with pytest.raises(ValueError, match="uri holds a password: set MLFLOW_TRACKING_USERNAME"):
        PipelineConfig.model_validate(content)
