"""The table of `score` for a teacher that is not of the shapes world."""

from __future__ import annotations

import pytest

from pipeline.commands.scoring import _print_table
from schemas.config import ScoreConfig, StudentTimeConfig
from stages.judging.table import Table, table_of
from tests.support.example_report import example_report
from tests.support.tiny_sd3 import make_tiny_config

SETTINGS = {
    "scores": [ScoreConfig(name="layout")],
    "features": ScoreConfig(name="judge_features"),
    "alike_prompts": 2,
    "alike_seeds": 2,
    "micro_batch": 16,
    "bootstrap": 100,
}


@pytest.fixture
def student(tiny_teacher, tmp_path):
    net = tiny_teacher.backbone()
    grid = tiny_teacher.student_grid(StudentTimeConfig())
    tiny_teacher.save_student(
        tmp_path / "student", lambda m: m.load_state_dict(net.state_dict()), grid
    )
    return tmp_path / "student"


@pytest.mark.slow
def test_teacher_and_student_are_measured_with_floor_and_intervals(tiny_sd3, student, tmp_path):
    config = make_tiny_config(tiny_sd3, tmp_path / "store")
    config = config.model_copy(
        update={
            "eval": config.eval.model_copy(update=SETTINGS),
            "synthesize": config.synthesize.model_copy(update={"steps": 2}),
        }
    )
    sizes = [(32, 32), (48, 32)]
    samples = [
        {
            **{"key": f"{i:04d}-000", "prompt": "a red circle", "seed": i, "category": "all"},
            **{"width": sizes[i % 2][0], "height": 32, "bucket": f"{sizes[i % 2][0]}x32"},
        }
        for i in range(22)
    ]
    table = table_of(config, {"mine": student}, samples, lambda text: None)
    assert [result.title for result in table.results] == [
        *("teacher, 4 steps", "teacher, 2 steps", "teacher, 1 step"),
        *("mine, 4 steps", "mine, 2 steps", "mine, 1 step"),
    ]
    own = next(result for result in table.results if result.name == "teacher")
    assert own.distances["cmmd"] == 0 and own.distances["precision"] == 1
    assert all(result.distances["cmmd"] > 0 for result in table.results if result is not own)
    assert table.floor["cmmd"].mean > 0
    assert table.too_few.keys() == {"fid", "patch_fid"}
    assert own.intervals["diversity"].low <= own.diversity <= own.intervals["diversity"].high
    assert own.by_bucket.keys() == {"32x32", "48x32"}


def test_a_students_numbers_of_steps_share_a_line_where_that_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    report = example_report()
    results = [system for system in report.systems if system.kind != "tuned"]
    table = Table(report.cards, results, report.floor, {"kid": "9 pictures, needs at least 20"})
    _print_table(table, ["student"])
    text = capsys.readouterr().out
    assert "student, 4 / 2 / 1 steps" in text and "0.904 / 0.861 / 0.838" in text
    assert "floor: teacher, other seeds" in text
    assert "no KID: 9 pictures, needs at least 20" in text
    _print_table(table, [])
    text = capsys.readouterr().out
    assert "student, 4 steps" in text and "0.904 [0.884, 0.924]" in text
