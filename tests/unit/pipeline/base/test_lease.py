"""One training of an artifact at a time, also where its holder was killed or is elsewhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from pipeline.base import lease as lease_module
from pipeline.base.lease import _Holder, clear, held, is_held
from pipeline.base.store import ArtifactStore, json_object
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
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.2)
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
    monkeypatch.setattr(lease_module.time, "sleep", lambda seconds: pytest.fail("waited"))
    command = [sys.executable, "-c", HOLD, store.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    assert store.read(FILE) is not None
    with held(store, FOLDER, "distill"):
        pass


def test_a_process_that_only_has_the_number_of_the_holder_is_not_the_holder(store):
    put(store, replace(_Holder.me("other"), born=0.0))
    with held(store, FOLDER, "distill"):
        pass


@pytest.mark.parametrize("elsewhere", [{"machine": "other boot"}, {"space": "pid:[1]"}])
def test_a_holder_elsewhere_is_dead_when_its_beats_stop(store, elsewhere, monkeypatch):
    """Its process number says nothing here."""
    put(store, replace(_Holder.me("other"), **elsewhere))
    pauses = []
    monkeypatch.setattr(lease_module.time, "sleep", pauses.append)
    with held(store, FOLDER, "distill"):
        pass
    assert sum(pauses) == pytest.approx(3 * 0.2)


def test_a_holder_elsewhere_is_alive_while_it_beats(store, monkeypatch):
    holder = replace(_Holder.me("other"), host="other", machine="other boot")
    put(store, holder)
    monkeypatch.setattr(
        lease_module.time, "sleep", lambda seconds: put(store, replace(holder, beat=1))
    )
    with pytest.raises(Locked, match="on other"), held(store, FOLDER, "distill"):
        pass


def test_a_lease_is_seen_while_it_is_held(store):
    assert not is_held(store, FOLDER)
    with held(store, FOLDER, "distill"):
        assert is_held(store, FOLDER)
    assert not is_held(store, FOLDER)


def test_a_step_of_the_clock_ends_no_lease(store, monkeypatch):
    """Bug: tell a process by its start in seconds since 1970, which moves with the boot time that
    the kernel derives from the wall clock.
    """
    import psutil

    with held(store, FOLDER, "distill") as lease:
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
        monkeypatch.setattr(lease_module.time, "time", lambda: 0.0)
        assert is_held(store, FOLDER)
        lease.check()


SPOILT = [b"", bytes(300), b'{"token": "x", "proc', b"[]", b"null", b'"text"', b"{}", b"\xff\xfe{"]


@pytest.mark.parametrize("content", SPOILT)
def test_a_damaged_lease_is_taken_over_after_three_beats(store, content, monkeypatch):
    """Bug: read it as JSON with a holder's fields; then each later run ends with a traceback."""
    store.write(FILE, content)
    pauses = []
    monkeypatch.setattr(lease_module.time, "sleep", pauses.append)
    assert not is_held(store, FOLDER)
    with held(store, FOLDER, "distill"):
        assert json.loads(store.read(FILE))["beat"] == 0
    assert sum(pauses) == pytest.approx(2 * 3 * 0.2)
    assert store.read(FILE) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"process": "7"},
        {"process": -1},
        {"process": 10**30},
        {"process": None},
        {"born": "yesterday"},
        {"born": None},
        {"machine": 3},
    ],
)
def test_odd_fields_of_a_lease_are_no_traceback(store, fields, monkeypatch):
    store.write(FILE, json.dumps(asdict(_Holder.me("other")) | fields).encode())
    monkeypatch.setattr(lease_module.time, "sleep", lambda seconds: None)
    with held(store, FOLDER, "distill"):
        pass


def test_a_lease_of_an_older_version_is_respected(store, monkeypatch):
    old = {"token": "t", "host": "h", "space": "s", "process": 1, "born": 1.5, "beat": 0}
    store.write(FILE, json.dumps(old).encode())

    def beat(seconds):
        store.write(FILE, json.dumps(old | {"beat": 1}).encode())

    monkeypatch.setattr(lease_module.time, "sleep", beat)
    with pytest.raises(Locked, match="process 1 on h"), held(store, FOLDER, "distill"):
        pass


def dead_holder() -> _Holder:
    return replace(_Holder.me("dead"), born=0.0)


