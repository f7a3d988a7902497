"""A finished student: load it from its diffusers folder and draw with it on its own grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from schemas.bucket import Bucket
from schemas.errors import ArtifactError, ConfigError
from stages.ladd.sampling import step_counts, student_sigmas
from stages.painters import student_painter
from stages.prompts import clean
from stages.sample_grid import draw_grid
from stages.teachers import open_teacher
from stages.teachers.sd3 import SD3Teacher

_TOGETHER = 16
"""Pictures drawn in one batch."""
_ON_SHEET = 32
"""Prompts that a contact sheet shows at most."""


def open_student(folder: Path) -> tuple[nn.Module, list[float]]:
    """The student's backbone, float32, and its sampling grid. Raises ArtifactError when the folder
    is no student's.
    """
    try:
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        record = json.loads((folder / "student.json").read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is not a student's folder: {error}") from error
    if scheduler.get("shift") != 1.0 or not scheduler.get("stochastic_sampling"):
        raise ArtifactError(
            f"{folder}/scheduler is not the one that was saved with the student; distill again"
        )
    return SD3Teacher(_as_teacher(folder)).backbone(dtype=torch.float32).eval(), record["grid"]


def check_steps(field: str, steps: int, grid: Sequence[float]) -> None:
    """Raises ConfigError naming the field when `steps` do not stay on levels of the grid."""
    if steps not in step_counts(grid):
        taken = " or ".join(map(str, step_counts(grid)))
        raise ConfigError(f"{field} is {steps}, but on its grid the student takes {taken}")


def _as_teacher(folder: Path) -> Any:
    from schemas.config import TeacherConfig

    return TeacherConfig(
        family="sd3", model=str(folder), use_t5=(folder / "text_encoder_3").is_dir()
    )


def draw_prompts(
    folder: Path,
    prompts: Sequence[str],
    steps: int,
    bucket: str,
    seed: int,
    out: Path,
    *,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    title: str = "",
) -> list[Path]:
    """Draw each prompt with the same seed; returns the pictures' paths and that of a contact sheet,
    which shows the first of them. The adapters in the folder `lora` are put on the student at
    `lora_scale`. `title` of the student becomes part of the pictures' names.

    Raises ConfigError for a bucket or a number of steps that the student cannot draw.
    """
    try:
        size = Bucket.parse(bucket)
    except ValueError as error:
        raise ConfigError(f"--bucket: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = open_teacher(_as_teacher(folder))
    teacher.place(device)
    teacher.check_bucket(size)
    student, grid = open_student(folder)
    check_steps("--steps", steps, grid)
    if lora is not None:
        teacher.load_adapters(student, lora).scale(lora_scale)
    paint = student_painter(teacher, student.to(device), device, student_sigmas(grid, steps))
    samples = [
        {"prompt": clean(prompt), "seed": seed, "width": size.width, "height": size.height}
        for prompt in prompts
    ]
    out.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    drawn_by = f"-{title}" if title else ""
    drawn_by += f"-lora{lora_scale:g}" if lora is not None else ""
    for at in range(0, len(samples), _TOGETHER):
        part = samples[at : at + _TOGETHER]
        for sample, picture in zip(part, teacher.decode_latents(paint(part)), strict=True):
            text = hashlib.sha256(sample["prompt"].encode()).hexdigest()[:8]
            path = out / f"{text}-{bucket}-{steps}-{sample['seed']}{drawn_by}.png"
            Image.fromarray(picture).save(path)
            paths.append(path)
            if len(rows) < _ON_SHEET:
                rows.append((sample["prompt"], [picture]))
    sheet = out / "contact-sheet.png"
    sheet.write_bytes(draw_grid([f"{steps} step{'s'[: steps > 1]}"], rows))
    return [*paths, sheet]
