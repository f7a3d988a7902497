"""What the presets of the hub cost, counted from shapes: the table of docs/presets.md.

    python benchmarks/presets.py

Needs no weights, no GPU and no network. Hours are operations over the speeds below; decoding,
files, scores, starts and checkpoints come on top.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.config import load_config
from schemas.bucket import Bucket
from schemas.config import PipelineConfig
from stages.judging.systems import floor_of, systems_of
from stages.ladd.update import passes
from stages.teachers.sd3_flops import forward_flops
from stages.teachers.sd3_memory import (
    adapter_parameters,
    head_parameters,
    parameters,
    training_memory,
)

SAMPLING, TRAINING, COMPILED = 250e12, 150e12, 260e12
"""Operations a second, rounded from what docs/gpu-results.md measured at 1024 px: without
gradients, with checkpointed blocks, and with these compiled.
"""
CARDS = {
    "sd35-medium-512": "1 of 48 GB",
    "sd35-medium": "1 of 80 GB",
    "sd35-medium-8gpu": "8 of 80 GB",
    "sd3-medium": "1 of 80 GB",
    "sd35-large": "8 of 80 GB",
}
T5_TOKENS, CLIP_TOKENS = 256, 77
T5 = 24 * (4 * 4096**2 + 3 * 4096 * 10240)  # of T5-XXL's encoder, without its 32,128 embeddings
CLIP = 818e6  # of CLIP-L and CLIP-G
ENCODERS = 2 * (T5 + 32128 * 4096) + 4 * CLIP  # bytes on the device: bfloat16 and float32
OTHER_PARTS = 2 * (T5 + 32128 * 4096 + CLIP + 84e6)  # bytes of a folder without its transformer
JPEG = 0.5  # bytes a pixel at quality 95, a guess


def transformer(layers: int, table: int, dual: int = 0, *, qk_norm: bool) -> dict[str, Any]:
    """What the `transformer/config.json` of a published model says."""
    return {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": layers,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": table,
        "qk_norm": "rms_norm" if qk_norm else None,
        "dual_attention_layers": list(range(dual)),
    }


MODELS = {
    "stabilityai/stable-diffusion-3-medium-diffusers": transformer(24, 192, qk_norm=False),
    "stabilityai/stable-diffusion-3.5-medium": transformer(24, 384, 13, qk_norm=True),
    "stabilityai/stable-diffusion-3.5-large": transformer(38, 192, qk_norm=True),
}


def main() -> None:
    stages = ("synthesize", "distill", "pairs", "dpo", "eval")
    print(f"| preset | GPUs | pictures | {' | '.join(stages)} | hours | GB a worker | GB on disk |")
    print("|---|---" + 9 * "|---:" + "|")
    for name, card in CARDS.items():
        config = load_config(preset=name, settings=["distill.use_gpu=true"], environment={})
        hours = gpu_hours(config)
        cells = [name, card, f"{pictures(config):,}", *(f"{hours[stage]:.1f}" for stage in stages)]
        cells += [f"{sum(hours.values()) / config.distill.workers:.0f}"]
        memory = worker_bytes(config) / 1e9
        cells += [f"{memory:.0f} + {ENCODERS / 1e9:.0f}", f"{disk_bytes(config) / 1e9:,.0f}"]
        print(f"| {' | '.join(cells)} |")


def pictures(config: PipelineConfig) -> int:
    assert config.prompts.count is not None
    kept = config.prompts.count * (1 - config.prompts.held_out_fraction)
    return round(kept) * config.prompts.images_per_prompt


def gpu_hours(config: PipelineConfig) -> dict[str, float]:
    """Hours of one GPU for each stage."""
    distill, dpo, how, wanted = config.distill, config.dpo, config.synthesize, config.eval
    heads_alone = distill.total_steps - distill.steps
    samples = distill.global_batch * distill.total_steps
    update = distill.steps * passes(distill, train_student=True)
    update += heads_alone * passes(distill, train_student=False)
    text = 2 * (T5 * T5_TOKENS + CLIP * CLIP_TOKENS) * samples  # computed while training
    drawn = {
        system: how.at(steps=system.steps).passes if system.kind == "teacher" else system.steps
        for system in (*systems_of(config), *floor_of(config))
    }
    alike = wanted.alike_prompts * wanted.alike_seeds
    judged = wanted.prompts * sum(drawn.values())
    judged += alike * sum(drawn[system] for system in systems_of(config))
    forward = mean_forward(config)
    rate = COMPILED if distill.compile_blocks else TRAINING
    seconds = {
        "synthesize": pictures(config) * how.passes * forward / SAMPLING,
        "distill": (update * distill.global_batch * forward + text) / rate,
        "pairs": config.pairs.prompts
        * config.pairs.pictures_per_prompt
        * how.passes
        * (forward / SAMPLING),
        "dpo": dpo.steps * dpo.global_batch * 6 * forward / TRAINING,
        "eval": judged * forward / SAMPLING,
    }
    return {stage: value / 3600 for stage, value in seconds.items()}


def mean_forward(config: PipelineConfig) -> float:
    """Operations of a forward pass of one sample, mean over the buckets."""
    model, text = MODELS[str(config.teacher.model)], CLIP_TOKENS + T5_TOKENS
    buckets = {Bucket.parse(name): weight for name, weight in config.prompts.buckets.items()}
    return fmean(
        (forward_flops(model, size.height // 16, size.width // 16, text) for size in buckets),
        weights=buckets.values(),
    )


def worker_bytes(config: PipelineConfig) -> int:
    """What `plan` names for a worker of `distill`, once the teacher is in the hub's cache."""
    files = {
        "transformer/config.json": MODELS[str(config.teacher.model)],
        "vae/config.json": {"block_out_channels": [128, 256, 512, 512]},
        "tokenizer/tokenizer_config.json": {"model_max_length": CLIP_TOKENS},
        "text_encoder_3/config.json": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir()
            path.write_text(json.dumps(content))
        return training_memory(config, Path(folder))


def disk_bytes(config: PipelineConfig) -> float:
    """Latents of the teacher and of `encode`, pictures, the checkpoints that are kept, and four
    folders of students: of `distill`, of `dpo`, and both again with the report.
    """
    model, distill = MODELS[str(config.teacher.model)], config.distill
    sizes = [Bucket.parse(name) for name in config.prompts.buckets]
    pixels = fmean((s.width * s.height for s in sizes), weights=config.prompts.buckets.values())
    latent = 2 * 16 * pixels / 8**2
    trained = parameters(model)
    if distill.lora is not None:
        trained = adapter_parameters(model, distill.lora.rank, distill.lora.targets)
    # Weights and two moments in float32, the student's average too.
    checkpoint = 16 * trained + 12 * head_parameters(model, distill.discriminator)
    student = 2 * parameters(model) + OTHER_PARTS
    data = pictures(config) * (2 * latent + JPEG * pixels)
    return data + distill.checkpoints_kept * checkpoint + 4 * student


if __name__ == "__main__":
    main()