def test_of_many_that_find_a_lease_dead_one_takes_it(store, monkeypatch):
    """Bug: remove the dead lease and create one; the second remover removes the first one's new
    lease, and both train.
    """
    many = 8
    put(store, dead_holder())
    together = threading.Barrier(many)
    watched = lease_module._watched
    first = threading.local()

    def all_at_once(*arguments):
        verdict = watched(*arguments)
        if not hasattr(first, "done"):
            first.done = True
            together.wait(20)
        return verdict

    monkeypatch.setattr(lease_module, "_watched", all_at_once)
    inside, most, refused = [0], [0], []
    count, leave = threading.Lock(), threading.Event()

    def run():
        try:
            with held(store, FOLDER, "distill"):
                with count:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                leave.wait(20)
        except Locked:
            with count:
                refused.append(1)
                if len(refused) == many - 1:
                    leave.set()

    threads = [threading.Thread(target=run) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] and len(refused) == many - 1
    assert store.all_files(FOLDER) == {}


TRY = f"""
import sys, time
from pathlib import Path
from pipeline.base.lease import held
from pipeline.base.store import ArtifactStore
from schemas.errors import Locked
print("ready", flush=True)
sys.stdin.readline()
try:
    with held(ArtifactStore(sys.argv[1]), "{FOLDER}", "distill"):
        print("held", flush=True)
        sys.stdin.readline()
except Locked:
    print("refused", flush=True)
"""


@pytest.mark.slow
def test_of_many_processes_one_takes_what_a_dead_one_held(store):
    put(store, dead_holder())
    command = [sys.executable, "-c", TRY, store.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    runs = [subprocess.Popen(command, **pipes) for _ in range(4)]
    try:
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * 4
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        said = sorted(run.stdout.readline() for run in runs)
        assert said == ["held\n", *["refused\n"] * 3]
    finally:
        for run in runs:
            run.communicate("\n")


def test_a_claim_whose_process_died_is_claimed_in_turn(store):
    dead = json.dumps(asdict(dead_holder())).encode()
    store.write(FILE, dead)
    claim = f"{FILE}.{hashlib.sha256(dead).hexdigest()[:16]}.claim"
    store.write(claim, json.dumps(asdict(replace(dead_holder(), token="claims"))).encode())
    with held(store, FOLDER, "distill"):
        pass
    assert store.all_files(FOLDER) == {}


def test_a_late_claim_opens_nothing(store):
    """Bug: trust a claim; a process that slept since it saw the lease dead replaces a live one."""
    dead = json.dumps(asdict(dead_holder())).encode()
    late = lease_module.Lease(store, FILE, "distill", "late")
    with held(store, FOLDER, "distill"):
        kept = store.read(FILE)
        assert lease_module.take_over(late, dead) is False
        assert store.read(FILE) == kept
    assert store.all_files(FOLDER) == {}


def test_who_lost_the_lease_stops_and_leaves_it_alone(store, monkeypatch):
    """Bug: write the next beat over the lease of the run that took it over."""
    with held(store, FOLDER, "distill") as lease:
        put(store, _Holder.me("another"))
        taken = store.read(FILE)
        with pytest.raises(Locked, match="another run has taken over its training"):
            lease.check()
        time.sleep(3 * 0.2)
        assert store.read(FILE) == taken
    assert store.read(FILE) == taken


@pytest.mark.parametrize("content", [None, b"", b"oops"])
def test_a_lease_that_is_spoilt_while_it_is_held_is_written_again(store, content):
    with held(store, FOLDER, "distill") as lease:
        if content is None:
            store.remove(FILE)
        else:
            store.write(FILE, content)
        lease.check()
        deadline = time.monotonic() + 10
        while not json_object(store.read(FILE) or b"") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads(store.read(FILE))["token"] == lease.token


def test_clearing_leaves_the_lease_until_the_end(store, monkeypatch):
    """Bug: remove the folder with the lease in it; the next run starts between two removals."""
    store.write(f"{FOLDER}/checkpoint_1/state", b"x")
    store.write("artifacts/distill/k/model", b"x")
    seen = []
    remove = ArtifactStore.remove
    monkeypatch.setattr(
        ArtifactStore,
        "remove",
        lambda self, name: (seen.append(store.read(FILE) is not None), remove(self, name)),
    )
    clear(store, "distill", "k")
    assert all(seen) and len(seen) == 3
    assert store.all_files("") == {}


def test_where_two_can_create_one_file_the_last_one_holds(store, monkeypatch):
    """A store without conditional writes: both create, both look, one goes on."""
    monkeypatch.setattr(ArtifactStore, "is_exclusive", False)
    other = _Holder.me("other")
    create = ArtifactStore.create

    def overtaken(self, name, content):
        made = create(self, name, content)
        put(store, other)  # at the same moment
        return made

    monkeypatch.setattr(ArtifactStore, "create", overtaken)
    beat = iter(range(1, 1000))
    monkeypatch.setattr(
        lease_module.time, "sleep", lambda seconds: put(store, replace(other, beat=next(beat)))
    )
    with pytest.raises(Locked), held(store, FOLDER, "distill"):
        pass
