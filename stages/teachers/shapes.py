"""The embedded default teacher: a small SD3 pipeline that ships with the project. `sd3.py` does all
the work.
"""

from __future__ import annotations

from schemas.config import TeacherConfig
from stages.teachers import EMBEDDED
from stages.teachers.sd3 import SD3Teacher

WEIGHTS = EMBEDDED
"""A complete `StableDiffusion3Pipeline` folder, which also holds the judge."""


class ShapesTeacher(SD3Teacher):
    """The embedded teacher. `model` may name another folder, written by `ladd-pipeline teacher
    train shapes`.
    """

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__(
            config if config.model else config.model_copy(update={"model": str(WEIGHTS)})
        )
