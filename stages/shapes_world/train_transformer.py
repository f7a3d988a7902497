"""Trains the SD3 transformer of the embedded teacher by rectified flow on encoded scenes.

Muon (Jordan et al. 2024) trains the blocks' matrices, AdamW the rest; the learning rate is constant
and then decays linearly. Noise levels are logit-normal as in SD3 (Esser et al. 2024, section 3.1),
biased to high noise, where the layout is decided. A scene gets a new caption each time it is used.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from stages.ladd.backbone import Conditioning
from stages.ladd.ema import ExponentialAverage
from stages.ladd.precision import autocast
from stages.shapes_world.captions import COLORS, SHAPES, SIZES, phrase, sample_spec
from stages.shapes_world.scenes import Scene, describe, render, sample_scene
from stages.shapes_world.train_text import TOWER_WIDTHS
from stages.shapes_world.training_loop import run_training, step_rng
from stages.teachers.sd3_backbone import SD3Backbone

BUCKETS = ((64, 64), (80, 48), (48, 80), (96, 40), (40, 96))
NULL_TOKENS = 256
CAPTION_DROP = 0.1
"""Share of samples trained without a caption, for classifier-free guidance."""


def build_transformer() -> SD3Transformer2DModel:
    """An untrained MMDiT: 6 blocks, 192 wide, 7.8 M parameters, 60-64 image tokens per picture."""
    width = sum(TOWER_WIDTHS)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=width,
        caption_projection_dim=width,
        pooled_projection_dim=width,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


@dataclass(frozen=True)
class EncodedScenes:
    """Scenes of one bucket with their latents (n, 16, H, W), float16, shifted and scaled."""

    scenes: list[Scene]
    latents: Tensor

    @cached_property
    def pairs(self) -> list[int]:
        """Indices of the scenes with two objects."""
        return [i for i, scene in enumerate(self.scenes) if len(scene.objects) == 2]

    def pick(self, rng: random.Random) -> int:
        """Draw a scene's index; half of the draws use only scenes with two objects (harder)."""
        return rng.choice(self.pairs) if rng.random() < 0.5 else rng.randrange(len(self.scenes))


@dataclass(frozen=True)
class Freedom:
    """How freely objects are placed in a set of scenes; see `sample_scene`."""

    tilt: float
    scatter: float | None


def scene_of(index: int, seed: int, freedom: Freedom) -> Scene:
    """Draw the `index`-th scene of a training set; its bucket is `index` modulo the number of
    buckets.
    """
    rng = random.Random(f"scene/{seed}/{index}")
    size = BUCKETS[index % len(BUCKETS)]
    return sample_scene(sample_spec(rng), *size, rng, tilt=freedom.tilt, scatter=freedom.scatter)


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKL,
    count: int,
    seed: int,
    freedom: Freedom,
    report: Callable[[str], None] = print,
) -> list[EncodedScenes]:
    """Draw and encode `count` scenes, grouped by bucket."""
    groups = []
    for bucket in range(len(BUCKETS)):
        scenes = [scene_of(i, seed, freedom) for i in range(bucket, count, len(BUCKETS))]
        latents = []
        for start in range(0, len(scenes), 64):
            picture = torch.from_numpy(render(scenes[start : start + 64])).permute(0, 3, 1, 2)
            picture = (picture.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            with autocast(torch.device("cpu")):
                mean = vae.encode(picture).latent_dist.mean.float()
            latents.append(
                ((mean - vae.config.shift_factor) * vae.config.scaling_factor).half().contiguous()
            )
        groups.append(EncodedScenes(scenes, torch.cat(latents)))
        report(f"encoded {len(scenes)} scenes of {BUCKETS[bucket][0]}x{BUCKETS[bucket][1]}")
    return groups


class TextConditioner:
    """Turns captions into conditioning exactly as diffusers' SD3 pipeline without T5 does."""

    def __init__(self, tokenizer: CLIPTokenizer, towers: list[CLIPTextModelWithProjection]) -> None:
        self.tokenizer = tokenizer
        self.towers = towers

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Conditioning:
        ids_BL = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")[
            "input_ids"
        ]
        outputs = [tower(input_ids=ids_BL, output_hidden_states=True) for tower in self.towers]
        return Conditioning(
            torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
            torch.cat([output.text_embeds for output in outputs], dim=-1),
            NULL_TOKENS,
        )


class LayoutReader(nn.Module):
    """Predicts from an inner block which object will cover each image token: colour, shape and
    size, or none.

    An auxiliary loss in the spirit of REPA (Yu et al. 2024): a block that must predict the layout
    learns to plan it, and shapes are learnt several times sooner. Discarded after training.
    """

    block = 3
    weight = 0.1
    sizes = (len(COLORS) + 1, len(SHAPES) + 1, len(SIZES) + 1)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, sum(self.sizes))

    def loss(self, tokens_BND: Tensor, labels_BN3: Tensor) -> Tensor:
        parts = self.logits(self.norm(tokens_BND)).flatten(0, 1).split(self.sizes, dim=1)
        loss = sum(
            F.cross_entropy(part, labels_BN3[..., i].flatten()) for i, part in enumerate(parts)
        )
        assert isinstance(loss, Tensor)
        return loss


