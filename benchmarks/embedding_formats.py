"""What packed and 8-bit prompt embeddings take, and what they change.

    python benchmarks/embedding_formats.py --store S

Reads the latents of a finished `encode` of the preset `shapes` in the store S. Prints for each
`encode.embedding_format`: bytes of a prompt's tokens; the largest and the mean relative change of
the teacher's velocity, beside what float16 changes; and the same of both losses over updates that
are the same in all else (weights, batches, noise).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.base.store import Artifact, ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.planning import Selection, make_plan
from schemas.config import PipelineConfig
from stages.data.latent_batches import LatentData
from stages.data.token_rows import TokenLayout, from_8_bits, to_8_bits
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.batch_plan import BatchPlan
from stages.ladd.trainer import LaddTrainer
from stages.teachers import open_teacher

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
CPU = torch.device("cpu")
Change = Callable[[Conditioning], Conditioning]


@dataclass
class Format:
    """An embedding format as what it does to conditioning, and the bytes of a prompt's tokens."""

    bytes: int
    change: Change


def formats(empty: Conditioning) -> dict[str, Format]:
    """The formats for a teacher whose empty prompt has these embeddings."""
    tokens = empty.tokens_BLD.half().numpy()
    layout = TokenLayout.of(tokens[0])
    packed = layout.pack(tokens)
    codes, scales = to_8_bits(packed)

    def half(told: Conditioning) -> Conditioning:
        return Conditioning(
            told.tokens_BLD.half().float(), told.pooled_BP.half().float(), told.null_tokens
        )

    def in_8_bits(told: Conditioning) -> Conditioning:
        rows = from_8_bits(*to_8_bits(layout.pack(told.tokens_BLD.half().numpy())))
        tokens = torch.from_numpy(layout.unpack(rows)).float()
        return Conditioning(tokens, told.pooled_BP.half().float(), told.null_tokens)

    return {
        "whole": Format(tokens.nbytes, half),
        "packed": Format(packed.nbytes, half),
        "packed_8bit": Format(codes.nbytes + scales.nbytes, in_8_bits),
    }


@torch.no_grad()
def velocity_change(
    teacher: Backbone, latents: torch.Tensor, exact: Conditioning, other: Conditioning
) -> tuple[float, float]:
    """Largest and mean of |v' - v| / |v| over samples and noise levels."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    shares = []
    for level in LEVELS:
        t = torch.full((len(latents),), level)
        x = (1 - level) * latents + level * noise
        one, two = (teacher.velocity(x, t, told).flatten(1) for told in (exact, other))
        shares.append((two - one).norm(dim=1) / one.norm(dim=1))
    found = torch.cat(shares)
    return found.max().item(), found.mean().item()


def losses(config: PipelineConfig, data: LatentData, change: Change, updates: int) -> np.ndarray:
    """(updates, 2): losses of student and heads on the preset's first batches."""
    torch.manual_seed(0)
    teacher = open_teacher(config.teacher)
    student = teacher.backbone(dtype=torch.float32)
    frozen = teacher.backbone(dtype=torch.float32).requires_grad_(False)
    width = data.conditioning([0]).pooled_BP.shape[1]
    trainer = LaddTrainer(student.train(), frozen, width, config.distill, CPU)
    plan = BatchPlan(data.sizes, config.distill.global_batch, config.distill.seed)
    rows = []
    for step in range(updates):
        bucket, chosen = plan.part(step, range(config.distill.global_batch), more=1)
        latents, told = data.batch(bucket, chosen)
        metrics = trainer.update(latents, change(told.to(CPU, torch.float32)))
        rows.append([metrics["student_loss"], metrics["discriminator_loss"]])
    return np.array(rows)


def encoded(config: PipelineConfig) -> Artifact:
    store = ArtifactStore(config.store)
    keys = {stage.name: stage.key for stage in make_plan(config, store, Selection())}
    artifact = store.find("encode", keys["encode"])
    if artifact is None:
        raise SystemExit(f"{config.store} has no encode artifact of shapes; run until encode first")
    return artifact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--updates", type=int, default=20)
    wanted = parser.parse_args()
    settings = [f"store={wanted.store.absolute()}", "distill.discriminator.head_start_steps=0"]
    config = open_config(None, "shapes", settings)
    teacher = open_teacher(config.teacher)
    data = LatentData(encoded(config))
    backbone, bucket = teacher.backbone(dtype=torch.float32), next(iter(data.sizes))
    latents, _ = data.batch(bucket, range(wanted.samples))
    rows = data._buckets[bucket].prompt_rows[: wanted.samples]
    exact = teacher.encode_prompts([data.prompts[row] for row in rows])
    traces = {}
    print("| format | bytes a prompt | velocity changes by at most | mean | student loss | heads |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, form in formats(teacher.encode_prompts([""])).items():
        most, mean = velocity_change(backbone, latents.float(), exact, form.change(exact))
        traces[name] = losses(config, data, form.change, wanted.updates)
        change = np.abs(traces[name] - traces["whole"]).mean(axis=0)
        print(
            f"| {name} | {form.bytes:,} | {most:.2e} | {mean:.2e} | {change[0]:.1e} | "
            f"{change[1]:.1e} |"
        )
    spread = traces["whole"].std(axis=0)
    print(f"deviation of the losses from update to update: {spread[0]:.2f}, {spread[1]:.2f}")


if __name__ == "__main__":
    main()
