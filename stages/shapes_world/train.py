"""Trains the embedded teacher from scratch: each part in turn, all resumable. Then writes a
complete diffusers folder.

The shipped transformer took 5.7 hours on two busy CPU cores; logs are in docs/teacher-training.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from stages.shapes_world.judge import ShapesJudge
from stages.shapes_world.scenes import SCATTER, TILT
from stages.shapes_world.state_file import StateFileError
from stages.shapes_world.train_judge import train_judge
from stages.shapes_world.train_text import train_text
from stages.shapes_world.train_transformer import (
    EncodedScenes,
    Freedom,
    TextConditioner,
    encode_scenes,
    scene_of,
    train_transformer,
)
from stages.shapes_world.train_vae import train_vae
from stages.teachers.folder_check import forget_paths

STEPS = {"vae": 1400, "text": 300, "judge": 1000, "transformer": 23_100}
SCENES = 60_000
CURRICULUM = (
    (0.0, Freedom(math.pi, None)),
    (0.09, Freedom(TILT, None)),
    (0.89, Freedom(TILT, SCATTER)),
)
"""The scenes to train on, and the share of the transformer's steps at which they begin: objects
rotated freely and anywhere, then upright and anywhere, finally as in the shapes world.
"""


def train_all(
    work: Path, out: Path, share: float = 1.0, report: Callable[[str], None] = print
) -> None:
    """Train what is missing in `work` and write the pipeline to `out`. `share` scales the
    numbers of steps and scenes.
    """
    steps = {name: max(2, round(count * share)) for name, count in STEPS.items()}
    scenes = max(500, round(SCENES * share))
    vae = train_vae(work, steps=steps["vae"])
    tokenizer, towers = train_text(work, steps=steps["text"])
    judge = train_judge(work, vae, steps=steps["judge"])
    stages = [
        (round(begin * steps["transformer"]), _cached_scenes(work, vae, scenes, freedom, report))
        for begin, freedom in CURRICULUM
    ]
    conditioner = TextConditioner(tokenizer, towers)
    transformer = train_transformer(work, stages, conditioner, steps=steps["transformer"])
    assemble(out, transformer, vae, tokenizer, towers, judge)
    report(f"the embedded teacher is in {out}")


def _cached_scenes(
    work: Path,
    vae: AutoencoderKL,
    count: int,
    freedom: Freedom,
    report: Callable[[str], None],
    seed: int = 0,
) -> list[EncodedScenes]:
    path = work / f"latents-{count}-{freedom.tilt:.2f}-{freedom.scatter}.safetensors"
    if not path.exists():
        data = encode_scenes(vae, count, seed, freedom, report)
        partial = path.with_suffix(".partial")
        save_file({str(i): group.latents for i, group in enumerate(data)}, partial)
        os.replace(partial, path)
        return data
    try:
        latents = load_file(path)
    except SafetensorError as error:
        raise StateFileError(
            f"latents {path} cannot be read ({error}); delete the file to make it again"
        ) from error
    buckets = len(latents)
    return [
        EncodedScenes(
            [scene_of(i, seed, freedom) for i in range(bucket, count, buckets)],
            latents[str(bucket)],
        )
        for bucket in range(buckets)
    ]


def assemble(
    out: Path,
    transformer: SD3Transformer2DModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    towers: list[CLIPTextModelWithProjection],
    judge: ShapesJudge,
) -> None:
    """Write a complete `StableDiffusion3Pipeline` folder in bfloat16, including the judge and
    a REVISION file.
    """
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.to(torch.bfloat16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),  # as in SD3
        vae=vae.to(torch.bfloat16),
        text_encoder=towers[0].to(torch.bfloat16),
        tokenizer=tokenizer,
        text_encoder_2=towers[1].to(torch.bfloat16),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    shutil.rmtree(out, ignore_errors=True)
    pipeline.save_pretrained(out, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        # By default transformers loads the dtype of the configuration, but diffusers loads float32.
        # Setting float32 here gives the whole pipeline one dtype.
        config = out / name / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n"
        )
    forget_paths(out)
    save_file(
        {name: value.contiguous() for name, value in judge.state_dict().items()},
        out / "judge.safetensors",
    )
    (out / "REVISION").write_text(revision_of(out) + "\n")


def revision_of(folder: Path) -> str:
    """Hash every file except REVISION to 12 hex digits, which identify the embedded teacher in
    artifact keys.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "REVISION"):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
