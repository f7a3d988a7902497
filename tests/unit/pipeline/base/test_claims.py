"""Several runs on one artifact: shards are divided, the dead are inherited from, one commits."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from pipeline.base import claims as claims_module
from pipeline.base import lease as lease_module
from pipeline.base import mapping, sharing
from pipeline.base.claims import Claims, Crew, MadeElsewhere, claims_folder, live_runs, run_folder
from pipeline.base.lease import _Holder
from pipeline.base.markers import finished_shards
from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError, Locked
from schemas.resources import WorkerPool
from tests.support.context import ignore, make_context
from tests.support.manifests import manifest_of
from tests.support.shards import make_shard, shard_names
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.without_ray import map_in_this_process

pytestmark = pytest.mark.slow

FOLDER = claims_folder("synthesize", "k")
NAMES = shard_names(12)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    map_in_this_process(monkeypatch)
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.2)
    for module in (claims_module, sharing):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


@pytest.fixture
def patient(monkeypatch):
    """A live run of this process must not miss three beats, however busy the machine is."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 2.0)


def crew_of(store: ArtifactStore, conflict: str = "share", note=ignore, **options) -> Crew:
    return Crew(store, "synthesize", "k", conflict, note, **options)


def run_of(store: ArtifactStore, token: str, **holder) -> Claims:
    """The claims of a run whose lease says that its holder is such."""
    content = asdict(replace(_Holder.me("t"), **holder))
    store.write(f"{run_folder(FOLDER, token)}/lease.json", json.dumps(content).encode())
    return Claims(store, FOLDER, token)


def plain(store: ArtifactStore, asked: list[str] | None = None):
    """Builds a worker that notes what it is `asked` for."""

    def worker(shard: str):
        if asked is not None:
            asked.append(shard)
        return make_shard(store, "artifacts/synthesize/k", shard)

    return lambda: worker


def context_of(store: ArtifactStore, crew: Crew) -> SimpleNamespace:
    """What `map_shards` needs, with the runs that work on the artifact."""
    config = make_tiny_config("none", store.url)
    return replace(make_context("synthesize", config, store), crew=crew)


def test_a_claimed_shard_is_not_claimed_again_but_by_its_own_run(store):
    mine, other = Claims(store, FOLDER, "a"), Claims(store, FOLDER, "b")
    assert mine.take(NAMES[0]) and not other.take(NAMES[0])
    assert mine.take(NAMES[0])  # its worker was lost, say
    mine.give_back(NAMES[0])
    assert other.take(NAMES[0])


@pytest.mark.parametrize("token", ["\ud800", "../../other", "a/b", "", None, 3])
def test_a_claim_whose_token_cannot_name_a_run_is_damaged(store, token):
    """Bug: look for the lease of its run in the folder of that name."""
    mine = Claims(store, FOLDER, "mine")
    store.write(f"{FOLDER}/{NAMES[0]}.json", json.dumps({"token": token}).encode())
    assert mine.owner(NAMES[0]) == "" and not mine.take(NAMES[0])
    assert mine.take_from("", NAMES[0]) and mine.take(NAMES[0])


