"""A gate holds, or says by how much it is missed."""

from __future__ import annotations

import pytest

from schemas.report import Interval, SystemResult
from stages.judging.gates import failed_gates, gate_result


def result_of(value: float) -> SystemResult:
    return SystemResult(
        name="student_4",
        title="student",
        kind="student",
        steps=4,
        guidance_scale=None,
        scores={"attributes": Interval(mean=value, low=value, high=value)},
        by_bucket={},
        by_category={},
        distances={"fid": 3.0},
        diversity=1.0,
        seconds_per_picture=0.1,
    )


def test_a_gate_says_by_how_much_it_is_missed():
    missed = gate_result("student_4.attributes", ">= 0.85", [result_of(0.8)])
    assert not missed.passed and missed.misses_by == pytest.approx(0.05)
    assert gate_result("student_4.attributes", ">= 0.85", [result_of(0.85)]).passed
    assert gate_result("student_4.fid", "< 3.5", [result_of(0.8)]).passed
    assert not gate_result("student_4.fid", "< 3", [result_of(0.8)]).passed


def test_a_gate_on_a_distance_without_a_figure_is_missed():
    """Bug: look the value up by its name alone; an evaluation then ends without a report."""
    gate = gate_result("student_4.kid", "< 3", [result_of(0.8)])
    assert not gate.passed and gate.value is None
    assert failed_gates([gate]) == [
        "student_4.kid has no figure, its pictures are too few, and < 3 is demanded"
    ]
