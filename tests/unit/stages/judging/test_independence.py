"""Whether a score judges that had no part in the tuning."""

from __future__ import annotations

import re

import pytest

from pipeline.config import load_config, preset_names
from stages.judging.independence import warnings
from tests.support.held_out import configured


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "eval.scores: layout made the pairs .*attributes chose the scale"),
        (["eval.scores=[{name: layout}]"], "eval.scores: layout made the pairs"),
        (["pairs.url=votes.jsonl"], None),
        (["pairs.url=votes.jsonl", "eval.scores=[{name: attributes}]"], "eval.scores: attributes"),
        (["eval.scores=[{name: attributes}, {name: hps}]"], None),
        (["dpo.chooser={name: clip_score, model: a}", "eval.scores=[{name: clip_score}]"], None),
        (["eval.tuned=false"], None),
        (["eval.tuned=false", "eval.features={name: clip_features}"], "eval.features"),
    ],
)
def test_a_score_that_made_pairs_or_chose_the_scale_may_not_be_the_only_judge(settings, words):
    found = warnings(configured(*settings))
    if words is None:
        assert found == []
    else:
        assert len(found) == 1 and re.search(words, found[0]), found


@pytest.mark.parametrize("preset", [name for name in preset_names() if "shapes" not in name])
def test_presets_of_the_hub_have_an_independent_judge(preset):
    sources = "prompts.sources=[{kind: file, url: prompts.txt}]"
    assert warnings(load_config(preset=preset, settings=[sources])) == []
