"""Teacher families. A new family is one file here and one line in `FAMILIES`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.config import TeacherConfig
from schemas.errors import ConfigError
from schemas.suggest import did_you_mean

if TYPE_CHECKING:
    from stages.teachers.protocol import Teacher

# transformers warns at import that torchvision is absent; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

FAMILIES = {
    "sd3": "stages.teachers.sd3:SD3Teacher",
    "shapes": "stages.teachers.shapes:ShapesTeacher",
}

EMBEDDED_REVISION = Path(__file__).parents[1] / "shapes_world" / "weights" / "REVISION"


def pinned(config: TeacherConfig) -> TeacherConfig:
    """Name the embedded teacher's revision, so that new weights make new artifacts. Reads one small
    file at most.
    """
    if config.family != "shapes" or config.model is not None or config.revision is not None:
        return config
    revision = EMBEDDED_REVISION.read_text().strip() if EMBEDDED_REVISION.exists() else None
    return config.model_copy(update={"revision": revision})


def open_teacher(config: TeacherConfig) -> Teacher:
    """The teacher that a config names; weights are loaded when they are first used.

    Raises ConfigError for an unknown family, or for a model that is not there or not complete.
    """
    if config.family not in FAMILIES:
        raise ConfigError(
            "teacher.family: unknown family "
            f"{config.family!r}{did_you_mean(config.family, FAMILIES)}"
        )
    module, name = FAMILIES[config.family].split(":")
    return getattr(importlib.import_module(module), name)(config)
