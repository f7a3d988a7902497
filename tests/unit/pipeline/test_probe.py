"""A probe: a few samples are really made, and their rates are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline import probe
from pipeline.config import load_config, preset_names
from pipeline.devices import GPUS, Fleet, fleet_of
from pipeline.estimates import Rate, outlook
from pipeline.planning import Selection, make_plan
from pipeline.rates import keep_rates, look_ahead
from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from tests.support.command import call_here

H100S = Fleet(GPUS["nvidia-h100"], 8, 64, is_here=False)


@pytest.mark.slow
def test_plan_makes_a_few_pictures_and_then_estimates_by_them(tmp_path):
    arguments = ["--preset", "shapes-smoke", "--set", f"store={tmp_path}/store"]
    done = call_here("plan", *arguments, "--until", "encode", "--probe")
    assert done.returncode == 0, done.stderr
    assert "rates as measured by a probe: prompts, synthesize, encode" in done.stdout
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.parent.name for path in left] == ["rates"]
    rates = json.loads(left[0].read_text())
    assert rates["synthesize"]["factor"] > 0 and rates["synthesize"]["overhead"] > 0
    again = json.loads(call_here("plan", *arguments, "--json").stdout)
    assert {row["stage"]: row["cost"]["source"] for row in again} == {
        **dict.fromkeys(("prompts", "synthesize", "encode"), "probe"),
        **dict.fromkeys(("distill", "pairs", "dpo", "eval"), "model"),
    }


@pytest.mark.parametrize("preset", preset_names())
def test_a_small_run_takes_minutes_and_the_same_samples(preset, store):
    """Of an hour and more, on eight H100."""
    config = load_config(preset=preset, environment={})
    small = probe.small_config(config, store.url, H100S)
    named = replace_costs(small, device="nvidia-h100", devices=8)
    ahead = outlook(named, make_plan(named, store, Selection()), {})
    work = sum(found.device_hours for found in ahead.known) / 8 * 60
    assert work < 15  # minutes
    assert not ahead.unknown
    for section in ("synthesize", "distill", "pairs", "eval"):
        before, after = getattr(config, section), getattr(small, section)
        assert after.micro_batch == before.micro_batch
    assert small.synthesize.passes == config.synthesize.passes
    assert small.distill.global_batch == config.distill.global_batch
    assert ahead.stages["synthesize"].samples >= 3 * 8 * config.synthesize.micro_batch
    assert ahead.stages["synthesize"].samples >= config.distill.global_batch


def replace_costs(config: PipelineConfig, **fields) -> PipelineConfig:
    return config.model_copy(update={"costs": config.costs.model_copy(update=fields)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: replace_costs(c, device="nvidia-h100"), "measures this machine, but costs.dev"),
        (
            lambda c: c.model_copy(update={"ray": c.ray.model_copy(update={"address": "auto"})}),
            "say in costs.device and costs.devices what the cluster has",
        ),
        (
            lambda c: c.model_copy(
                update={"encode": c.encode.model_copy(update={"external": ["a.tar"]})}
            ),
            "external shards",
        ),
    ],
)
def test_what_cannot_be_probed_is_said(
    config, store, change: Callable[[PipelineConfig], PipelineConfig], said
):
    wanted = change(config)
    stages = make_plan(wanted, store, Selection())
    with pytest.raises(ConfigError, match=re.escape("--probe") + f".*{said}"):
        probe.probe(wanted, store, stages, None)


def test_a_finished_plan_needs_no_probe(config, store, monkeypatch):
    monkeypatch.setattr(probe, "execute", lambda *_: pytest.fail("something ran"))
    done = [replace(stage, action="done") for stage in make_plan(config, store, Selection())]
    probe.probe(config, store, done, None)


def test_pairs_from_files_are_left_out(config):
    named = config.model_copy(
        update={"pairs": config.pairs.model_copy(update={"url": "votes.jsonl"})}
    )
    assert probe._last(named, ["prompts", "distill", "pairs", "dpo"]) == "distill"
    assert probe._last(named, ["prompts", "synthesize"]) == "synthesize"
    assert probe._last(config, ["prompts", "distill", "pairs", "dpo"]) == "dpo"


def test_what_a_probe_measured_is_for_its_device_and_its_teacher(config, store):
    stages = make_plan(config, store, Selection())
    keep_rates(config, store, fleet_of(config), {"distill": Rate(2.0, 5.0, "probe")})
    keep_rates(config, store, fleet_of(config), {"encode": Rate(3.0, 5.0, "probe")})
    found = look_ahead(config, store, stages).stages
    assert {n for n, e in found.items() if e.source == "probe"} == {"distill", "encode"}
    other = replace_costs(config, device="nvidia-h100")
    assert {e.source for e in look_ahead(other, store, stages).known} == {"model"}
    (file,) = (name for name in store.list("rates"))
    store.write(f"rates/{file}", b'{"distill": {"fac')
    assert {e.source for e in look_ahead(config, store, stages).known} == {"model"}


def test_a_card_that_nobody_knows_is_estimated_by_what_was_measured(config, store):
    unknown = replace_costs(config, device="nvidia-x1", devices=2)
    stages = make_plan(unknown, store, Selection())
    assert look_ahead(unknown, store, stages).unknown
    rates = dict.fromkeys(("synthesize", "distill"), Rate(0.5, 9.0, "probe"))
    keep_rates(unknown, store, fleet_of(unknown), rates)
    found = look_ahead(unknown, store, stages)
    assert found.stages["synthesize"].device_hours > 0
    assert set(found.unknown) == {"prompts", "encode", "pairs", "dpo", "eval"}
