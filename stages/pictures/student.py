"""Finished students: open one from its folder, and sample on its grid."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ArtifactError, ConfigError
from stages.ladd.grid import StudentGrid, step_counts, student_sigmas
from stages.teachers import folder_config, open_teacher

if TYPE_CHECKING:
    import torch

    from pipeline.base.store import Artifact
    from schemas.config import PipelineConfig
    from stages.ladd.backbone import Backbone
    from stages.pictures.samplers import Sampler
    from stages.teachers.protocol import Teacher


def open_student(folder: Path) -> tuple[Backbone, StudentGrid]:
    """Open a student; returns its backbone in float32 and its sampling grid. Raises ArtifactError
    when the folder holds no student, or a damaged one.
    """
    with reading_student():
        return open_teacher(folder_config(folder)).student()


def placed_to_sample(
    backbone: Backbone, device: torch.device, *, bfloat16: bool = True
) -> Backbone:
    """Put a student on `device`, for a sampler that computes in bfloat16, or in float32. The
    matrices of a student that was saved in bfloat16 stay in it for the first kind.
    """
    from stages.ladd.precision import keep_matrices_low

    if bfloat16:
        keep_matrices_low(backbone, device)
    return backbone.to(device)


@contextmanager
def reading_student() -> Iterator[None]:
    """Turn what is wrong with a student's folder into ArtifactError: no field of the configuration
    names it.
    """
    try:
        yield
    except ConfigError as error:
        problem = str(error).removeprefix("teacher.model: ")
        raise ArtifactError(f"the student cannot be opened: {problem}") from error


def check_steps(field: str, steps: int, grid: Sized) -> None:
    """Raise ConfigError naming the field unless `steps` steps stay on levels of the grid."""
    if steps not in step_counts(grid):
        taken = " or ".join(map(str, step_counts(grid)))
        raise ConfigError(f"{field} is {steps}, but the student takes {taken} steps on its grid")


def student_of(
    artifact: Artifact, device: torch.device, *, bfloat16: bool
) -> tuple[Backbone, StudentGrid]:
    """`open_student` of a `distill` or `dpo` artifact, then `placed_to_sample`."""
    with artifact.local_folder("model") as folder:
        backbone, grid = open_student(folder)
    return placed_to_sample(backbone, device, bfloat16=bfloat16), grid


def pairs_student(
    artifact: Artifact, config: PipelineConfig, device: torch.device
) -> tuple[Backbone, StudentGrid]:
    """The student for `pairs_sampler`."""
    return student_of(artifact, device, bfloat16=_in_bfloat16(config))


def pairs_sampler(
    teacher: Teacher,
    backbone: Backbone,
    grid: StudentGrid,
    config: PipelineConfig,
    device: torch.device,
) -> Sampler:
    """The student's sampler with `pairs.student_steps` steps, as for sampling pairs."""
    from stages.pictures.samplers import student_sampler

    sigmas = student_sigmas(grid, config.pairs.student_steps)
    return student_sampler(teacher, backbone, device, sigmas, bfloat16=_in_bfloat16(config))


def _in_bfloat16(config: PipelineConfig) -> bool:
    return config.distill.precision == "bfloat16"
