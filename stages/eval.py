"""Stage `eval`: samples teacher, student and, unless `eval.tuned` is false, tuned student on the
same held-out prompts and seeds, and judges every picture with every score. Makes a report, a page,
and the students' folders with their model cards.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.base.lineage import ancestors
from pipeline.base.mapping import map_shards, worker_devices
from pipeline.base.stage import Files, StageContext, StageResult
from pipeline.base.work import Above, Work
from schemas.config import EvalConfig, PipelineConfig, TeacherConfig
from stages.estimates.evaluations import evaluating
from stages.judging.gates import check_gates, failed_gates
from stages.judging.independence import warnings
from stages.judging.systems import TIMING, floor_of, plan_shards, shards_of, systems_of
from stages.pictures.student import check_steps
from stages.scores import FEATURES, check_model, check_score, score_models
from stages.teachers import check_teacher, open_teacher, teacher_models
from stages.teachers.hub_models import HubModel
from stages.texts.held_out import check_prompts, chosen_samples, prove_held_out, tell_of_failed_rows
from stages.texts.judgeable import require_judged

if TYPE_CHECKING:
    from schemas.report import Report

_STAGES = {"student": "distill", "tuned": "dpo"}
_FOLDERS: dict[str, Literal["student", "tuned"]] = {"student": "student", "model": "tuned"}
"""The artifact's folders with students, and the student that each holds."""


def check(config: PipelineConfig) -> None:
    """Raise ConfigError for missing prompts, a number of steps that the student does not take, an
    unknown score, a gate on a value that is not measured, or a model's folder that is not whole.
    """
    check_teacher(config.teacher)
    check_prompts(config)
    for steps in config.eval.student_steps:
        check_steps("eval.student_steps", steps, config.distill.student_time.grid)
    if config.eval.tuned:
        check_steps("eval.tuned_steps", config.eval.tuned_steps, config.distill.student_time.grid)
    check_judges(config.eval)
    check_gates(config, [system.name for system in systems_of(config)])


def check_judges(config: EvalConfig) -> None:
    """Raise ConfigError for an unknown score or feature space, or a folder that is not whole."""
    for score in config.scores:
        check_score("eval.scores", score.name)
    check_score("eval.features", config.features.name, FEATURES)
    for space in config.more_features:
        check_score("eval.more_features", space.name, FEATURES)
    for model in (*config.scores, config.features, *config.more_features):
        check_model(model)


def models(config: PipelineConfig) -> list[HubModel]:
    wanted = config.eval
    judges = [*wanted.scores, wanted.features, *wanted.more_features]
    return teacher_models(config.teacher) + score_models(judges)


def estimate(config: PipelineConfig) -> str:
    again = ", and by the teacher from other seeds" if config.eval.floor else ""
    return (
        f"up to {config.eval.prompts:,} held-out prompts, "
        f"each sampled by {len(systems_of(config))} systems{again}"
    )


def work(config: PipelineConfig, above: Above) -> Work | None:
    return evaluating(config, above)


def run(context: StageContext) -> StageResult:
    from stages.judging.drawn import read_drawn, read_pngs
    from stages.judging.judge import Judge
    from stages.judging.summary import make_report, read_trace

    config = context.config
    lineage = ancestors(context.inputs.values())
    samples = chosen_samples(context)
    tell_of_failed_rows(context)
    prompts = [sample["prompt"] for sample in samples]
    require_judged("eval.scores", [score.name for score in config.eval.scores], prompts)
    proof = prove_held_out(samples, lineage)
    for text in warnings(config):
        context.warn(text)
    systems = systems_of(config)
    shards = plan_shards(samples, systems, config)
    students = {k: context.inputs[stage] for k, stage in _STAGES.items() if stage in context.inputs}
    build = partial(Judge, config, context.store, context.folder, students, shards)
    done = map_shards(context, sorted(shards), build, config.eval.pool)
    one_worker = config.eval.pool.model_copy(update={"workers": 1})
    done |= map_shards(context, [TIMING], build, one_worker, unit="timings")
    context.finish()  # the report names times, and the pages have room for one
    report = make_report(
        config.model_copy(update={"teacher": published(config.teacher)}),
        systems,
        {s.name: read_drawn(context, s, shards) for s in (*systems, *floor_of(config))},
        done[TIMING].details["seconds_per_picture"],
        lineage,
        {student.manifest.stage: read_trace(student) for student in students.values()},
    )
    keys = {picture.key for picture in report.wall}
    pictures = {
        (key, system.name): png
        for system in systems
        for key, png in read_pngs(context, system, shards, keys).items()
    }
    return StageResult.of_shards(
        done.values(),
        worker_devices(config.eval.pool),
        files=_copy_students(context) | _write_pages(context, report, pictures),
        counts={"prompts": len(samples), "pictures": sum(s.counts["ok"] for s in done.values())},
        metrics={
            f"{system.name}.{score}": interval.mean
            for system in report.systems
            for score, interval in system.scores.items()
        },
        details={
            "systems": {
                system.name: {
                    "title": system.title,
                    "shards": [s.name for s in shards_of(shards, system.name, alike=False)],
                }
                for system in systems
            },
            "model": "model" if config.eval.tuned else "student",
            "student": "student",
            "held_out_proof": proof,
            "failed_gates": failed_gates(report.gates),
        },
    )


def _write_pages(
    context: StageContext, report: Report, pictures: dict[tuple[str, str], bytes]
) -> Files:
    """Write report.json, report.html, and the model card in each student's folder."""
    from stages.report.model_card import licence_of, render_card
    from stages.report.page import render_report

    teacher = context.config.teacher
    opened = open_teacher(teacher)
    grid = opened.student_grid(context.config.distill.student_time)
    is_hub_id = teacher.model is not None and not Path(teacher.model).exists()
    pages = {
        "report.json": report.model_dump_json(indent=2),
        "report.html": render_report(report, pictures),
    }
    for folder, kind in _folders(context):
        steps = [system.steps for system in report.systems if system.kind == kind]
        pages[f"{folder}/README.md"] = render_card(
            report,
            licence_of(published(teacher)),
            opened.usage(steps, grid),
            kind=kind,
            base_model=teacher.model if is_hub_id else None,
        )
    return {
        name: context.store.write(f"{context.folder}/{name}", text.encode())
        for name, text in pages.items()
    }


def _folders(context: StageContext) -> list[tuple[str, Literal["student", "tuned"]]]:
    """The folders of the students that there are, each with its kind."""
    return [(f, kind) for f, kind in _FOLDERS.items() if _STAGES[kind] in context.inputs]


def published(teacher: TeacherConfig) -> TeacherConfig:
    """The teacher as report and model cards name it: a local folder by its name alone, since they
    are published, and its path is of this machine.
    """
    if teacher.model is None or not Path(teacher.model).exists():
        return teacher
    return teacher.model_copy(update={"model": Path(teacher.model).resolve().name})


def _copy_students(context: StageContext) -> Files:
    """Copy the students' folders, to add model cards: a finished artifact never changes."""
    store, files = context.store, {}
    for folder, kind in _folders(context):
        student = context.inputs[_STAGES[kind]]
        for entry in student.files("model/"):
            name = f"{folder}/{entry.path.removeprefix('model/')}"
            store.copy(student.name(entry.path), f"{context.folder}/{name}")
            files[name] = (entry.size, entry.sha256)
    return files
