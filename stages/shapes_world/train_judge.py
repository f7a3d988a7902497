"""Trains the judge of the shapes world on drawn scenes, half of them passed through the
autoencoder.

Pictures from noisy latents make the judge look at what a picture shows, not at how crisp its edges
are.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from stages.ladd.precision import autocast
from stages.shapes_world.captions import BACKGROUNDS, COLORS, SHAPES, SIZES, sample_spec
from stages.shapes_world.judge import STRIDE, ShapesJudge
from stages.shapes_world.scenes import Scene, sample_scene
from stages.shapes_world.train_transformer import BUCKETS
from stages.shapes_world.train_vae import pictures_of
from stages.shapes_world.training_loop import run_training, step_rng


def train_judge(
    folder: Path, vae: AutoencoderKL, *, steps: int, batch_size: int = 48, seed: int = 0
) -> ShapesJudge:
    """Train on one bucket per step; every other step uses pictures that went through the
    autoencoder.
    """
    torch.manual_seed(seed)
    judge: ShapesJudge = ShapesJudge().to(
        memory_format=torch.channels_last  # type: ignore[call-overload]  # torch's stubs lack it
    )
    with torch.no_grad():  # start the heat map at the rate of true peaks, as focal losses need
        bias = judge.objects.bias
        assert bias is not None
        bias[0] = -math.log(1 / 0.02 - 1)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-2)

    def update(step: int) -> dict[str, float]:
        rng, generator = step_rng(seed + 1, step)
        width, height = BUCKETS[step // 2 % len(BUCKETS)]
        scenes = [
            sample_scene(sample_spec(rng), width, height, rng, tilt=math.pi, scatter=None)
            for _ in range(batch_size)
        ]
        picture = pictures_of(scenes).contiguous(memory_format=torch.channels_last)
        if step % 2:
            picture = _through_latents(vae, picture, rng, generator)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 0.01 + (1 - step / steps) / 0.7)
        with autocast(torch.device("cpu")):
            out = judge(picture)
        losses = _losses({name: value.float() for name, value in out.items()}, scenes)
        loss = sum(losses.values())
        assert isinstance(loss, Tensor)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    run_training(
        "judge", folder, {"judge": judge, "optimizer": optimizer}, steps, update, log_every=100
    )
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def _through_latents(
    vae: AutoencoderKL, picture: Tensor, rng: random.Random, generator: torch.Generator
) -> Tensor:
    with autocast(torch.device("cpu")):
        mean = vae.encode(picture).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator) / vae.config.scaling_factor
        return vae.decode(mean + rng.uniform(0, 0.25) * noise).sample.float().clamp(-1, 1)


def _losses(out: dict[str, Tensor], scenes: list[Scene]) -> dict[str, Tensor]:
    """Focal loss on the heat map (CenterNet, equation 1), plus cross-entropy and L1 at the true
    centres.
    """
    heat = torch.zeros(out["heat"].shape)
    grid_y, grid_x = (torch.arange(n) + 0.5 for n in heat.shape[-2:])
    where, offsets = [], []
    labels: dict[str, list[int]] = {"color": [], "shape": [], "size": []}
    for b, scene in enumerate(scenes):
        for thing in scene.objects:
            x, y = thing.x / STRIDE, thing.y / STRIDE
            bump = torch.exp(-((grid_x[None] - x) ** 2 + (grid_y[:, None] - y) ** 2) / 2)
            i, j = min(int(y), heat.shape[-2] - 1), min(int(x), heat.shape[-1] - 1)
            heat[b, 0] = torch.maximum(heat[b, 0], bump)
            heat[b, 0, i, j] = 1.0
            where.append((b, i, j))
            offsets.append((x - j - 0.5, y - i - 0.5))
            for name, values in (("color", COLORS), ("shape", SHAPES), ("size", SIZES)):
                labels[name].append(values.index(getattr(thing, name)))
    b, i, j = torch.tensor(where).T
    log_yes, log_no = F.logsigmoid(out["heat"]), F.logsigmoid(-out["heat"])
    yes = out["heat"].sigmoid()
    focal = torch.where(heat == 1, (1 - yes) ** 2 * log_yes, (1 - heat) ** 4 * yes**2 * log_no)
    losses = {"heat": -focal.sum() / len(where)}
    losses["offset"] = F.l1_loss(out["offset"][b, :, i, j], torch.tensor(offsets))
    for name, indices in labels.items():
        losses[name] = F.cross_entropy(out[name][b, :, i, j], torch.tensor(indices))
    backgrounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    return losses | {"background": F.cross_entropy(out["background"], backgrounds)}
