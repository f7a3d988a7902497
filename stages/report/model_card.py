"""The model card of a student's folder: README.md with the hub's front matter.

States what the student was made from, its terms of use, and its scores with intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData

from schemas.config import TeacherConfig
from schemas.report import Report, SystemResult
from stages.report.numbers import number
from stages.report.templates import template_environment

_HUB = "https://huggingface.co"
_COMMUNITY, _RESEARCH = "stabilityai-ai-community", "stabilityai-nc-research-community"
_NAMED = {
    "stabilityai/stable-diffusion-3-medium-diffusers": _RESEARCH,
    "stabilityai/stable-diffusion-3.5-medium": _COMMUNITY,
    "stabilityai/stable-diffusion-3.5-large": _COMMUNITY,
}


@dataclass(frozen=True)
class Licence:
    """The terms under which a student may be used: those of its teacher."""

    name: str
    """The hub's identifier; `other` if the hub has none."""
    terms: str
    """The terms in full sentences."""
    own_name: str | None = None
    link: str | None = None


def licence_of(teacher: TeacherConfig) -> Licence:
    """Licence of a student: it is a derivative of its teacher, so the teacher's licence applies."""
    if teacher.model is None:
        return Licence(
            "apache-2.0",
            "The embedded teacher and everything made from it are under the Apache License 2.0.",
        )
    name = _NAMED.get(teacher.model, "teachers-licence")
    known = teacher.model in _NAMED
    where = f"{_HUB}/{teacher.model}"
    suffix = f" ({name})" if known else ""
    return Licence(
        "other",
        f"This model is a derivative of {teacher.model}, which generated its training pictures. "
        f"The teacher's licence{suffix} applies to this model too, including anything that the "
        "licence says about commercial use, attribution and the training of other models. Read it "
        "before use" + (f": {where}." if known else "."),
        name,
        where if known else None,
    )


def render_card(
    report: Report,
    licence: Licence,
    usage: str,
    *,
    kind: Literal["student", "tuned"] = "student",
    base_model: str | None = None,
) -> str:
    """Render README.md of the folder with the student of this `kind`; `base_model` is the teacher's
    hub id, if it has one.
    """
    systems = sorted(
        (system for system in report.systems if system.kind == kind), key=lambda s: -s.steps
    )
    data = ModelCardData(
        language="en",
        license=licence.name,
        license_name=licence.own_name,
        license_link=licence.link,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base_model,
        tags=["ladd", "distillation", "few-step", *(["diffusion-dpo"] if kind == "tuned" else [])],
        model_name=f"{report.name} {kind}",
        eval_results=[result for system in systems for result in _results(report, system)] or None,
    )
    return (
        template_environment()
        .get_template("card.md.j2")
        .render(
            front_matter=data.to_yaml().rstrip(),
            report=report,
            kind=kind,
            systems=systems,
            teachers=sorted(
                (s for s in report.systems if s.kind == "teacher"), key=lambda s: -s.steps
            ),
            stages={step.stage for step in report.lineage},
            buckets=list(dict.fromkeys(b for s in systems for b in s.by_bucket)),
            licence=licence,
            base_model=base_model,
            usage=usage,
            number=number,
        )
    )


def _results(report: Report, system: SystemResult) -> list[EvalResult]:
    """Each score of one system, for the hub's table."""
    return [
        EvalResult(
            task_type="text-to-image",
            task_name=system.title,
            dataset_type="held-out-prompts",
            dataset_name=f"{report.prompts:,} held-out prompts",
            dataset_config=system.name,
            metric_type=name,
            metric_name=report.cards[name].title,
            metric_value=score.mean,
            metric_args={"interval_95": [score.low, score.high]},
        )
        for name, score in system.scores.items()
    ]
