"""Hours and money of work, calculated by hand; what the stages of a plan tell each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.base.training import TrainingPlan
from pipeline.base.work import Part, Phase, Work
from pipeline.config import load_config
from pipeline.devices import GPUS, Fleet
from pipeline.estimates import Rate, estimate, outlook
from pipeline.planning import Selection, make_plan
from schemas.config import DistillConfig
from schemas.costs import CostsConfig
from schemas.resources import WorkerPool
from tests.support.manifests import manifest_of

H100 = GPUS["nvidia-h100"]
FLEET = Fleet(H100, 8, 64, is_here=False)
PRICED = CostsConfig(prices={"nvidia-h100": 2.0})
HOUR = 0.25 * 989e12 * 3600
"""Operations of sampling in an hour of an H100."""


def work_of(*phases: Phase, **fields) -> Work:
    return Work(samples=1, unit="pictures", phases=phases, **fields)


def test_sampling_takes_its_operations_over_a_quarter_of_the_peak():
    drawing = Phase("", (Part("sampling", 16 * HOUR),), by=WorkerPool(), pieces=800)
    found = estimate(work_of(drawing, model_bytes=10 * 10**9), FLEET, PRICED, Rate())
    assert found.device_hours == pytest.approx(16)
    assert found.devices == 8
    start = 25 + 10  # seconds, and one for each GB of weights
    assert found.seconds == pytest.approx(2 * 3600 + start)
    assert found.price == pytest.approx((2 * 3600 + start) * 8 * 2.0 / 3600)


def test_calls_and_what_a_core_writes_come_on_top():
    drawing = Phase(
        "", (Part("sampling", HOUR, calls=10_000),), 60.0, by=WorkerPool(workers=1), pieces=1
    )
    found = estimate(work_of(drawing), FLEET, CostsConfig(), Rate())
    assert found.device_hours * 3600 == pytest.approx(3600 + 10_000 * 3e-4 + 60)
    assert found.price is None


def test_no_more_workers_work_than_there_are_pieces_and_the_last_round_may_be_half_empty():
    def seconds(pieces: int) -> float:
        drawing = Phase("", (Part("sampling", HOUR),), by=WorkerPool(), pieces=pieces)
        return estimate(work_of(drawing), FLEET, CostsConfig(), Rate()).seconds - H100.start

    assert seconds(2) == pytest.approx(3600 / 2)
    assert seconds(9) == pytest.approx(3600 / 9 * 2)


def test_workers_and_their_devices_are_those_of_the_configuration():
    training = TrainingPlan.of(DistillConfig(workers=4, global_batch=64))
    parts = (Part("training", 4 * HOUR),)
    found = estimate(work_of(Phase("", parts, by=training)), FLEET, CostsConfig(), Rate())
    assert found.devices == 4
    pool = WorkerPool(workers=3, gpus_per_worker=0.5)
    found = estimate(work_of(Phase("", parts, by=pool, pieces=9)), FLEET, CostsConfig(), Rate())
    assert found.devices == 1.5


def test_a_measured_rate_replaces_the_models():
    drawing = Phase("", (Part("sampling", 8 * HOUR),), by=WorkerPool(), pieces=800)
    rate = Rate(1.5, 7.0, "synthesize/abc")
    found = estimate(work_of(drawing), FLEET, CostsConfig(), rate)
    assert found.device_hours == pytest.approx(12)
    assert found.seconds == pytest.approx(1.5 * 3600 + 7)
    assert found.source == "synthesize/abc"


def test_of_a_device_that_nobody_knows_nothing_is_said():
    unknown = replace(FLEET, known=False)
    assert estimate(work_of(), unknown, CostsConfig(), Rate()) is None


def test_a_stage_is_told_what_those_above_have_made_or_would_make(config, store):
    stages = make_plan(config, store, Selection())
    ahead = outlook(config, stages, {})
    assert not ahead.unknown
    assert ahead.stages["synthesize"].samples == ahead.stages["encode"].samples == 1430
    made = manifest_of("prompts", counts={"samples": 700, "train": 700, "held_out": 100})
    known = [replace(s, action="done", manifest=made) if s.name == "prompts" else s for s in stages]
    ahead = outlook(config, known, {})
    assert "prompts" not in ahead.stages
    assert ahead.stages["encode"].samples == 700
    assert ahead.stages["pairs"].samples == 4 * 700  # of the 900 prompts that are wanted
    assert ahead.stages["eval"].samples == 100 * 9 + 50 * 4 * 8  # of the 250 that are wanted


def test_what_cannot_be_counted_is_said_and_gives_no_sum(config, store):
    changed = load_config(
        preset="shapes",
        settings=[f"store={store.url}", "pairs.url=votes.jsonl", "costs.prices.cpu=1"],
        environment={},
    )
    ahead = outlook(changed, make_plan(changed, store, Selection()), {})
    assert ahead.unknown == ["pairs"]
    assert ahead.price is None
    assert ahead.stages["dpo"].price > 0


@pytest.mark.parametrize("preset", ["shapes", "shapes-smoke"])
def test_half_the_pictures_take_half_the_hours(preset, store):
    def hours(count: int) -> float:
        settings = [f"store={store.url}", f"prompts.count={count}", "costs.device=nvidia-l4"]
        config = load_config(preset=preset, settings=settings, environment={})
        stages = make_plan(config, store, Selection(until="encode"))
        return outlook(config, stages, {}).stages["synthesize"].device_hours

    assert hours(20_000) == pytest.approx(2 * hours(10_000), rel=1e-3)


def test_auto_makes_what_the_training_draws_and_its_number_enters_the_key(store):
    def config_of(*settings: str):
        where = [f"store={store.url}", "prompts.count=100000"]
        return load_config(preset="shapes", settings=[*where, *settings], environment={})

    def synthesize(config):
        stages = make_plan(config, store, Selection())
        ahead = outlook(config, stages, {})
        return stages[1].key, ahead.stages["synthesize"].samples, ahead.remarks

    whole = synthesize(config_of())
    assert whole[1] == 55_000
    assert "34,520 of 55,000 pictures (63%) would never be drawn" in whole[2][0]
    assert "synthesize.count=auto makes those alone" in whole[2][0]
    key, samples, remarks = synthesize(config_of("synthesize.count=auto"))
    assert samples == 640 * 32 and not remarks
    assert synthesize(config_of(f"synthesize.count={640 * 32}"))[0] == key != whole[0]
    assert synthesize(config_of("synthesize.count=auto", "distill.steps=700"))[0] != key
    assert synthesize(config_of("synthesize.count=auto", "distill.workers=2"))[0] == key
