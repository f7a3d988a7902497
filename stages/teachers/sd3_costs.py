"""What a Stable Diffusion 3 model costs, from the JSON files of its folder, or of the published
model if it is not on this machine. Imports no torch.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.bucket import Bucket
from schemas.config import DistillConfig, LoraConfig, PipelineConfig, TeacherConfig
from stages.teachers import sd3_parts
from stages.teachers.sd3_flops import forward_flops
from stages.teachers.sd3_layers import adapter_parameters, block_width, parameters
from stages.teachers.sd3_memory import head_parameters, training_memory, tuning_memory
from stages.teachers.sd3_published import Settings, published

_BYTES = {"float32": 4, "bfloat16": 2}
_READ = (
    "transformer/config.json",
    "vae/config.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
)


def model_costs(config: TeacherConfig, folder: Path | None) -> SD3Costs | None:
    """Return the costs of the model in a folder; without one, those of the published model, or None
    for another. Raises OSError, ValueError or KeyError for a folder that is incomplete.
    """
    if folder is None:
        settings = published(config.model or "")
    else:
        settings = {name: json.loads((folder / name).read_text()) for name in _READ}
        if config.use_t5 and (folder / "text_encoder_3").is_dir():
            name = "text_encoder_3/config.json"
            settings[name] = json.loads((folder / name).read_text())
    if settings is None:
        return None
    costs = SD3Costs(config, settings, folder)
    for count in (costs.forward, costs.decoding, costs.encoding):
        count(Bucket(64, 64))  # fails now for sizes that are none
    costs.text()
    return costs


class SD3Costs:
    """`ModelCosts` of a Stable Diffusion 3 model."""

    def __init__(self, config: TeacherConfig, settings: Settings, folder: Path | None) -> None:
        self.config, self.settings, self.folder = config, settings, folder
        self.transformer: dict[str, Any] = settings["transformer/config.json"]
        self.vae: dict[str, Any] = settings["vae/config.json"]
        self.t5 = settings.get("text_encoder_3/config.json") if config.use_t5 else None
        tokenizer = settings["tokenizer/tokenizer_config.json"]
        self.clip_tokens = int(tokenizer["model_max_length"])
        self.vae_factor = 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def name(self) -> str:
        kind = self.transformer
        return (
            f"SD3 of {kind['num_layers']} blocks and width {block_width(self.transformer)}"
            f"{f', {self._dual} with dual attention' if self._dual else ''}"
        )

    @property
    def blocks(self) -> int:
        return int(self.transformer["num_layers"])

    @property
    def text_tokens(self) -> int:
        """Text tokens in a pass; the empty rows in place of T5 are one."""
        return self.clip_tokens + (self.config.max_sequence_length if self.t5 else 1)

    def forward(self, bucket: Bucket) -> float:
        unit = self.vae_factor * self.transformer["patch_size"]
        rows, columns = bucket.height // unit, bucket.width // unit
        return float(forward_flops(self.transformer, rows, columns, self.text_tokens))

    def heads(self, distill: DistillConfig, bucket: Bucket) -> float:
        heads = distill.discriminator
        unit = self.vae_factor * self.transformer["patch_size"]
        tokens = (bucket.height // unit) * (bucket.width // unit)
        channels = heads.channels
        per_token = (
            (9 if heads.convolutions == "2d" else 3)
            * channels
            * (block_width(self.transformer) + channels)
        )
        return float(2 * tokens * per_token * (1 if heads.taps == "last" else self.blocks))

    def text(self) -> float:
        work = sum(sd3_parts.clip_flops(clip, self.clip_tokens) for clip in self._clips)
        if self.t5 is not None:
            work += sd3_parts.t5_flops(self.t5, self.config.max_sequence_length)
        return work

    def decoding(self, bucket: Bucket) -> float:
        return sd3_parts.decoding_flops(self.vae, *self._latent_sides(bucket))

    def encoding(self, bucket: Bucket) -> float:
        return sd3_parts.encoding_flops(self.vae, *self._latent_sides(bucket))

    def latents(self, bucket: Bucket) -> int:
        rows, columns = self._latent_sides(bucket)
        return int(self.vae["latent_channels"]) * rows * columns

    def embedding(self) -> int:
        kind = self.transformer
        kept = self.clip_tokens + (self.config.max_sequence_length if self.t5 else 0)
        return int(kept * kind["joint_attention_dim"] + kind["pooled_projection_dim"])

    def padding(self) -> int:
        used = sum(int(clip["hidden_size"]) for clip in self._clips)
        return self.clip_tokens * (int(self.transformer["joint_attention_dim"]) - used)

    def folder_bytes(self) -> int:
        own = _BYTES[self.config.dtype] * parameters(self.transformer)
        if self.folder is not None:
            return own + sum(_part_bytes(self.folder / part) for part in self._copied_parts())
        others = self._text_parameters + sd3_parts.autoencoder_parameters(self.vae)
        return own + 2 * others  # published in 16 bits

    def text_bytes(self) -> int:
        clips = 4 * sum(sd3_parts.clip_parameters(clip) for clip in self._clips)
        if self.t5 is None:
            return clips
        return clips + _BYTES[self.config.dtype] * sd3_parts.t5_parameters(self.t5)

    def sampling_bytes(self, bucket: Bucket, pictures: int, *, in_float32: bool = False) -> int:
        number = 4 if in_float32 else _BYTES[self.config.dtype]
        weights = number * parameters(self.transformer)
        weights += 4 * sd3_parts.autoencoder_parameters(self.vae) + self.text_bytes()
        pixels = bucket.width * bucket.height
        return weights + pictures * sd3_parts.decoding_bytes(self.vae, pixels)

    def training_bytes(self, config: PipelineConfig) -> int:
        return training_memory(config, self.transformer, self.vae_factor, self.text_tokens)

    def tuning_bytes(self, config: PipelineConfig) -> int:
        return tuning_memory(config, self.transformer, self.vae_factor, self.text_tokens)

    def checkpoint_bytes(self, distill: DistillConfig) -> int:
        trained = parameters(self.transformer)
        if distill.lora is not None:
            trained = self._adapters(distill.lora)
        moments = 2 * (4 if distill.optimizer_bits == 32 else 1 + 4 / 256)
        # Weights, their average and moments of the student, weights and moments of the heads.
        heads = 12 * head_parameters(self.transformer, distill.discriminator)
        return int((8 + moments) * trained) + heads

    def adapter_bytes(self, lora: LoraConfig) -> int:
        return 4 * self._adapters(lora)

    def _copied_parts(self) -> list[str]:
        """The parts of the teacher's folder that a student's folder has too."""
        assert self.folder is not None
        parts = [path.name for path in self.folder.iterdir() if path.is_dir()]
        left_out = {"transformer", *(() if self.t5 else ("text_encoder_3", "tokenizer_3"))}
        return [name for name in parts if name not in left_out]

    def _adapters(self, lora: LoraConfig) -> int:
        return adapter_parameters(self.transformer, lora.rank, lora.targets)

    def _latent_sides(self, bucket: Bucket) -> tuple[int, int]:
        return bucket.height // self.vae_factor, bucket.width // self.vae_factor

    @property
    def _clips(self) -> list[dict[str, Any]]:
        return [self.settings[f"{name}/config.json"] for name in ("text_encoder", "text_encoder_2")]

    @cached_property
    def _text_parameters(self) -> int:
        found = sum(sd3_parts.clip_parameters(clip) for clip in self._clips)
        return found + (sd3_parts.t5_parameters(self.t5) if self.t5 else 0)

    @property
    def _dual(self) -> int:
        return len(self.transformer.get("dual_attention_layers") or ())


def _part_bytes(part: Path) -> int:
    """Bytes of a part without copies of its weights in half precision, which are not read."""
    files = (path for path in part.rglob("*") if path.is_file() and ".fp16" not in path.name)
    return sum(path.stat().st_size for path in files)
