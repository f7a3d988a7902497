"""The model card: what it says, and that what users wrote stays text."""

from __future__ import annotations

from huggingface_hub import ModelCard

from schemas.config import TeacherConfig
from schemas.report import Report
from stages.report.model_card import licence_of, render_card
from stages.teachers import sd3_student
from tests.support.example_report import example_report
from tests.support.pairs import EVEN


def card_of(
    report: Report, model: str | None = None, *, has_t5: bool = False, **options
) -> tuple[str, ModelCard]:
    """The card as an evaluation writes it."""
    kind = options.get("kind", "student")
    steps = [system.steps for system in report.systems if system.kind == kind]
    usage = sd3_student.usage(EVEN, steps, with_t5=has_t5)
    licence = licence_of(TeacherConfig(family="sd3", model=model))
    text = render_card(report, licence, usage, **options)
    assert usage in text
    return text, ModelCard(text)


def test_the_card_has_front_matter_that_the_hub_reads(report):
    _, card = card_of(report)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "diffusers",
        "text-to-image",
    )
    values = {(r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
    students = [s for s in report.systems if s.kind == "student"]
    assert values == {(s.name, n): i.mean for s in students for n, i in s.scores.items()}


def test_the_card_states_data_teacher_terms_and_metrics_with_intervals(report):
    text, card = card_of(
        report, "stabilityai/stable-diffusion-3.5-medium", base_model="stabilityai/x", has_t5=True
    )
    assert (card.data.license, card.data.license_name) == ("other", "stabilityai-ai-community")
    assert card.data.base_model == "stabilityai/x"
    assert "| **student, 4 steps** | 4 | 0.904 \\[0.884, 0.924\\] |" in text
    assert "| teacher, 4 steps | 4 | 0.447 \\[0.427, 0.467\\] |" in text
    assert "kept 3,384" in text
    assert "derivative of stabilityai/stable-diffusion-3.5-medium" in text
    assert "distilled from the teacher **shapes**" in text
    assert "text_encoder_3=None" not in text
    assert "**failed**: `student_4.fid` 0.271" in text
    assert "bd6195d6d3191698" in text


def test_the_card_of_the_tuned_student_is_about_the_tuned_student(report):
    text, card = card_of(report, kind="tuned")
    assert {r.dataset_config for r in card.data.eval_results} == {"tuned_4"}
    assert "diffusion-dpo" in card.data.tags
    assert "| tuned student, 4 steps | student, 4 steps | colour and layout |" in text
    assert "scheduler_one_step" not in text


def test_an_unknown_teachers_terms_are_not_invented():
    own = licence_of(TeacherConfig(model="/models/mine"))
    assert (own.name, own.link) == ("other", None)
    assert "The teacher's licence applies to this model too" in own.terms


def test_titles_cannot_break_the_cards_tables_or_front_matter():
    content = example_report().model_dump()
    content["name"] = "a\n---\nlicense: mit"
    content["cards"]["attributes"]["title"] = "a | b\n<script>alert(1)</script> *c*"
    text, card = card_of(Report.model_validate(content))
    assert card.data.license == "apache-2.0"
    table = [line for line in text.splitlines() if line.startswith("| | steps")]
    assert "a \\| b \\<script\\>alert(1)\\</script\\> \\*c\\*" in table[0]
    assert "<script>" not in card.text
