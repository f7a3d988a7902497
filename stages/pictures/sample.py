"""`ladd-pipeline sample`: samples prompts with a student, and makes a contact sheet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from schemas.bucket import Bucket
from schemas.errors import ConfigError
from stages.ladd.grid import steps_title, student_sigmas
from stages.pictures.contact_sheet import draw_grid
from stages.pictures.samplers import PlannedSample, student_sampler
from stages.pictures.student import check_steps, placed_to_sample, reading_student
from stages.teachers import folder_config, open_teacher
from stages.texts.identity import clean

_BATCH = 16
"""Pictures sampled in one batch."""
_ON_SHEET = 32
"""The most prompts that a contact sheet shows."""


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
    """Sample each prompt from the same seed with the student in `folder`. Returns the paths of the
    pictures, then the path of a contact sheet of the first 32.

    The adapters in the folder `lora` are applied to the student at `lora_scale`. `title` becomes
    part of the pictures' names. Raises ConfigError for a bucket or a number of steps that the
    student does not support.
    """
    try:
        size = Bucket.parse(bucket)
    except ValueError as error:
        raise ConfigError(f"--bucket: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with reading_student():
        teacher = open_teacher(folder_config(folder))
    teacher.place(device)
    teacher.check_bucket(size)
    with reading_student():
        student, grid = teacher.student()
    check_steps("--steps", steps, grid)
    if lora is not None:
        teacher.load_adapters(student, lora).scale(lora_scale)
    student = placed_to_sample(student, device)
    draw = student_sampler(teacher, student, device, student_sigmas(grid, steps))
    samples: list[PlannedSample] = [
        {"prompt": clean(prompt), "seed": seed, "width": size.width, "height": size.height}
        for prompt in prompts
    ]
    out.mkdir(parents=True, exist_ok=True)
    suffix = f"-{title}" if title else ""
    suffix += f"-lora{lora_scale:g}" if lora is not None else ""
    paths: list[Path] = []
    rows: list[tuple[str, list[np.ndarray]]] = []
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        for sample, picture in zip(batch, teacher.decode_latents(draw(batch)), strict=True):
            digest = hashlib.sha256(sample["prompt"].encode()).hexdigest()[:8]
            path = out / f"{digest}-{bucket}-{steps}-{sample['seed']}{suffix}.png"
            Image.fromarray(picture).save(path)
            paths.append(path)
            if len(rows) < _ON_SHEET:
                rows.append((sample["prompt"], [picture]))
    sheet = out / "contact-sheet.png"
    sheet.write_bytes(draw_grid([steps_title(steps)], rows))
    return [*paths, sheet]
