"""Flags over environment over file over preset, and clear words for what is not valid."""

from __future__ import annotations

import pytest

from pipeline.config import load_config, preset_names
from schemas.errors import ConfigError


def test_precedence_flag_over_environment_over_file_over_preset(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("preset: shapes\ndistill: {steps: 11, learning_rate: 0.5}\nname: filed\n")
    environment = {
        "LADD_DISTILL__LEARNING_RATE": "0.25",
        "LADD_DISTILL__SEED": "3",
        "LADD_UNRELATED": "x",
    }
    config = load_config(file, settings=["distill.seed=4"], environment=environment)
    assert (
        config.name,
        config.distill.steps,
        config.distill.learning_rate,
        config.distill.seed,
    ) == ("filed", 11, 0.25, 4)
    assert (
        config.prompts.samples_per_shard
        == load_config(preset="shapes", environment={}).prompts.samples_per_shard
    )


def test_scientific_notation_without_a_dot_is_a_number():
    assert (
        load_config(
            preset="shapes", settings=["distill.learning_rate=1e-6"], environment={}
        ).distill.learning_rate
        == 1e-6
    )


@pytest.mark.parametrize("setting", ["distill", "=3", "distill.steps=[1"])
def test_malformed_settings_are_refused(setting):
    with pytest.raises(ConfigError, match="--set"):
        load_config(preset="shapes", settings=[setting], environment={})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    config = load_config(preset=name, environment={})
    assert config.distill.global_batch % config.distill.workers == 0


def test_a_preset_builds_on_another(tmp_path):
    """Bug: replace a section of the other whole."""
    one, eight, large = (
        load_config(preset=name, environment={})
        for name in ("sd35-medium", "sd35-medium-8gpu", "sd35-large")
    )
    assert (one.distill.workers, eight.distill.workers) == (1, 8)
    assert eight.distill.discriminator == one.distill.discriminator
    assert (eight.synthesize, eight.eval) == (one.synthesize, one.eval)
    assert large.synthesize.skip_layer_guidance is None
    file = tmp_path / "mine.yaml"
    file.write_text("preset: sd35-medium-8gpu\ndistill: {steps: 9}\n")
    assert load_config(file, environment={}).distill == eight.distill.model_copy(
        update={"steps": 9}
    )


def test_unknown_preset_suggests():
    with pytest.raises(ConfigError, match="did you mean shapes"):
        load_config(preset="shape", environment={})


def test_unknown_field(refused):
    code, text = refused("plan", distill={"learning_rat": 1})
    assert code == 2, text
    assert "unknown field distill.learning_rat; did you mean learning_rate?" in text


def test_wrong_type(refused):
    code, text = refused("plan", "--set", "distill.steps=many")
    assert code == 2, text
    assert "distill.steps" in text and "integer" in text and "'many'" in text
