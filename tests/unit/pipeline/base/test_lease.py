"""One training of an artifact at a time, also where its holder was killed or is elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from pipeline.base import lease
from pipeline.base.lease import _Holder, held, is_held
from pipeline.base.store import ArtifactStore
from schemas.errors import Locked
from tests.support.command import ROOT

FOLDER, FILE = "training/distill/k", "training/distill/k/lease.json"
HOLD = f"""
import sys, time
from pipeline.base.lease import held
from pipeline.base.store import ArtifactStore
with held(ArtifactStore(sys.argv[1]), "{FOLDER}", "distill"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    return ArtifactStore(str(tmp_path / "store"))


def put(store: ArtifactStore, holder: _Holder) -> None:
    store.write(FILE, json.dumps(asdict(holder)).encode())


def test_a_second_run_is_refused_while_the_first_is_alive(store):
    with (
        held(store, FOLDER, "distill"),
        pytest.raises(Locked, match="distill: another run is using it") as refusal,
        held(store, FOLDER, "distill"),
    ):
        pass
    assert refusal.value.exit_code == 5
    with held(store, FOLDER, "distill"):  # the first has ended
        pass
    assert store.read(FILE) is None


def test_a_run_that_fails_gives_its_lease_back(store):
    with pytest.raises(ZeroDivisionError), held(store, FOLDER, "distill"):
        raise ZeroDivisionError
    assert store.read(FILE) is None


def test_what_a_killed_process_held_is_free_at_once(store, tmp_path, monkeypatch):
    """Bug: wait until its beats are missed; then each resumed run waits."""
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: pytest.fail("waited"))
    command = [sys.executable, "-c", HOLD, store.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    assert store.read(FILE) is not None
    with held(store, FOLDER, "distill"):
        pass


def test_a_process_that_only_has_the_number_of_the_holder_is_not_the_holder(store):
    put(store, replace(_Holder.me(), born=0.0))
    with held(store, FOLDER, "distill"):
        pass


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"space": "pid:[1]"}])
def test_a_holder_elsewhere_is_dead_when_its_beats_stop(store, elsewhere, monkeypatch):
    """Its process number says nothing here."""
    put(store, replace(_Holder.me(), **elsewhere))
    pauses = []
    monkeypatch.setattr(lease.time, "sleep", pauses.append)
    with held(store, FOLDER, "distill"):
        pass
    assert sum(pauses) == pytest.approx(3 * 0.2)


def test_a_holder_elsewhere_is_alive_while_it_beats(store, monkeypatch):
    holder = replace(_Holder.me(), host="other")
    put(store, holder)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: put(store, replace(holder, beat=1)))
    with pytest.raises(Locked, match="on other"), held(store, FOLDER, "distill"):
        pass


def test_a_lease_is_seen_while_it_is_held(store):
    assert not is_held(store, FOLDER)
    with held(store, FOLDER, "distill"):
        assert is_held(store, FOLDER)
    assert not is_held(store, FOLDER)
