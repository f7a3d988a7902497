"""The registry of scores and feature spaces."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from stages.scores import EMBEDDED, FEATURES, SCORES, card_of
from tests.support.command import ROOT
from tests.support.scores import score, space


def test_every_name_has_a_class_with_a_card():
    for name in SCORES | FEATURES:
        card = card_of(ScoreConfig(name=name))
        assert card.title and card.licence and card.weights
        assert card.explanation.endswith(".")
        assert card.low is None or card.high is None or card.low < card.high


def test_every_score_stands_in_the_documentation():
    page = (ROOT / "docs" / "scores.md").read_text()
    for name in SCORES | FEATURES:
        assert f"| `{name}` |" in page


def test_unknown_names_are_told_what_was_meant():
    with pytest.raises(ConfigError, match="unknown score 'atributes'; did you mean attributes"):
        score("atributes")
    with pytest.raises(ConfigError, match="unknown feature space 'attributes'"):
        space("attributes")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_scores_take_no_model(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"scores\.{name}\.model: .* takes no model"):
        (score if name in SCORES else space)(name, tmp_path)


@pytest.mark.parametrize("name", ["hps", "image_reward", "aesthetic"])
def test_scores_without_a_model_on_the_hub_ask_for_one(name):
    with pytest.raises(ConfigError, match=rf"scores\.{name}\.model is empty"):
        score(name)


def test_prompts_and_sizes_that_the_shapes_scores_cannot_judge_are_said_so():
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    for name in ("attributes", "layout"):
        with pytest.raises(ConfigError, match="no word 'elephant'"):
            score(name).judge(picture, ["a red elephant"])
    with pytest.raises(ConfigError, match="divisible by 8, not 50x64"):
        space("judge_features").features(picture[:, :, :50])
