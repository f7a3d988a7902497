"""Finished students: open one from its folder, and sample on its own grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ConfigError
from stages.ladd.grid import step_counts, student_sigmas
from stages.teachers import folder_config, open_teacher

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.base.store import Artifact
    from schemas.config import PipelineConfig
    from stages.pictures.samplers import Sampler
    from stages.teachers.protocol import Teacher


def open_student(folder: Path) -> tuple[nn.Module, list[float]]:
    """The student's backbone in float32, and its sampling grid. Raises ArtifactError when the
    folder holds no student.
    """
    return open_teacher(folder_config(folder)).student()


def check_steps(field: str, steps: int, grid: Sequence[float]) -> None:
    """Raises ConfigError naming the field unless `steps` steps stay on levels of the grid."""
    if steps not in step_counts(grid):
        taken = " or ".join(map(str, step_counts(grid)))
        raise ConfigError(f"{field} is {steps}, but on its grid the student takes {taken}")


def student_of(artifact: Artifact, device: torch.device) -> tuple[nn.Module, list[float]]:
    """`open_student` of a `distill` or `dpo` artifact, on `device`."""
    with artifact.local_folder("model") as folder:
        backbone, grid = open_student(folder)
    return backbone.to(device), grid


def pairs_sampler(
    teacher: Teacher,
    backbone: nn.Module,
    grid: list[float],
    config: PipelineConfig,
    device: torch.device,
) -> Sampler:
    """Samples with a student in the `pairs.student_steps` steps that pairs are drawn in."""
    from stages.pictures.samplers import student_sampler

    sigmas = student_sigmas(grid, config.pairs.student_steps)
    in_bfloat16 = config.distill.precision == "bfloat16"
    return student_sampler(teacher, backbone, device, sigmas, bfloat16=in_bfloat16)
