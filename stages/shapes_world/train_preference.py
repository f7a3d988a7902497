"""Last part of the embedded teacher's training: on its own pictures, judged.

In each round the transformer draws several pictures a prompt with guidance, and the judge tells
which of them show all that the prompt states. Then it learns from the right ones and from real
scenes by rectified flow, and from pairs of a right and a wrong picture of one prompt by
Diffusion-DPO (Wallace et al. 2023), with which SD3's authors tuned their model too (Esser et al.
2024, section 5.4). The reference is the round's beginning.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from stages.ladd.backbone import Conditioning
from stages.ladd.dpo_loss import PairDraws, pair_errors, preference_loss, preference_margin
from stages.ladd.ema import ExponentialAverage
from stages.ladd.flow import add_noise
from stages.ladd.sampling import initial_noise, sample_euler
from stages.prompts import split_of
from stages.scores.shapes_judge import ShapesJudge, shows_all
from stages.shapes_world.captions import SceneSpec, parse, phrase, sample_spec
from stages.shapes_world.scenes import describe
from stages.shapes_world.train_transformer import (
    BUCKETS,
    CAPTION_DROP,
    EncodedScenes,
    TextConditioner,
)
from stages.shapes_world.training_loop import run_training, step_rng
from stages.teachers.sd3_backbone import SD3Backbone

PROMPTS, PICTURES = 16, 4
"""Prompts of a batch of own pictures, all of one bucket, and pictures of each."""
HELD_OUT = 0.5
"""Prompts of this share are never drawn: no preset holds out more."""
RIGHT, REAL, PAIRS = 48, 16, 24
"""Right pictures of its own, real scenes and preference pairs of an update."""
BETA, PREFERENCE_WEIGHT = 2000.0, 0.01


@dataclass(frozen=True)
class Round:
    """How much is drawn, and how long is learnt from it."""

    guidance_scale: float
    batches: int
    steps: int
    rate: float = 4e-5


@dataclass(frozen=True)
class OwnPictures:
    """Of one bucket: pictures that show all that is stated, and pairs of a right and a wrong one.
    Latents (16, H, W), float16.
    """

    right: list[tuple[SceneSpec, Tensor]]
    pairs: list[tuple[SceneSpec, Tensor, Tensor]]


@torch.no_grad()
def draw_own(
    folder: Path,
    transformer: SD3Transformer2DModel,
    conditioner: TextConditioner,
    vae: AutoencoderKL,
    judge: ShapesJudge,
    plan: Round,
    seed: int,
    report: Callable[[str], None] = print,
) -> None:
    """Draw and judge the round's batches that are not in `folder` yet, one bucket a batch."""
    backbone, nothing = SD3Backbone(transformer.eval()), conditioner([""])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(plan.batches):
        path = folder / f"{number:04d}.safetensors"
        if path.with_suffix(".json").exists():
            continue
        rng = random.Random(f"own/{seed}/{number}")
        width, height = BUCKETS[number % len(BUCKETS)]
        prompts = [p for p in (_prompt(rng) for _ in range(PROMPTS)) for _ in range(PICTURES)]
        seeds = [rng.getrandbits(62) for _ in prompts]
        noise, _ = initial_noise(seeds, (16, height // 4, width // 4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = sample_euler(
                backbone,
                noise,
                conditioner(prompts),
                scheduler.sigmas.tolist(),
                guidance_scale=plan.guidance_scale,
                unconditional=nothing,
            ).float()
            shown = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor)
        seen = judge.look(shown.sample.float().clamp(-1, 1))
        right = [shows_all(s, parse(p)) for s, p in zip(seen, prompts, strict=True)]
        save_file({"latents": latents.half().contiguous()}, path)
        rows = [{"prompt": p, "right": r} for p, r in zip(prompts, right, strict=True)]
        path.with_suffix(".json").write_text(json.dumps(rows))
        report(f"own pictures {number + 1}/{plan.batches}  right {sum(right)}/{len(right)}")


def _prompt(rng: random.Random) -> str:
    """A prompt of the training split; mostly two objects, which are harder."""
    while True:
        spec = sample_spec(rng)
        if len(spec.objects) == 1 and rng.random() < 0.6:
            continue
        prompt = phrase(spec, rng)
        if split_of(prompt, HELD_OUT) == "train":
            return prompt