def test_eight_runs_make_every_shard_once_and_all_see_all_of_them(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    made: list[str] = []
    found: list[dict] = []
    start = threading.Barrier(8)

    def build():
        def worker(shard):
            made.append(shard)
            time.sleep(0.02)
            return make_shard(store, "artifacts/synthesize/k", shard)

        return worker

    def run():
        with crew_of(store) as crew:
            context = context_of(store, crew)
            crew.join()
            start.wait()
            found.append(mapping.map_shards(context, NAMES, build, WorkerPool()))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == NAMES
    assert len(found) == 8 and all(sorted(one) == NAMES for one in found)
    assert store.list("claims") == {} and not (tmp_path / "store" / FOLDER).exists()


@pytest.mark.parametrize("dead", [{"born": 0.0}, {"machine": "other boot"}])
def test_what_a_dead_run_had_claimed_is_made_by_those_that_live(store, dead):
    """On its own machine it is known to have ended, elsewhere its beats stop."""
    died = run_of(store, "dead", **dead)
    assert died.take(NAMES[0]) and died.take(NAMES[5])
    with crew_of(store) as crew:
        context = context_of(store, crew)
        crew.join()
        found = mapping.map_shards(context, NAMES, plain(store), WorkerPool())
    assert sorted(found) == NAMES


def test_a_live_run_keeps_its_claim_until_its_shard_is_made(store, monkeypatch):
    beats = iter(range(10**6))

    def live_on(seconds: float) -> None:
        beat = next(beats)
        run_of(store, "other", machine="other boot", beat=beat)
        if beat == 50:
            make_shard(store, "artifacts/synthesize/k", NAMES[3])
            other.give_back(NAMES[3])

    other = run_of(store, "other", machine="other boot")
    assert other.take(NAMES[3])
    asked: list[str] = []
    with crew_of(store) as crew:
        context = context_of(store, crew)
        crew.join()
        monkeypatch.setattr(sharing.time, "sleep", live_on)
        found = mapping.map_shards(context, NAMES, plain(store, asked), WorkerPool())
    assert sorted(found) == NAMES and NAMES[3] not in asked


def test_a_worker_that_fails_gives_its_claim_back(store):
    def refuse(shard):
        raise ArtifactError("weights are damaged")

    with crew_of(store) as crew:
        context = context_of(store, crew)
        claims = crew.join()
        with pytest.raises(ArtifactError):
            mapping.map_shards(context, NAMES, lambda: refuse, WorkerPool())
        assert all(claims.owner(name) is None for name in NAMES)


def test_a_marker_whose_files_are_gone_is_no_reason_to_leave_a_shard_out(store):
    """Bug: take what another run seems to have made just now."""
    folder = "artifacts/synthesize/k"
    make_shard(store, folder, NAMES[0])
    store.remove(f"{folder}/{NAMES[0]}.tar")
    with crew_of(store) as crew:
        context = context_of(store, crew)
        crew.join()
        mapping.map_shards(context, NAMES, plain(store), WorkerPool())
    assert sorted(finished_shards(store, folder)) == NAMES


def test_one_finishes_and_the_others_take_what_it_commits(store, patient):
    notes: list[str] = []
    with crew_of(store) as first:
        first.join()
        first.finish()
        first.finish()

        def second():
            with pytest.raises(MadeElsewhere), crew_of(store, note=notes.append) as crew:
                crew.join()
                crew.finish()

        thread = threading.Thread(target=second)
        thread.start()
        while not notes:
            time.sleep(0.01)
        store.commit(manifest_of("synthesize"))
    thread.join(timeout=30)
    assert not thread.is_alive() and store.list("claims") == {}
    assert len(notes) == 1 and "another run is at work on it (process " in notes[0]


def test_the_next_finishes_if_the_first_fails(store):
    with pytest.raises(ZeroDivisionError), crew_of(store) as first:
        first.finish()
        raise ZeroDivisionError
    with crew_of(store) as second:
        second.finish()


@pytest.mark.parametrize("in_shards", [True, False])
def test_a_run_that_is_not_to_wait_ends_with_code_5(store, patient, in_shards):
    with crew_of(store) as first:
        first.join() if in_shards else first.finish()
        with pytest.raises(Locked, match="--on-conflict") as refusal, crew_of(store, "fail") as two:
            two.join() if in_shards else two.finish()
    assert refusal.value.exit_code == 5
    with crew_of(store, "fail") as alone:
        alone.join()
        alone.finish()


def test_a_run_that_waits_makes_no_shard_meanwhile(store, patient):
    events: list[str] = []
    with crew_of(store) as first:
        first.join()

        def second():
            with crew_of(store, "wait", note=lambda text: events.append("waits")) as crew:
                crew.join()
                events.append("joined")

        thread = threading.Thread(target=second)
        thread.start()
        while not events:
            time.sleep(0.01)
        events.append("first ends")
    thread.join(timeout=30)
    assert events == ["waits", "first ends", "joined"]


def test_a_forced_run_takes_no_commit_for_its_own(store):
    store.commit(manifest_of("synthesize"))
    with crew_of(store, again=True) as crew:
        crew.wait_until_alone()
        crew.finish()


def test_the_beats_of_all_runs_are_awaited_at_once(store, monkeypatch):
    """Bug: half a minute for each run that was killed on another machine."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 1.0)
    for number in range(8):
        run_of(store, f"dead{number}", machine="other boot")
    began = time.monotonic()
    assert live_runs(store, FOLDER) == []
    assert time.monotonic() - began < 2 * 3


def test_what_dead_runs_left_is_tidied_unless_one_may_be_alive(store):
    run_of(store, "dead", born=0.0).take(NAMES[0])
    live = run_of(store, "elsewhere", machine="other boot")
    live.take(NAMES[1])
    with crew_of(store) as crew:
        crew.join()
    assert live.owner(NAMES[1]) == "elsewhere"
    assert "runs/dead/lease.json" not in store.list(FOLDER)
    store.remove(run_folder(FOLDER, "elsewhere"))
    with crew_of(store) as crew:
        crew.join()
    assert store.list(FOLDER) == {} and live_runs(store, FOLDER) == []
