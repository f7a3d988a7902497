"""What an evaluation refuses before anything starts."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.executor import make
from pipeline.observe import Observer
from pipeline.planning import Selection
from schemas.config import TeacherConfig
from schemas.errors import ConfigError
from schemas.report import Report
from stages.eval import check, published
from tests.support.held_out import configured
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.without_ray import without_ray


@pytest.mark.parametrize("setting", ["eval.student_steps=[1,3]", "eval.tuned_steps=3"])
def test_steps_off_the_students_grid_are_refused_before_anything_starts(setting):
    field = setting.split("=")[0]
    with pytest.raises(ConfigError, match=rf"{field} is 3, .* takes 4 or 2 or 1"):
        check(configured(setting))


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ("student_3.attributes: '>= 0.5'", "names no system.*did you mean"),
        ("student_4.atributes: '>= 0.5'", "names no measure.*did you mean"),
        ("student_4.attributes: about 1", "is not a comparison"),
    ],
)
def test_a_gate_that_means_nothing_is_refused_before_anything_runs(gate, reason):
    with pytest.raises(ConfigError, match=reason):
        check(configured(f"eval.gates={{{gate}}}"))


@pytest.mark.slow
def test_a_student_is_evaluated_alone_with_a_floor(tiny_sd3, tmp_path, monkeypatch):
    """Bug: copy `model` from `dpo` always; an evaluation without tuning then ends with KeyError."""
    without_ray(monkeypatch)
    prompts = {"count": 64, "held_out_fraction": 0.5}
    wanted = {
        "tuned": False,
        "scores": [{"name": "layout"}],
        "features": {"name": "judge_features"},
        "student_steps": [1],
        "alike_prompts": 2,
        "alike_seeds": 2,
        "bootstrap": 100,
        "gates": {"student_1.fid": "< 9"},
    }
    config = make_tiny_config(tiny_sd3, tmp_path / "store", prompts=prompts, eval=wanted)
    store = ArtifactStore(config.store)
    made = make(Selection(), "eval", config, store, Observer("text"))
    assert not store.list("artifacts/dpo") and not store.list("artifacts/pairs")
    with made.checked(made.entry("report.json")) as path:
        report = Report.model_validate_json(path.read_bytes())
    assert [system.name for system in report.systems] == ["teacher", "teacher_1", "student_1"]
    assert report.headline.startswith("In 1 step the student reaches")
    assert report.floor["kid"].low < report.floor["kid"].high
    assert report.too_few.keys() == {"fid"} and report.tuning == {}
    assert made.manifest.details["model"] == "student" and made.has("student/README.md")
    assert made.manifest.details["failed_gates"] == [
        "student_1.fid has no figure, its pictures are too few, and < 9 is demanded"
    ]
    assert not any(system == "floor" for system in made.manifest.details["systems"])


def test_a_gate_on_the_tuned_student_needs_the_tuned_student():
    settings = "eval.tuned=false", "eval.gates={tuned_4.attributes: '>= 0.5'}"
    with pytest.raises(ConfigError, match=r"'tuned_4.attributes' is about the tuned student"):
        check(configured(*settings))


def test_a_further_feature_space_is_known_and_named_once():
    with pytest.raises(ConfigError, match=r"eval.more_features.name: unknown score 'dino'"):
        check(configured("eval.more_features=[{name: dino}]"))
    with pytest.raises(ConfigError, match="judge_features is named twice"):
        configured("eval.more_features=[{name: judge_features}]")


def test_a_local_teacher_is_published_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "my-sd3").mkdir()
    monkeypatch.chdir(tmp_path)
    for model in (str(tmp_path / "my-sd3"), "my-sd3", "./my-sd3/"):
        assert published(TeacherConfig(family="sd3", model=model)).model == "my-sd3"
    for model in (None, "stabilityai/stable-diffusion-3.5-medium"):
        assert published(TeacherConfig(family="sd3", model=model)).model == model
