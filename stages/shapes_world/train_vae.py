"""Trains the autoencoder of the embedded teacher: AutoencoderKL, factor 4, 16 latent channels.

Most steps use small crops around objects, since edges are the hard part. The last quarter uses
whole pictures, so that the group norms see the statistics of real use.
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
from stages.shapes_world.captions import sample_spec
from stages.shapes_world.scenes import Scene, render, sample_scene
from stages.shapes_world.training_loop import run_training, step_rng

KL_WEIGHT = 2e-3
"""Weight of the mean KL per latent element. Keeps the latents smooth enough for a flow to learn."""

CROP = 32


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder: pictures (B, 3, H, W) in [-1, 1] to latents (B, 16, H/4, W/4)."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def train_vae(
    folder: Path, *, steps: int, batch_size: int = 24, learning_rate: float = 2e-3, seed: int = 0
) -> AutoencoderKL:
    """Train with L1 on colours and on differences between neighbouring pixels, and a small KL;
    measure shift and scaling at the end.
    """
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-3
    )

    def update(step: int) -> dict[str, float]:
        rng, generator = step_rng(seed, step)
        if step < 0.75 * steps:
            picture = _crops(batch_size * 4, rng)
        else:
            picture = pictures_of([_any_scene(64, 64, rng) for _ in range(batch_size)])
        picture = picture.contiguous(memory_format=torch.channels_last)
        progress = step / steps
        rate = learning_rate * min(1.0, (step + 1) / 50, 0.02 + (1 - progress) / 0.6)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast(torch.device("cpu")):
            posterior = vae.encode(picture).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            latents = mean + std * torch.randn(mean.shape, generator=generator)
            output = vae.decode(latents).sample.float()
        color = F.l1_loss(output, picture)
        edges = sum(F.l1_loss(output.diff(dim=d), picture.diff(dim=d)) for d in (-1, -2))
        assert isinstance(edges, Tensor)
        kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        loss = color + edges + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        return {
            "l1": color.item(),
            "edges": edges.item(),
            "kl": kl.item(),
            "std": std.mean().item(),
        }

    run_training("vae", folder, {"vae": vae, "optimizer": optimizer}, steps, update)
    return _with_latent_statistics(vae.eval(), seed)


def pictures_of(scenes: list[Scene]) -> Tensor:
    """Render scenes of one size as (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _any_scene(width: int, height: int, rng: random.Random) -> Scene:
    return sample_scene(sample_spec(rng), width, height, rng, tilt=math.pi, scatter=None)


def _crops(count: int, rng: random.Random) -> Tensor:
    """Draw square crops that each contain at least part of an object, two from each scene."""
    scenes = [_any_scene(64, 64, rng) for _ in range(count // 2)]
    pictures = pictures_of(scenes)
    crops = []
    for scene, picture in zip(scenes, pictures, strict=True):
        for thing in (scene.objects[0], scene.objects[-1]):
            left, top = (
                min(max(int(centre + rng.uniform(-10, 10)) - CROP // 2, 0), 64 - CROP)
                for centre in (thing.x, thing.y)
            )
            crops.append(picture[:, top : top + CROP, left : left + CROP])
    return torch.stack(crops)


@torch.no_grad()
def _with_latent_statistics(vae: AutoencoderKL, seed: int) -> AutoencoderKL:
    """Set shift and scaling so that `(z - shift) * scaling` has mean 0 and standard deviation 1
    over 256 scenes.
    """
    rng, _ = step_rng(seed, -1)
    latents = vae.encode(
        pictures_of([_any_scene(64, 64, rng) for _ in range(256)])
    ).latent_dist.mean
    vae.register_to_config(
        shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item()
    )
    return vae
