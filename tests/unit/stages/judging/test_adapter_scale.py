"""Which scale of the adapters is chosen."""

from __future__ import annotations

from stages.judging.adapter_scale import chosen_scale


def test_the_best_scale_is_the_choosers_and_of_equals_the_smallest():
    rows = [
        {"scale": 0.0, "hps": 9.0, "pick": 0.0},
        {"scale": 0.5, "hps": 2.0, "pick": 5.0},
        {"scale": 0.75, "hps": 3.0, "pick": 1.0},
        {"scale": 1.0, "hps": 3.0, "pick": 9.0},
    ]
    assert chosen_scale(rows, [0.5, 0.75, 1.0], "hps", 1) == 0.75
    assert chosen_scale(rows, [0.5, 0.75, 1.0], "hps", -1) == 0.5
    assert chosen_scale(rows, [0.0, 0.5], "hps", 1) == 0.0
