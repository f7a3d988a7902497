"""Rates from artifacts that were made before on the same kind of device."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.devices import fleet_of
from pipeline.planning import Selection, make_plan
from pipeline.rates import look_ahead, measured_rates
from schemas.manifest import Devices, InputRef
from tests.support.manifests import manifest_of

COUNTS = {
    "prompts": {"samples": 400, "train": 400, "held_out": 100},
    "synthesize": {"ok": 400},
    "encode": {"ok": 400, "prompts": 400},
    "distill": {"updates": 640},
}


def commit(store, config, stage: str, *, kind: str | None = None, key: str = "k", **fields):
    """An artifact of this configuration that took what the fields say."""
    fleet = fleet_of(config)
    above = {"synthesize": ["prompts"], "encode": ["synthesize"], "distill": ["prompts", "encode"]}
    store.commit(
        manifest_of(
            stage,
            key=key,
            config=config.model_dump(mode="json"),
            counts=COUNTS[stage],
            inputs=[InputRef(stage=name, key="k", digest="d") for name in above.get(stage, ())],
            devices=Devices(kind=kind or fleet.device.kind, count=fleet.count),
            **fields,
        )
    )


def expected(config, store):
    return look_ahead(config, store, make_plan(config, store, Selection())).stages


@pytest.fixture
def wanted(config):
    """A configuration with twice as many pictures as the artifacts of these tests."""
    prompts = config.prompts.model_copy(update={"count": 1000, "held_out_fraction": 0.2})
    return config.model_copy(update={"prompts": prompts})


def test_an_artifact_of_another_size_gives_the_rate(wanted, store):
    commit(store, wanted, "prompts", seconds=9)
    before = expected(wanted, store)["synthesize"]
    commit(store, wanted, "synthesize", seconds=500, device_hours=900 / 3600)
    found = expected(wanted, store)["synthesize"]
    assert before.source == "model"
    assert found.source == "synthesize/k"
    assert found.samples == 800
    assert found.device_hours * 3600 == pytest.approx(2 * 900, rel=0.03)
    beyond = 500 - 900 / fleet_of(wanted).count
    assert found.seconds == pytest.approx(beyond + 1800 / fleet_of(wanted).count, rel=0.05)


@pytest.mark.parametrize("change", ["device", "teacher"])
def test_another_device_or_teacher_gives_none(wanted, store, change):
    commit(store, wanted, "prompts", seconds=9)
    made, kind = wanted, None
    if change == "device":
        kind = "nvidia-h100"
    else:
        teacher = wanted.teacher.model_copy(update={"dtype": "float32"})
        made = wanted.model_copy(update={"teacher": teacher})
    commit(store, made, "synthesize", kind=kind, seconds=500, device_hours=0.25)
    assert expected(wanted, store)["synthesize"].source == "model"


def test_the_newest_artifact_counts(wanted, store):
    commit(store, wanted, "prompts", seconds=9)
    for key, day, hours in (("old", 1, 0.1), ("new", 2, 0.3), ("older", 0, 0.2)):
        started = f"2026-01-0{day + 1}T00:00:00+00:00"
        commit(
            store, wanted, "synthesize", key=key, started=started, seconds=900, device_hours=hours
        )
    assert expected(wanted, store)["synthesize"].source == "synthesize/new"


def test_a_training_is_measured_by_its_speed_not_by_its_start(wanted, store):
    """A short training takes longer to start than to train."""
    for stage in ("prompts", "synthesize", "encode"):
        commit(store, wanted, stage, seconds=9, device_hours=0.01)
    commit(store, wanted, "distill", seconds=900, device_hours=0.5)
    slow = expected(wanted, store)["distill"]
    speeds = [20.0, 100.0, 100.0, 100.0, 30.0]
    lines = [json.dumps({"step": i, "samples_per_second": s}) for i, s in enumerate(speeds)]
    store.write("artifacts/distill/k/signals.jsonl", "\n".join([*lines, "half a li"]).encode())
    found = expected(wanted, store)["distill"]
    updating = 640 * 32 / 100 * fleet_of(wanted).count
    assert found.device_hours * 3600 == pytest.approx(updating, rel=0.03)  # and sample grids
    assert slow.source == found.source == "distill/k"
    assert slow.device_hours == pytest.approx(0.5)
    # What took long is not the updates, and takes as long again.
    assert found.seconds == pytest.approx(900, rel=0.02)


def test_a_run_that_was_resumed_tells_nothing_of_starts(wanted, store):
    commit(store, wanted, "prompts", seconds=9)
    commit(store, wanted, "synthesize", seconds=20, device_hours=900 / 3600)
    stages = make_plan(wanted, store, Selection())
    rate = measured_rates(wanted, store, stages)["synthesize"]
    assert rate.overhead is None


def test_an_artifact_that_tells_nothing_is_passed_over(wanted, store):
    commit(store, wanted, "synthesize", seconds=500, device_hours=0.2)  # its input is gone
    commit(store, wanted, "prompts", key="other", seconds=9)
    store.commit(
        manifest_of("encode", config={"no": "configuration"}, devices=Devices(kind="cpu", count=1))
    )
    found = expected(wanted, store)
    assert found["synthesize"].source == found["encode"].source == "model"
    assert found["prompts"].source == "prompts/other"


def test_nothing_is_looked_up_if_nothing_would_run(wanted, store, monkeypatch):
    done = [replace(s, action="done") for s in make_plan(wanted, store, Selection())]
    monkeypatch.setattr("pipeline.rates.committed", lambda *_: pytest.fail("the store was read"))
    assert look_ahead(wanted, store, done) is None
