"""`ladd-pipeline sample`: pictures of prompts by a student, and a contact sheet of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from schemas.bucket import Bucket
from schemas.errors import ConfigError
from stages.ladd.grid import steps_title, student_sigmas
from stages.pictures.contact_sheet import draw_grid
from stages.pictures.samplers import student_sampler
from stages.pictures.student import check_steps
from stages.teachers import folder_config, open_teacher
from stages.texts.identity import clean

_BATCH = 16
"""Pictures drawn in one batch."""
_ON_SHEET = 32
"""Prompts that a contact sheet shows at most."""


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
    """Draw each prompt from the same seed with the student in `folder`; returns the paths of the
    pictures, then that of a contact sheet of the first 32.

    The adapters in the folder `lora` are put on the student at `lora_scale`. `title` becomes part
    of the pictures' names. Raises ConfigError for a bucket or a number of steps that the student
    cannot draw.
    """
    try:
        size = Bucket.parse(bucket)
    except ValueError as error:
        raise ConfigError(f"--bucket: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = open_teacher(folder_config(folder))
    teacher.place(device)
    teacher.check_bucket(size)
    student, grid = teacher.student()
    check_steps("--steps", steps, grid)
    if lora is not None:
        teacher.load_adapters(student, lora).scale(lora_scale)
    draw = student_sampler(teacher, student.to(device), device, student_sigmas(grid, steps))
    samples = [
        {"prompt": clean(prompt), "seed": seed, "width": size.width, "height": size.height}
        for prompt in prompts
    ]
    out.mkdir(parents=True, exist_ok=True)
    suffix = f"-{title}" if title else ""
    suffix += f"-lora{lora_scale:g}" if lora is not None else ""
    paths, rows = [], []
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        for sample, picture in zip(batch, teacher.decode_latents(draw(batch)), strict=True):
            text = hashlib.sha256(sample["prompt"].encode()).hexdigest()[:8]
            path = out / f"{text}-{bucket}-{steps}-{sample['seed']}{suffix}.png"
            Image.fromarray(picture).save(path)
            paths.append(path)
            if len(rows) < _ON_SHEET:
                rows.append((sample["prompt"], [picture]))
    sheet = out / "contact-sheet.png"
    sheet.write_bytes(draw_grid([steps_title(steps)], rows))
    return [*paths, sheet]
