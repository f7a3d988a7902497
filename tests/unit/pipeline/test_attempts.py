"""Which failures of a stage are tried again, without Ray."""

from __future__ import annotations

import contextlib
import json

import pytest
import ray.exceptions as of_ray

from pipeline import attempts as tried
from pipeline import cluster, executor
from pipeline.attempts import Attempts, StageLost
from pipeline.executor import execute
from pipeline.observe import Observer
from pipeline.planning import Selection, make_plan
from schemas.errors import ArtifactError, ConfigError, Locked, ProcessLost, StageFailed

LOST = ProcessLost("distill: its process was killed or crashed")


@pytest.fixture
def observer():
    return Observer("json")


def said(observer: Observer) -> list[str]:
    return [event["text"] for event in observer.events if event["event"] == "warning"]


def test_a_lost_stage_is_tried_as_often_as_configured_and_it_is_said(observer):
    attempts = Attempts(2, observer)
    assert attempts.may_try_again("distill", LOST)
    assert attempts.may_try_again("eval", ProcessLost("eval: x"))  # each stage has its own
    assert attempts.may_try_again("distill", LOST)
    assert said(observer)[::2] == [
        f"its process was killed or crashed; the stage is tried again ({n} of 2)" for n in (1, 2)
    ]
    with pytest.raises(StageFailed, match=r"distill: its process .*, 3 times in all"):
        attempts.may_try_again("distill", LOST)


@pytest.mark.parametrize("kind", [StageFailed, ConfigError, ArtifactError, Locked])
def test_what_would_recur_is_not_tried_again(kind, observer):
    assert not Attempts(2, observer).may_try_again("distill", kind("damaged"))
    assert not said(observer)


def test_a_lock_of_what_is_left_of_a_lost_stage_is_waited_for(observer, monkeypatch):
    """Bug: report that another run is training, which was this run's own lost process."""
    clock = [100.0]
    monkeypatch.setattr(tried.time, "monotonic", lambda: clock[0])
    attempts = Attempts(1, observer)
    attempts.may_try_again("distill", LOST)
    clock[0] += 30
    assert attempts.may_try_again("distill", Locked("distill: another run"))
    assert not attempts.may_try_again("dpo", Locked("dpo: another run"))
    clock[0] += 31
    assert not attempts.may_try_again("distill", Locked("distill: another run"))
    assert len(said(observer)) == 1


@pytest.fixture
def walks(monkeypatch):
    """Stands in for the walk over a cluster: a list of what each start of Ray does."""
    lives: list[list] = []
    seen: list[frozenset] = []

    def walk(job, *_):
        seen.append(job.running)
        for step in lives.pop(0):
            if isinstance(step, Exception):
                raise step
            yield {"stage": step, "action": "ran", "counts": {}, "seconds": 1.0}

    monkeypatch.setattr(executor, "ray_cluster", lambda config, warn: contextlib.nullcontext())
    monkeypatch.setattr(executor, "_walk", walk)
    return lives, seen


def run(config, store, observer) -> list[dict]:
    plan = make_plan(config, store, Selection(until="synthesize"))
    return execute(config, store, plan, observer)


def test_a_ray_that_died_is_started_again_for_what_is_left(walks, config, store, observer):
    lives, seen = walks
    lives[:] = [["prompts", ProcessLost("a process of Ray has ended")], ["synthesize"]]
    rows = run(config, store, observer)
    assert [row["action"] for row in rows][:2] == ["ran", "ran"]
    assert [set(running) for running in seen] == [{"prompts", "synthesize"}, {"synthesize"}]
    assert said(observer) == ["a process of Ray has ended; starting it again (1 of 2)"]


def test_it_is_not_started_for_ever(walks, config, store, observer):
    lives, _ = walks
    lives[:] = [[ProcessLost("a process of Ray has ended")]] * 3
    with pytest.raises(ProcessLost):
        run(config, store, observer)
    assert not lives and len(said(observer)) == 2


@pytest.mark.parametrize("error", [ConfigError("wrong"), StageLost("prompts: lost")])
def test_other_failures_start_no_new_ray(error, walks, config, store, observer):
    walks[0][:] = [[error]]
    with pytest.raises(type(error)):
        run(config, store, observer)


def test_a_ray_of_the_outer_block_cannot_be_started_again(
    walks, config, store, observer, monkeypatch
):
    """A sweep's trials share one."""

    def dead() -> None:
        raise ProcessLost("a process of Ray has ended")

    monkeypatch.setattr(executor, "require_ray", dead)
    walks[0][:] = [[of_ray.RaySystemError("anything")]]
    with pytest.raises(ProcessLost, match="a process of Ray has ended"):
        run(config, store, observer)
    assert cluster.require_ray() is None  # the real one: none runs here


def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_is_in_the_record(
    walks, config, store, observer
):
    walks[0][:] = [[KeyError("bucket")]]
    with pytest.raises(StageFailed, match="KeyError: 'bucket'") as error:
        run(config, store, observer)
    (note,) = error.value.__notes__
    assert note.startswith(f"its traceback is in {store.url}/runs/")
    record = store.read(note.split(f"{store.url}/")[1]).decode()
    (failed,) = [e for e in map(json.loads, record.splitlines()) if e["event"] == "failed"]
    assert "Traceback" in failed["error"] and "KeyError: 'bucket'" in failed["error"]
