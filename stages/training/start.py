"""Where a student starts: from the teacher, or from what `distill.init` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.base.pins import names_student
from pipeline.base.stage import StageContext
from schemas.errors import ConfigError
from stages.teachers.hub import model_folder
from stages.teachers.protocol import Teacher
from stages.training.start_files import start_model


@contextmanager
def student_start(context: StageContext, teacher: Teacher) -> Iterator[Teacher]:
    """Give the teacher with the weights that the student starts from, to load until the block ends.

    Raises ConfigError unless they are there and of the teacher's architecture.
    """
    distill, store = context.config.distill, context.store
    if distill.init is None:
        yield teacher
    elif names_student(distill.init):
        student = store.find(*distill.init.split("/"))
        if student is None:
            raise ConfigError(
                f"distill.init: {store.url} has no student {distill.init}; `ladd-pipeline "
                "artifacts ls` lists them"
            )
        with student.local_folder("model") as folder:
            yield teacher.starting_from(folder)
    else:
        start = start_model(distill.init, distill.init_revision)
        yield teacher.starting_from(
            model_folder(start.model, start.revision, field=start.field, patterns=start.patterns)
        )
