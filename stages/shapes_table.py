"""The table that judges a student of the shapes world: attributes right, and distance to the
teacher's pictures.

Same held-out prompts and seeds for every row. The feature space of the Fréchet distance is the
judge's, see docs/method.md.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.bucket import Bucket
from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from stages.ladd.sampling import student_sigmas
from stages.painters import Painter, Sample, student_painter, teacher_painter
from stages.prompt_sources import read_grammar
from stages.prompts import bucket_of, seed_of, split_of
from stages.scores.frechet import frechet_distance
from stages.scores.shapes_judge import ShapesJudge, shows_all
from stages.shapes_world.captions import parse
from stages.shapes_world.scenes import render, sample_scene
from stages.student import open_student
from stages.teachers import open_teacher
from stages.teachers.protocol import Teacher
from stages.teachers.shapes import WEIGHTS

BATCH = 32
CPU = torch.device("cpu")


def held_out(config: PipelineConfig, count: int) -> dict[Bucket, list[dict[str, Any]]]:
    """The first `count` distinct held-out prompts of the grammar with bucket and seed, by bucket.

    The split is by hash, so none of them is ever a training prompt of this configuration.
    """
    prompts = config.prompts
    if prompts.held_out_fraction == 0:
        raise ConfigError("prompts.held_out_fraction is 0: there is nothing to judge on")
    drawn = dict.fromkeys(
        p
        for p in islice(read_grammar(prompts.seed), 200 * count + 10_000)
        if split_of(p, prompts.held_out_fraction) == "held_out"
    )
    groups: dict[Bucket, list[dict[str, Any]]] = defaultdict(list)
    for prompt in islice(drawn, count):
        bucket = Bucket.parse(bucket_of(prompt, prompts.buckets))
        seed = seed_of(prompts.seed, prompt, 0)
        groups[bucket].append(
            {"prompt": prompt, "seed": seed, "width": bucket.width, "height": bucket.height}
        )
    return dict(sorted(groups.items()))


@torch.no_grad()
def score_table(
    config: PipelineConfig, students: dict[str, Path], count: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a sampler: `all attributes` in percent, `Frechet` to the teacher's own steps (None
    for real scenes). `students` are names and diffusers folders.
    """
    teacher = open_teacher(config.teacher)
    net = teacher.backbone()
    making = config.synthesize
    samples = held_out(config, count)

    def from_teacher(steps: int, guidance_scale: float) -> Painter:
        return teacher_painter(teacher, net, CPU, steps, guidance_scale)

    judged = {"real scenes": _judge(samples, _draw_real, report, "real scenes")}
    reference = f"teacher, {making.steps} steps, guidance {making.guidance_scale:g}"
    samplers: dict[str, Any] = {reference: from_teacher(making.steps, making.guidance_scale)}
    samplers |= {
        f"teacher, {n} step{'s'[: n > 1]}, guidance {g:g}": from_teacher(n, g)
        for n in (4, 2, 1)
        for g in (making.guidance_scale, 1.0)
    }
    for title, folder in students.items():
        backbone, grid = open_student(folder)
        samplers |= {
            f"{title}, {n} step{'s'[: n > 1]}": student_painter(
                teacher, backbone, CPU, student_sigmas(grid, n)
            )
            for n in (4, 2, 1)
        }
    for name, sampler in samplers.items():
        judged[name] = _judge(samples, _drawer(teacher, sampler), report, name)
    goal = judged[reference]["features"]
    rows = []
    for name, result in judged.items():
        distance = (
            None if name == "real scenes" else round(frechet_distance(result["features"], goal), 3)
        )
        buckets = {str(b): f"{100 * np.mean(right):.1f}" for b, right in result["right"].items()}
        everything = np.concatenate(list(result["right"].values()))
        rows.append(
            {
                "pictures": name,
                "all attributes %": f"{100 * everything.mean():.1f}",
                "Frechet": distance,
                **buckets,
            }
        )
    return rows


def _drawer(teacher: Teacher, painter: Painter) -> Callable[[list[Sample]], np.ndarray]:
    return lambda part: teacher.decode_latents(painter(part))


def _draw_real(part: list[Sample]) -> np.ndarray:
    return render(
        [
            sample_scene(parse(s["prompt"]), s["width"], s["height"], random.Random(s["seed"]))
            for s in part
        ]
    )


def _judge(
    samples: dict[Bucket, list[dict[str, Any]]],
    draw: Callable,
    report: Callable[[str], None],
    name: str,
) -> dict[str, Any]:
    judge = ShapesJudge.load(WEIGHTS / "judge.safetensors")
    right: dict[Bucket, list[bool]] = defaultdict(list)
    features = []
    for bucket, rows in samples.items():
        for at in range(0, len(rows), BATCH):
            part = rows[at : at + BATCH]
            pictures = torch.from_numpy(draw(part)).permute(0, 3, 1, 2).float() / 127.5 - 1
            features.append(judge.features(pictures).numpy())
            right[bucket] += [
                shows_all(seen, s["prompt"])
                for seen, s in zip(judge.look(pictures), part, strict=True)
            ]
    report(f"judged: {name}")
    return {"right": right, "features": np.concatenate(features)}
