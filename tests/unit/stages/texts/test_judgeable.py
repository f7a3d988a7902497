"""Prompts that the embedded judge cannot judge are found by `plan`, not after the training."""

from __future__ import annotations

import pytest

from pipeline.commands.opening import open_config
from schemas.errors import ConfigError
from stages import dpo, eval, pairs
from stages.texts.identity import split_of
from stages.texts.judgeable import require_judged

SHAPES = [f"a {size} {color} ring" for size in ("small", "big") for color in ("red", "blue")]
CATS = [f"a photo of {n} cats" for n in ("two", "three", "four")]


@pytest.fixture
def configured(tmp_path):
    """A configuration that draws its prompts from a file, with scores of the shapes world."""

    def call(prompts, *settings):
        (tmp_path / "p.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
        source = f"prompts.sources=[{{kind: file, url: '{tmp_path / 'p.txt'}'}}]"
        return open_config(None, "shapes-smoke", [source, "prompts.count=null", *settings], {})

    return call


def test_ordinary_prompts_are_found_for_each_score(configured):
    ordinary = [*SHAPES, *CATS]
    config = configured(ordinary, "prompts.held_out_fraction=1")
    with pytest.raises(ConfigError, match=r"^eval\.scores: .*a photo of .*\(p\.txt line 5\)"):
        eval.check(config)
    config = configured(ordinary, "prompts.held_out_fraction=0.000001", "eval.url=x")
    with pytest.raises(ConfigError, match=rf"^pairs\.reward: {config.pairs.reward.name} judges"):
        pairs.check(config)
    with pytest.raises(ConfigError, match=rf"^dpo\.chooser: {config.dpo.chooser.name} judges"):
        dpo.check(config)


def test_captions_and_what_is_never_judged_pass(configured):
    eval.check(configured(SHAPES))
    pairs.check(configured(SHAPES))
    eval.check(configured([*SHAPES, *CATS], "prompts.block=[cats]"))
    eval.check(configured([*SHAPES, "a red " * 9 + "cat"]))
    trained = [prompt for prompt in CATS if split_of(prompt, 0.5) == "train"]
    assert trained
    eval.check(configured([*SHAPES, *trained], "prompts.held_out_fraction=0.5"))
    other = ("eval.scores=[{name: clip_score}]", "eval.features={name: clip_features}")
    eval.check(configured(CATS, *other, "prompts.held_out_fraction=1"))


def test_a_file_for_the_evaluation_is_looked_at(configured, tmp_path):
    (tmp_path / "DrawBench.csv").write_text("Prompts\nA red colored car.\n")
    settings = (f"eval.url={tmp_path / 'DrawBench.csv'}", "eval.column=Prompts")
    with pytest.raises(ConfigError, match=r"no word 'colored' \(DrawBench\.csv line 2\)"):
        eval.check(configured(SHAPES, *settings))


def test_what_plan_did_not_look_at_is_found_when_the_stage_begins():
    require_judged("eval.scores", ["clip_score", "layout"], SHAPES)
    require_judged("eval.scores", ["clip_score"], CATS)
    with pytest.raises(ConfigError, match=r"eval\.scores: layout judges only captions"):
        require_judged("eval.scores", ["clip_score", "layout"], [*SHAPES, *CATS])