def layout_of(scene: Scene, token: int = 8) -> Tensor:
    """Return labels (N, 3) int64 of each token's colour, shape and size, counted from 1; 0 outside
    every object's disc.
    """
    y, x = np.meshgrid(
        np.arange(scene.height // token) * token + token / 2,
        np.arange(scene.width // token) * token + token / 2,
        indexing="ij",
    )
    labels = np.zeros((*y.shape, 3), np.int64)
    for thing in scene.objects:
        covered = np.hypot(x - thing.x, y - thing.y) < thing.radius + token / 4
        labels[covered] = (
            1 + COLORS.index(thing.color),
            1 + SHAPES.index(thing.shape),
            1 + SIZES.index(thing.size),
        )
    return torch.from_numpy(labels).flatten(0, 1)


def train_transformer(
    folder: Path,
    stages: list[tuple[int, list[EncodedScenes]]],
    conditioner: TextConditioner,
    *,
    steps: int,
    batch_size: int = 64,
    muon_rate: float = 0.02,
    adam_rate: float = 2e-3,
    decay_from: float = 0.5,
    seed: int = 0,
) -> SD3Transformer2DModel:
    """Train and return the averaged weights. Each step uses one bucket; all are used equally often.

    `stages` is a curriculum: each set of scenes is used from its step on.
    """
    torch.manual_seed(seed)
    transformer = build_transformer()
    backbone = SD3Backbone(transformer)
    average = ExponentialAverage(transformer, 0.998)
    reader = LayoutReader(transformer.inner_dim)
    inner: dict[str, Tensor] = {}
    transformer.transformer_blocks[reader.block].register_forward_hook(
        lambda _module, _args, output: inner.update(tokens=output[1])
    )
    muon, adam = _optimizers(transformer, reader, muon_rate, adam_rate)

    def update(step: int) -> dict[str, float]:
        rng, generator = step_rng(seed, step)
        data = [scenes for first, scenes in stages if first <= step][-1]
        group = data[step % len(data)]
        rows = [group.pick(rng) for _ in range(batch_size)]
        scale = min(1.0, (step + 1) / 100, max(0.02, (1 - step / steps) / (1 - decay_from)))
        for optimizer, rate in ((muon, muon_rate), (adam, adam_rate)):
            for param_group in optimizer.param_groups:
                param_group["lr"] = rate * scale
        conditioning = conditioner(_captions(group, rows, rng))
        loss = _flow_loss(backbone, group.latents[rows].float(), conditioning, generator)
        with autocast(torch.device("cpu")):
            layouts = torch.stack([layout_of(group.scenes[i]) for i in rows])
            layout = reader.loss(inner.pop("tokens"), layouts)
        (loss + reader.weight * layout.float()).backward()
        norm = torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(transformer, step)
        return {"loss": loss.item(), "layout": layout.item(), "grad_norm": norm.item()}

    parts = {
        "transformer": transformer,
        "average": average,
        "reader": reader,
        "muon": muon,
        "adam": adam,
    }
    run_training("transformer", folder, parts, steps, update)
    average.copy_to(transformer)
    return transformer.eval()


def _optimizers(
    transformer: SD3Transformer2DModel, reader: LayoutReader, muon_rate: float, adam_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' matrices but their modulation, AdamW for everything else."""
    matrices = [
        p
        for n, p in transformer.transformer_blocks.named_parameters()
        if p.ndim == 2 and "norm1" not in n
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in (*transformer.parameters(), *reader.parameters()) if id(p) not in chosen]
    return (
        torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.01),
    )


def _captions(group: EncodedScenes, rows: list[int], rng: random.Random) -> list[str]:
    """A new caption for each scene; some are dropped, which trains the unconditional model."""
    return [
        "" if rng.random() < CAPTION_DROP else phrase(describe(group.scenes[i], rng), rng)
        for i in rows
    ]


def _flow_loss(
    backbone: SD3Backbone,
    latents_BCHW: Tensor,
    conditioning: Conditioning,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the velocity, at noise levels biased to high noise."""
    sigma = torch.sigmoid(torch.randn(len(latents_BCHW), generator=generator) * 1.1 + 0.9)
    noise = torch.randn(latents_BCHW.shape, generator=generator)
    level = sigma.view(-1, 1, 1, 1)
    with autocast(torch.device("cpu")):
        noised = (1 - level) * latents_BCHW + level * noise
        velocity = backbone.velocity(noised, sigma, conditioning).float()
    return (velocity - (noise - latents_BCHW)).square().mean()
