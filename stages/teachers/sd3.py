"""Stable Diffusion 3 and 3.5 from a diffusers folder or the hub, through diffusers' own classes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    calculate_shift,
    retrieve_timesteps,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)
from transformers.utils import logging as transformers_logging

from schemas.bucket import Bucket
from schemas.config import LoraConfig, SamplerName, StudentTimeConfig, TeacherConfig
from schemas.errors import ConfigError
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.grid import StudentGrid
from stages.ladd.precision import autocast, computed_dtype
from stages.ladd.sampling import Euler, Solver
from stages.teachers.folder_check import ModelFolder, opening
from stages.teachers.hub import model_folder
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_flops import forward_flops
from stages.teachers.sd3_folder import (
    FIELD,
    INDEX,
    SCHEDULER,
    START_FIELD,
    check_folder,
    check_start,
    hub_model,
    refuse_students_scheduler,
)
from stages.teachers.sd3_lora import SD3Adapters, add_adapters, load_adapters, save_and_merge
from stages.teachers.sd3_sharded import fill, on_meta
from stages.teachers.sd3_student import read_grid, student_grid, usage, write_student
from stages.teachers.solvers import multistep_solver

diffusers_logging.disable_progress_bar()
diffusers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


class SD3Teacher:
    """A `Teacher` of the SD3 family. Parts are loaded on first use and stay on the device set by
    `place`.
    """

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self.dtype = getattr(torch, config.dtype)
        self.folder, self.parts = self._find()
        self._start: Path | None = None
        transformer, vae = self._json("transformer/config.json"), self._json("vae/config.json")
        self.vae_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.unit = self.vae_factor * transformer["patch_size"]
        self.patch_size = transformer["patch_size"]
        self.latent_channels = transformer["in_channels"]
        self.table_size = transformer["pos_embed_max_size"]
        self.has_t5 = "text_encoder_3" in self.parts

    def place(self, device: torch.device) -> None:
        self.device = device

    @property
    def max_tokens(self) -> int:
        return self._tokenizers[0].model_max_length - 2

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        rows = self._tokenizers[0](
            list(prompts), add_special_tokens=False, truncation=False, verbose=False
        )
        return [len(row) for row in rows["input_ids"]]

    def check_bucket(self, bucket: Bucket) -> None:
        """Raise ConfigError unless the transformer can process pictures of this size."""
        try:
            bucket.require_divisible(self.unit)
        except ValueError as error:
            raise ConfigError(f"prompts.buckets: {error}") from error
        limit = self.table_size * self.unit
        if max(bucket) > limit:
            raise ConfigError(
                f"prompts.buckets: {bucket} is larger than the teacher's position table: "
                f"{limit} pixels per side"
            )

    def backbone(
        self,
        *,
        dtype: torch.dtype | None = None,
        checkpoint_blocks: bool = False,
        lora: LoraConfig | None = None,
        shard: Callable[[Backbone], None] | None = None,
    ) -> SD3Backbone:
        dtype = computed_dtype(dtype or self.dtype, self.device)
        if shard is not None:
            return self._sharded(dtype, checkpoint_blocks, lora, shard)
        transformer = self._load(SD3Transformer2DModel, "transformer", dtype)
        if lora is not None:
            add_adapters(transformer, lora)
        return SD3Backbone(transformer.to(self.device), checkpoint_blocks=checkpoint_blocks)

    def starting_from(self, folder: Path) -> SD3Teacher:
        other = copy.copy(self)
        other._start = check_start(folder, self.folder)
        return other

    def add_adapters(
        self, backbone: SD3Backbone, lora: LoraConfig, *, field: str, seed: int
    ) -> SD3Adapters:
        return add_adapters(backbone.transformer, lora, field=field, seed=seed)

    def adapters(self, backbone: SD3Backbone) -> SD3Adapters:
        return SD3Adapters(backbone.transformer)

    def load_adapters(self, backbone: SD3Backbone, folder: Path) -> SD3Adapters:
        return load_adapters(backbone.transformer, folder)

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        return (
            self.latent_channels,
            bucket.height // self.vae_factor,
            bucket.width // self.vae_factor,
        )

    def forward_flops(self, bucket: Bucket, text_tokens: int) -> int:
        rows, columns = bucket.height // self.unit, bucket.width // self.unit
        return forward_flops(self._json("transformer/config.json"), rows, columns, text_tokens)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        length = self.config.max_sequence_length
        self._move_text_encoders(self.device)
        tokens, _, pooled, _ = self._text_pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        null_tokens = 0 if self.has_t5 else length
        kept = tokens.shape[1] - null_tokens
        return Conditioning(tokens[:, :kept].float(), pooled.float(), null_tokens)

    def shelve_text_encoders(self) -> None:
        self._move_text_encoders(torch.device("cpu"))

    @torch.no_grad()
    def encode_pictures(self, pictures_BHW3: np.ndarray) -> Tensor:
        pixels = (
            torch.from_numpy(pictures_BHW3).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        with self._vae_autocast():
            mean = self._vae.encode(pixels).latent_dist.mean.float()
        return (mean - self._vae.config.shift_factor) * self._vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> np.ndarray:
        unscaled = (
            latents_BCHW.float() / self._vae.config.scaling_factor + self._vae.config.shift_factor
        )
        with self._vae_autocast():
            pixels = self._vae.decode(unscaled.to(self._vae.dtype)).sample.float()
        pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).nan_to_num(0)
        return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()

    def release(self) -> None:
        for part in ("_vae", "_text_pipeline"):
            self.__dict__.pop(part, None)

    def sigmas(self, steps: int, bucket: Bucket) -> list[float]:
        scheduler, mu = self._scheduler(bucket)
        retrieve_timesteps(scheduler, steps, "cpu", **({} if mu is None else {"mu": mu}))
        return scheduler.sigmas.tolist()

    def solver(self, sampler: SamplerName, steps: int, bucket: Bucket) -> Solver:
        if sampler == "euler":
            return Euler(self.sigmas(steps, bucket))
        scheduler, mu = self._scheduler(bucket)
        return multistep_solver(scheduler, steps, mu)

    def _scheduler(self, bucket: Bucket) -> tuple[FlowMatchEulerDiscreteScheduler, float | None]:
        """The teacher's own scheduler, and the bucket's shift if that is dynamic."""
        config = self._json(SCHEDULER)
        refuse_students_scheduler(self.folder, config)
        with opening(FIELD, self.folder / SCHEDULER):
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        if not scheduler.config.use_dynamic_shifting:
            return scheduler, None
        _, height, width = self.latent_shape(bucket)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        tokens = height * width // self.patch_size**2
        return scheduler, calculate_shift(tokens, *(scheduler.config[name] for name in names))

    @property
    def shift(self) -> float:
        config = self._json(SCHEDULER)
        if config.get("use_dynamic_shifting"):
            raise ConfigError(
                f"{FIELD}: {self.folder / SCHEDULER} shifts by the size of the picture, so the "
                "teacher has no one shift: state distill.student_time.shift, distill.renoise.shift "
                "and dpo.shift"
            )
        return float(config["shift"])

    def student_grid(self, time: StudentTimeConfig) -> StudentGrid:
        return student_grid(time, self.shift if time.shift is None else time.shift)

    def save_student(
        self,
        folder: Path,
        load_weights: Callable[[Backbone], None],
        grid: StudentGrid | None = None,
        *,
        lora: LoraConfig | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        backbone = self.backbone(dtype=torch.float32, lora=lora)
        load_weights(backbone)
        if lora is not None:
            save_and_merge(backbone.transformer, folder / "lora")
        write_student(
            folder,
            self.folder,
            backbone.transformer.to(self.dtype),
            read_grid(self.folder) if grid is None else grid,
            with_t5=self.has_t5,
        )

    def student(self) -> tuple[Backbone, StudentGrid]:
        grid = read_grid(self.folder)
        return self.backbone(dtype=torch.float32).eval(), grid

    def usage(self, steps: Sequence[int], grid: StudentGrid) -> str:
        return usage(grid, steps, with_t5=self.has_t5)

    def _sharded(
        self,
        dtype: torch.dtype,
        checkpoint_blocks: bool,
        lora: LoraConfig | None,
        shard: Callable[[Backbone], None],
    ) -> SD3Backbone:
        config = self._json("transformer/config.json")
        place, field = self._place("transformer")
        with opening(field, place):
            transformer, adapters = on_meta(config, dtype, lora)
        backbone = SD3Backbone(transformer, checkpoint_blocks=checkpoint_blocks)
        shard(backbone)
        backbone.to_empty(device=self.device)
        fill(transformer, place, adapters)
        return backbone

    def _find(self) -> tuple[Path, list[str]]:
        """Return the checked folder, and the names of the parts that are used."""
        if self.config.model is None:
            raise ConfigError("teacher.model is empty: name a diffusers folder or a hub id")
        wanted = hub_model(self.config)
        folder = model_folder(
            wanted.model,
            wanted.revision,
            field=wanted.field,
            patterns=wanted.patterns,
            ignored=wanted.ignored,
        )
        return folder, check_folder(folder, use_t5=self.config.use_t5)

    def _json(self, name: str) -> dict[str, Any]:
        return ModelFolder(self.folder, FIELD).json(name)

    def _load(self, kind: type[Any], part: str, dtype: torch.dtype) -> Any:
        """Load a part, frozen. Raises ConfigError for weights that are missing, which the libraries
        would draw at random with a mere warning, or not finite.
        """
        place, field = self._place(part)
        with opening(field, place):
            model, report = kind.from_pretrained(
                place,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            raise ConfigError(
                f"{field}: the weights in {place} lack {missing[0]}, which a {kind.__name__} has; "
                "they are incomplete, or of another model"
            )
        if part in ("transformer", "vae") and report["unexpected_keys"]:
            raise ConfigError(
                f"{field}: the weights in {place} hold {sorted(report['unexpected_keys'])[0]}, "
                "which its config.json does not describe; they are of another model"
            )
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise ConfigError(
                    f"{field}: {name} in {place} holds values that are not finite; download the "
                    "model again"
                )
        return model

    def _place(self, part: str) -> tuple[Path, str]:
        """The folder of a part, and the field of the configuration that names it."""
        if part == "transformer" and self._start is not None:
            return self._start, START_FIELD
        return self.folder / part, FIELD

    def _tokenizer(self, part: str) -> PreTrainedTokenizerBase:
        """The tokenizer of the class that model_index.json names, as stock diffusers loads it."""
        _, name = self._json(INDEX)[part]
        with opening(FIELD, self.folder / part):
            kind = getattr(transformers, name, AutoTokenizer)
            return kind.from_pretrained(self.folder / part, local_files_only=True)

    @cached_property
    def _tokenizers(self) -> list[PreTrainedTokenizerBase]:
        return [self._tokenizer(part) for part in ("tokenizer", "tokenizer_2")]

    @cached_property
    def _vae(self) -> AutoencoderKL:
        vae = self._load(AutoencoderKL, "vae", torch.float32).eval().requires_grad_(False)
        return vae.to(self.device, memory_format=torch.channels_last)

    def _vae_autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.device, enabled=self.device.type == "cpu")

    def _move_text_encoders(self, device: torch.device) -> None:
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if (encoder := getattr(self._text_pipeline, name)) is not None:
                encoder.to(device)

    @cached_property
    def _text_pipeline(self) -> StableDiffusion3Pipeline:
        """Diffusers' pipeline with only the text encoders: its `encode_prompt` is the reference."""
        encoders: list[Any] = [
            self._load(CLIPTextModelWithProjection, name, torch.float32)
            .eval()
            .requires_grad_(False)
            .to(self.device)
            for name in ("text_encoder", "text_encoder_2")
        ]
        third = third_tokenizer = None
        if self.has_t5:
            third = (
                self._load(
                    T5EncoderModel, "text_encoder_3", computed_dtype(self.dtype, self.device)
                )
                .eval()
                .requires_grad_(False)
                .to(self.device)
            )
            third_tokenizer = self._tokenizer("tokenizer_3")
        scheduler = FlowMatchEulerDiscreteScheduler()
        with torch.device("meta"):  # encode_prompt reads only a width from it
            transformer = SD3Transformer2DModel.from_config(
                self._json("transformer/config.json") | {"num_layers": 1}
            )
        for tokenizer, encoder in zip(
            [*self._tokenizers, third_tokenizer], [*encoders, third], strict=True
        ):
            if encoder is not None and len(tokenizer) > encoder.config.vocab_size:
                raise ConfigError(
                    f"{FIELD}: a tokenizer of {self.folder} knows {len(tokenizer):,} tokens, but "
                    f"its text encoder only {encoder.config.vocab_size:,}; they are of different "
                    "models"
                )
        return StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=scheduler,
            vae=None,
            text_encoder=encoders[0],
            tokenizer=self._tokenizers[0],
            text_encoder_2=encoders[1],
            tokenizer_2=self._tokenizers[1],
            text_encoder_3=third,
            tokenizer_3=third_tokenizer,
        )
