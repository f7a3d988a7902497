"""CLIP's limits."""

from __future__ import annotations

from tests.support.scores import noise, score


def test_prompts_beyond_the_models_length_are_cut(tiny_clip):
    clip_score = score("clip_score", tiny_clip)
    beyond = "a red circle " * 40
    same_start = beyond + "on black"
    values = [clip_score.judge(noise(1), [text]) for text in (beyond, same_start)]
    assert values[0] == values[1]
