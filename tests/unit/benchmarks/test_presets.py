"""The page of the presets and benchmarks/presets.py say the same, and presets suit their models."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from pipeline.config import load_config, preset_names
from stages.teachers.sd3_layers import parameters
from stages.teachers.sd3_published import TRANSFORMERS
from tests.support.command import ROOT

PARAMETERS = {
    "stabilityai/stable-diffusion-3-medium-diffusers": 2_028_328_000,
    "stabilityai/stable-diffusion-3.5-medium": 2_243_171_520,
    "stabilityai/stable-diffusion-3.5-large": 8_056_627_520,
}
"""Of the published models."""


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("presets")


def test_the_page_has_the_table_that_the_script_prints(costs, capsys):
    costs.main()
    assert capsys.readouterr().out in (ROOT / "docs/presets.md").read_text()
    assert {name for name in preset_names() if "shapes" not in name} == set(costs.CARDS)


def test_models_have_as_many_parameters_as_the_published():
    assert {name: parameters(model) for name, model in TRANSFORMERS.items()} == PARAMETERS


@pytest.mark.parametrize("preset", [name for name in preset_names() if "shapes" not in name])
def test_buckets_and_skipped_layers_suit_the_model(preset):
    config = load_config(preset=preset, environment={})
    model = TRANSFORMERS[config.teacher.model]
    pixels = 512**2 if preset.endswith("-512") else 1024**2
    for bucket in config.prompts.bucket_list():
        bucket.require_divisible(16)
        assert max(bucket) <= 16 * model["pos_embed_max_size"]
        assert 0.95 < bucket.width * bucket.height / pixels < 1.02
    skipped = config.synthesize.skip_layer_guidance
    assert skipped is None or max(skipped.layers) < model["num_layers"]


@pytest.mark.parametrize("preset", [name for name in preset_names() if "shapes" not in name])
def test_training_fits_the_card_of_the_preset(costs, preset):
    """With the text encoders, and 5 % of the card for the program itself."""
    config = costs.preset(preset)
    number, _, gigabytes, _ = costs.CARDS[preset].split()
    assert int(number) == config.distill.workers
    assert sum(costs.worker_bytes(config)) < 0.95 * int(gigabytes) * 2**30


def test_a_day_is_enough_for_the_preset_of_a_day(costs):
    assert costs.estimated(costs.preset("sd35-medium-512")).seconds < 24 * 3600
