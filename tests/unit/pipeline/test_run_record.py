"""What the store says of a run: how it ended, whatever has ended it."""

from __future__ import annotations

import json

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.observe import Observer
from pipeline.run_record import recorded
from schemas.errors import ArtifactError, CostReached, StageFailed


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path))


def record(store) -> dict:
    return json.loads(store.read("runs/r/run.json"))


def run(store, raised: BaseException | None = None) -> None:
    with recorded(store, "runs/r", {"command": "run"}, Observer(), lambda: {"cost": {}}):
        assert record(store)["status"] == "running"
        if raised is not None:
            raise raised


@pytest.mark.parametrize(
    ("raised", "kind", "status"),
    [
        (StageFailed("distill: no"), StageFailed, "failed"),
        (ValueError("a fault of ours"), StageFailed, "failed"),
        (CostReached("20 USD"), CostReached, "cost reached"),
        (KeyboardInterrupt(), KeyboardInterrupt, "stopped"),
        (SystemExit(143), SystemExit, "stopped"),
    ],
)
def test_how_it_ended(store, raised, kind, status):
    with pytest.raises(kind):
        run(store, raised)
    assert record(store)["status"] == status
    assert {"command", "ended", "cost"} <= record(store).keys()


def test_a_run_that_is_done_and_the_traceback_of_one_that_is_not(store):
    run(store)
    assert record(store)["status"] == "done" and store.read("runs/r/events.jsonl") == b""
    with pytest.raises(StageFailed) as failed:
        run(store, ValueError("a fault of ours"))
    assert "events.jsonl" in failed.value.__notes__[0]
    assert b"a fault of ours" in store.read("runs/r/events.jsonl")


def test_a_store_that_is_gone_hides_no_failure(store, monkeypatch):
    """Bug: let the record's own failure take the place of what ended the run."""
    plain = ArtifactStore.write

    def write(self, name, content):
        if b"running" not in content:
            raise ArtifactError("the store does not answer")
        return plain(self, name, content)

    monkeypatch.setattr(ArtifactStore, "write", write)
    with pytest.raises(CostReached) as failed:
        run(store, CostReached("20 USD"))
    assert "the store does not answer" in failed.value.__notes__[0]
    with pytest.raises(KeyboardInterrupt):
        run(store, KeyboardInterrupt())
    with pytest.raises(ArtifactError, match="does not answer"):
        run(store)