def read_own(folders: list[Path]) -> list[OwnPictures]:
    """What `draw_own` left in the folders, by bucket."""
    found = [OwnPictures([], []) for _ in BUCKETS]
    for path in sorted(p for folder in folders for p in folder.glob("*.json")):
        latents = load_file(path.with_suffix(".safetensors"))["latents"]
        group = found[int(path.stem) % len(BUCKETS)]
        sides: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        for row, picture in zip(json.loads(path.read_text()), latents, strict=True):
            sides.setdefault(row["prompt"], ([], []))[0 if row["right"] else 1].append(picture)
        for prompt, (right, wrong) in sides.items():
            spec = parse(prompt)
            group.right.extend((spec, picture) for picture in right)
            group.pairs.extend((spec, *pair) for pair in zip(right, wrong, strict=False))
    return found


def train_on_own(
    folder: Path,
    name: str,
    transformer: SD3Transformer2DModel,
    conditioner: TextConditioner,
    own: list[OwnPictures],
    scenes: list[EncodedScenes],
    plan: Round,
    seed: int = 0,
) -> SD3Transformer2DModel:
    """Train on from the weights of `transformer` and return the averaged ones."""
    reference = SD3Backbone(copy.deepcopy(transformer).requires_grad_(False))
    net, average = SD3Backbone(transformer.train()), ExponentialAverage(transformer, 0.99)
    adam = torch.optim.AdamW(transformer.parameters(), betas=(0.9, 0.99), weight_decay=0.0)

    def update(step: int) -> dict[str, float]:
        rng, generator = step_rng(seed, step)
        mine, real = own[step % len(own)], scenes[step % len(own)]
        scale = min(1.0, (step + 1) / 20, 2 * (plan.steps - step) / plan.steps)
        for param_group in adam.param_groups:
            param_group["lr"] = plan.rate * scale
        flow = _flow_loss(net, conditioner, mine, real, rng, generator)
        flow.backward()
        metrics = {"flow": flow.item()}
        if mine.pairs:
            margin_P = _margin(net, reference, conditioner, mine, rng, generator)
            loss = preference_loss(margin_P)
            (PREFERENCE_WEIGHT * loss).backward()
            accuracy = (margin_P > 0).float().mean().item()
            metrics |= {"preference": loss.item(), "accuracy": accuracy}
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        average.update(transformer, step)
        return metrics

    parts: dict[str, Any] = {"transformer": transformer, "average": average, "adam": adam}
    run_training(name, folder, parts, plan.steps, update)
    average.copy_to(transformer)
    return transformer.eval()


def _flow_loss(
    net: SD3Backbone,
    conditioner: TextConditioner,
    own: OwnPictures,
    scenes: EncodedScenes,
    rng: random.Random,
    generator: torch.Generator,
) -> Tensor:
    """Rectified flow on right pictures of its own and on real scenes, a new caption each."""
    chosen = rng.choices(own.right, k=RIGHT) if own.right else []
    rows = [scenes.pick(rng) for _ in range(REAL)]
    specs = [spec for spec, _ in chosen] + [describe(scenes.scenes[i], rng) for i in rows]
    latents = torch.stack([*(picture for _, picture in chosen), *scenes.latents[rows]]).float()
    texts = ["" if rng.random() < CAPTION_DROP else phrase(spec, rng) for spec in specs]
    sigma = torch.sigmoid(torch.randn(len(latents), generator=generator) * 1.1 + 0.9)
    noise = torch.randn(latents.shape, generator=generator)
    velocity = net.velocity(add_noise(latents, noise, sigma), sigma, conditioner(texts))
    return F.mse_loss(velocity, noise - latents)


def _margin(
    net: SD3Backbone,
    reference: SD3Backbone,
    conditioner: TextConditioner,
    own: OwnPictures,
    rng: random.Random,
    generator: torch.Generator,
) -> Tensor:
    """How much more than the reference the net prefers the right pictures: (P,)."""
    chosen = rng.choices(own.pairs, k=PAIRS)
    right, wrong = (torch.stack([row[side] for row in chosen]).float() for side in (1, 2))
    texts: Conditioning = conditioner([phrase(spec, rng) for spec, _, _ in chosen])
    sigma = torch.sigmoid(torch.randn(PAIRS, generator=generator) + 1.2)
    draws = PairDraws(sigma, torch.randn(right.shape, generator=generator))
    with torch.no_grad():
        before = pair_errors(reference, right, wrong, texts, draws)
    return preference_margin(pair_errors(net, right, wrong, texts, draws), before, BETA)
