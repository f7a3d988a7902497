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
from stages.ladd.sampling import initial_noise, sample_consistency, student_sigmas
from stages.sample_grid import draw_grid
from stages.teachers import open_teacher
from stages.teachers.sd3 import SD3Teacher


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
) -> list[Path]:
    """Draw each prompt; returns the pictures' paths and that of a contact sheet."""
    size = Bucket.parse(bucket)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = open_teacher(_as_teacher(folder))
    teacher.place(device)
    teacher.check_bucket(size)
    student, grid = open_student(folder)
    if not 1 <= steps <= len(grid):
        raise ConfigError(f"--steps {steps}: this student samples in 1 to {len(grid)} steps")
    noise, generators = initial_noise(
        [seed + i for i in range(len(prompts))], teacher.latent_shape(size)
    )
    with torch.autocast(device.type, torch.bfloat16):
        latents = sample_consistency(
            student.to(device),
            noise.to(device),
            teacher.encode_prompts(prompts).to(device),
            student_sigmas(grid, steps),
            generators,
        )
    pictures = teacher.decode_latents(latents)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        name = f"{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-{bucket}-{steps}-{seed + i}.png"
        Image.fromarray(picture).save(out / name)
        paths.append(out / name)
    sheet = out / "contact-sheet.png"
    sheet.write_bytes(
        draw_grid(
            [f"{steps} step{'s'[: steps > 1]}"],
            [(p, [x]) for p, x in zip(prompts, pictures, strict=True)],
        )
    )
    return [*paths, sheet]
