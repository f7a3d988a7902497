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
from stages.ladd.sampling import initial_noise, sample_consistency, sample_euler, student_sigmas
from stages.prompt_sources import read_grammar
from stages.prompts import bucket_of, seed_of, split_of
from stages.scores.frechet import frechet_distance
from stages.scores.shapes_judge import ShapesJudge, shows_all
from stages.shapes_world.captions import parse
from stages.shapes_world.scenes import render, sample_scene
from stages.student import open_student
from stages.teachers import open_teacher
from stages.teachers.shapes import WEIGHTS

BATCH = 32


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
        groups[bucket].append({"prompt": prompt, "seed": seed_of(prompts.seed, prompt, 0)})
    return dict(sorted(groups.items()))


@torch.no_grad()
def score_table(
    config: PipelineConfig, student: Path | None, count: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a sampler: `all attributes` in percent, `Frechet` to the teacher's own steps (None
    for real scenes).
    """
    teacher = open_teacher(config.teacher)
    net = teacher.backbone()
    making = config.synthesize
    samples = held_out(config, count)
    empty = teacher.encode_prompts([""])

    def from_teacher(steps: int, guidance_scale: float):
        def sample(noise, _generators, conditioning, bucket):
            with _autocast(net.dtype):
                return sample_euler(
                    net,
                    noise,
                    conditioning,
                    teacher.sigmas(steps, bucket),
                    guidance_scale=guidance_scale,
                    unconditional=empty,
                )

        return sample

    judged = {"real scenes": _judge(samples, _draw_real, report, "real scenes")}
    reference = f"teacher, {making.steps} steps, guidance {making.guidance_scale:g}"
    samplers: dict[str, Any] = {reference: from_teacher(making.steps, making.guidance_scale)}
    samplers |= {
        f"teacher, {n} step{'s'[: n > 1]}, guidance {g:g}": from_teacher(n, g)
        for n in (4, 2, 1)
        for g in (making.guidance_scale, 1.0)
    }
    if student is not None:
        backbone, grid = open_student(student)
        for n in (4, 2, 1):

            def sample(noise, generators, conditioning, bucket, n=n):
                with _autocast(torch.bfloat16):
                    return sample_consistency(
                        backbone, noise, conditioning, student_sigmas(grid, n), generators
                    )

            samplers[f"student, {n} step{'s'[: n > 1]}"] = sample
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


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def _drawer(teacher: Any, sampler: Callable) -> Callable:
    def draw(part: list[dict[str, Any]], bucket: Bucket) -> np.ndarray:
        noise, generators = initial_noise([s["seed"] for s in part], teacher.latent_shape(bucket))
        conditioning = teacher.encode_prompts([s["prompt"] for s in part])
        return teacher.decode_latents(sampler(noise, generators, conditioning, bucket))

    return draw


def _draw_real(part: list[dict[str, Any]], bucket: Bucket) -> np.ndarray:
    return render(
        [sample_scene(parse(s["prompt"]), *bucket, random.Random(s["seed"])) for s in part]
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
            pictures = torch.from_numpy(draw(part, bucket)).permute(0, 3, 1, 2).float() / 127.5 - 1
            features.append(judge.features(pictures).numpy())
            right[bucket] += [
                shows_all(seen, s["prompt"])
                for seen, s in zip(judge.look(pictures), part, strict=True)
            ]
    report(f"judged: {name}")
    return {"right": right, "features": np.concatenate(features)}
