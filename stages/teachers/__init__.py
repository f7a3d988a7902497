"""Teacher families. A new family is one file here and one line in `FAMILIES`.

No other code knows the families: stages open teachers and students through this module and see
only `protocol.Teacher`. Importing it loads neither torch nor diffusers.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import ArtifactError, ConfigError
from schemas.suggest import did_you_mean

if TYPE_CHECKING:
    from schemas.config import TeacherConfig
    from schemas.resources import WorkerPool
    from stages.teachers.costs import ModelCosts
    from stages.teachers.hub_models import HubModel
    from stages.teachers.protocol import Teacher

# At import transformers warns that torchvision is absent, which this project does not need, and
# diffusers and torch warn of a torchao that is present.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
for _library in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Family:
    """The parts of a family. Code is named as `module:name` and imported when it is used."""

    teacher: str
    """A class that implements `protocol.Teacher` and is constructed from a TeacherConfig."""
    pipeline: str
    """`_class_name` in the model_index.json of the family's folders."""
    costs: str | None = None
    """A function of TeacherConfig and the teacher's folder, or None if that is not on this machine,
    that returns `costs.ModelCosts` or None, and does not import torch. Without it `plan` counts
    samples, but neither hours nor memory.
    """
    check: str | None = None
    """A function of TeacherConfig and the teacher's folder that raises ConfigError unless the
    folder can be used, and does not import torch.
    """
    hub: str | None = None
    """A function of TeacherConfig that returns the model as a `hub_models.HubModel`, and does not
    import torch. Without it a run does not look at the hub before it starts.
    """
    start: str | None = None
    """A function of a folder that `distill.init` names and the teacher's folder that raises
    ConfigError unless a student can start there, and does not import torch.
    """
    embedded: Path | None = None
    """Weights that ship with the project, for a configuration that names no model."""


EMBEDDED = Path(__file__).parents[1] / "shapes_world" / "weights"
_SD3 = Family(
    teacher="stages.teachers.sd3:SD3Teacher",
    pipeline="StableDiffusion3Pipeline",
    costs="stages.teachers.sd3_costs:model_costs",
    check="stages.teachers.sd3_folder:check_teacher",
    hub="stages.teachers.sd3_folder:hub_model",
    start="stages.teachers.sd3_folder:check_start",
)

FAMILIES = {
    "sd3": _SD3,
    "shapes": replace(_SD3, teacher="stages.teachers.shapes:ShapesTeacher", embedded=EMBEDDED),
}


def pinned(config: TeacherConfig) -> TeacherConfig:
    """Fill in the revision of an embedded teacher, so that new weights give new artifacts. Reads at
    most one small file.
    """
    family = FAMILIES.get(config.family)
    if family is None or family.embedded is None or config.model or config.revision:
        return config
    mark = family.embedded / "REVISION"
    revision = mark.read_text().strip() if mark.exists() else None
    return config.model_copy(update={"revision": revision})


def check_teacher(config: TeacherConfig) -> None:
    """Raise ConfigError for an unknown family, and for a teacher's folder on this machine that is
    not whole. Reads JSON files and headers only, imports no torch and asks no hub.
    """
    from stages.teachers.hub import model_folder

    family = _family(config.family)
    if config.model is not None and family.check is not None and Path(config.model).exists():
        folder = model_folder(config.model, None, field="teacher.model", patterns=())
        _load(family.check)(config, folder)


def teacher_models(config: TeacherConfig) -> list[HubModel]:
    """The models of the hub that the teacher needs."""
    family = _family(config.family)
    if config.model is None or family.hub is None:
        return []
    return [_load(family.hub)(config)]


def check_start(config: TeacherConfig, folder: Path) -> None:
    """Raise ConfigError if a student cannot start in a folder on this machine. Reads JSON files and
    headers only; what is not on this machine is looked at when it is opened.
    """
    from stages.teachers.hub import local_folder

    family = _family(config.family)
    teacher = family.embedded if config.model is None else local_folder(config)
    if family.start is not None and folder.is_dir() and teacher is not None:
        _load(family.start)(folder, teacher)


def open_teacher(config: TeacherConfig) -> Teacher:
    """The teacher that a configuration names; its weights are loaded on first use.

    Raises ConfigError for an unknown family, and for a missing or incomplete model.
    """
    teacher: Teacher = _load(_family(config.family).teacher)(config)
    return teacher


def open_teacher_in(pool: WorkerPool, config: TeacherConfig) -> Teacher:
    """Call `open_teacher` in a worker of a pool, and place the teacher on that worker's device."""
    from stages.teachers.devices import pool_device

    teacher = open_teacher(config)
    teacher.place(pool_device(pool))
    return teacher


def folder_config(folder: Path) -> TeacherConfig:
    """The configuration that opens a saved student's folder. Raises ArtifactError when the folder
    is not from a known family.
    """
    from schemas.config import TeacherConfig

    try:
        pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder} is not a student's folder: its model_index.json cannot be read ({error})"
        ) from error
    for name, family in FAMILIES.items():
        if family.pipeline == pipeline:
            return TeacherConfig(family=name, model=str(folder))
    raise ArtifactError(
        f"{folder} is not a student's folder: no teacher family saves a {pipeline!r}"
    )


def model_costs(config: TeacherConfig) -> ModelCosts | None:
    """What the teacher's parts cost. None when the family has no estimate, when the teacher's files
    are incomplete, or not on this machine and of no published model. Does not import torch.
    """
    from stages.teachers.hub import local_folder

    family = FAMILIES.get(config.family)
    if family is None or family.costs is None:
        return None
    folder = family.embedded if config.model is None else local_folder(config)
    try:
        costs: ModelCosts | None = _load(family.costs)(config, folder)
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # An incomplete folder, or odd JSON files: `check_teacher` reports them.
        return None
    return costs


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"teacher.family: unknown family {name!r}{did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def _load(place: str) -> Any:
    """Import a family's code. The garbage collector pauses meanwhile: diffusers and transformers
    make so many objects that it would take an eighth of the time.
    """
    module, name = place.split(":")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        if was_enabled:
            gc.enable()
