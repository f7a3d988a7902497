"""A whole teacher family that is not SD3, in one file: all that the project asks of a family.

Pixels are rearranged into 12 latent channels (no autoencoder), cross-attention reads the text (no
joint blocks), and there is no pooled embedding. The weights are random.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.bucket import Bucket
from schemas.config import LoraConfig, SamplerName, StudentTimeConfig, TeacherConfig
from schemas.errors import ArtifactError, ConfigError
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.grid import StudentGrid, shifted
from stages.ladd.sampling import Euler, Solver

FACTOR, CHANNELS, WIDTH, BLOCKS = 2, 12, 16, 3
VOCABULARY, WORDS = 64, 24
PIPELINE = "TinyPipeline"


class TinyBlock(nn.Module):
    """The noise level is added, then attention to image and to text, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Linear(1, WIDTH)
        self.image = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.text = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.enter, self.leave = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x_BND: Tensor, text_BLD: Tensor, sigma_B: Tensor) -> Tensor:
        x_BND = x_BND + self.level(sigma_B[:, None, None])
        x_BND = x_BND + self.image(x_BND, x_BND, x_BND, need_weights=False)[0]
        x_BND = x_BND + self.text(x_BND, text_BLD, text_BLD, need_weights=False)[0]
        return x_BND + self.leave(F.gelu(self.enter(F.layer_norm(x_BND, (WIDTH,)))))


class TinyBackbone(Backbone):
    """Every latent pixel is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.blocks = nn.ModuleList(TinyBlock() for _ in range(BLOCKS))
        self.tap_widths = [WIDTH] * BLOCKS
        self.checkpoint_blocks = False

    def velocity(
        self,
        latents_BCHW: Tensor,
        sigma_B: Tensor,
        conditioning: Conditioning,
        *,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        return self(
            latents_BCHW, sigma_B, conditioning, want_features=False, skip_layers=skip_layers
        )

    def features(
        self, latents_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> list[Tensor]:
        return self(latents_BCHW, sigma_B, conditioning, want_features=True)

    def forward(
        self,
        latents_BCHW: Tensor,
        sigma_B: Tensor,
        conditioning: Conditioning,
        *,
        want_features: bool,
        skip_layers: Collection[int] = (),
    ) -> Tensor | list[Tensor]:
        sides = latents_BCHW.shape[-2:]
        dtype = self.embed.weight.dtype
        x_BND = self.embed(latents_BCHW.flatten(2).transpose(1, 2).to(dtype))
        maps = []
        for index, block in enumerate(self.blocks):
            if index in skip_layers:
                continue
            x_BND = block(x_BND, conditioning.tokens_BLD.to(dtype), sigma_B.to(dtype))
            maps.append(x_BND.transpose(1, 2).unflatten(2, sides).contiguous())
        if want_features:
            return maps
        return self.out(x_BND).transpose(1, 2).unflatten(2, sides)


class TinyAdapters:
    """peft's adapters on a tiny backbone."""

    def __init__(self, backbone: TinyBackbone, lora: LoraConfig) -> None:
        self.backbone, self.lora = backbone, lora

    def _layers(self) -> list[BaseTunerLayer]:
        return [m for m in self.backbone.modules() if isinstance(m, BaseTunerLayer)]

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        for layer in self._layers():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers():
                layer.enable_adapters(True)

    def scale(self, factor: float) -> None:
        for layer in self._layers():
            layer.set_scale("default", factor)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous() for k, v in get_peft_model_state_dict(self.backbone).items()}
        lora = self.lora.model_dump_json(include=set(LoraConfig.model_fields))
        save_file(tensors, folder / "adapters.safetensors", {"lora": lora})

    def merge(self) -> None:
        for name, layer in list(self.backbone.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(self.backbone.get_submodule(parent), child, layer.get_base_layer())


class TinyTeacher:
    """A `stages.teachers.protocol.Teacher`."""

    vae_factor, max_tokens, shift = FACTOR, WORDS, 1.0

    def __init__(self, config: TeacherConfig) -> None:
        self.device, self.dtype = torch.device("cpu"), getattr(torch, config.dtype)
        self.folder = Path(config.model or "")
        if not (self.folder / "backbone.safetensors").is_file():
            raise ConfigError(f"teacher.model: {self.folder} holds no tiny teacher")
        self.start = self.folder
        self.words = load_file(self.folder / "words.safetensors")["words"]

    def check_bucket(self, bucket: Bucket) -> None:
        bucket.require_divisible(FACTOR)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt.split()) for prompt in prompts]

    def place(self, device: torch.device) -> None:
        self.device = device

    def backbone(
        self,
        *,
        dtype: torch.dtype | None = None,
        checkpoint_blocks: bool = False,
        lora: LoraConfig | None = None,
        shard: Callable[[Backbone], None] | None = None,
    ) -> Backbone:
        backbone = TinyBackbone()
        backbone.load_state_dict(load_file(self.start / "backbone.safetensors"))
        backbone.to(self.device, dtype or self.dtype)
        if lora is not None:
            self.add_adapters(backbone, lora, field="distill.lora", seed=0)
        if shard is not None:
            shard(backbone)
        return backbone

    def starting_from(self, folder: Path) -> TinyTeacher:
        other = copy.copy(self)
        other.start = folder
        return other

    def add_adapters(
        self, backbone: Backbone, lora: LoraConfig, *, field: str, seed: int
    ) -> TinyAdapters:
        layers = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
        for target in lora.targets:
            if target not in layers:
                raise ConfigError(f"{field}.targets: no layer of the backbone ends in {target}")
        backbone.requires_grad_(False)
        backbone.lora = lora
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            alpha = lora.rank if lora.alpha is None else lora.alpha
            targets = list(lora.targets)
            wanted = PeftConfig(r=lora.rank, lora_alpha=alpha, target_modules=targets)
            inject_adapter_in_model(wanted, backbone)
        for name, parameter in backbone.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        return TinyAdapters(backbone, lora)

    def adapters(self, backbone: Backbone) -> TinyAdapters:
        return TinyAdapters(backbone, backbone.lora)

    def load_adapters(self, backbone: Backbone, folder: Path) -> TinyAdapters:
        from safetensors import safe_open

        path = folder / "adapters.safetensors"
        with safe_open(path, "pt") as file:
            lora = LoraConfig.model_validate_json(file.metadata()["lora"])
        adapters = self.add_adapters(backbone, lora, field="lora", seed=0)
        set_peft_model_state_dict(backbone, load_file(path))
        return adapters

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        rows = [
            [zlib.crc32(word.encode()) % VOCABULARY for word in prompt.split()[:WORDS]]
            for prompt in prompts
        ]
        padded = torch.tensor([row + [0] * (WORDS - len(row)) for row in rows])
        tokens = self.words[padded].to(self.device)
        return Conditioning(tokens, tokens.new_zeros(len(prompts), 0))

    def shelve_text_encoders(self) -> None:
        pass

    def encode_pictures(self, pictures_BHW3: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(pictures_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.pixel_unshuffle(pixels.to(self.device), FACTOR)

    def decode_latents(self, latents_BCHW: Tensor) -> np.ndarray:
        pixels = (F.pixel_shuffle(latents_BCHW.float(), FACTOR) + 1) * 127.5
        pixels = pixels.round().clamp(0, 255).nan_to_num(0).byte()
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def release(self) -> None:
        pass

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        return CHANNELS, bucket.height // FACTOR, bucket.width // FACTOR

    def forward_flops(self, bucket: Bucket, text_tokens: int) -> int:
        tokens = (bucket.height // FACTOR) * (bucket.width // FACTOR)
        square = WIDTH**2
        to_image = 4 * tokens * square + 2 * tokens**2 * WIDTH
        to_text = 2 * (tokens + text_tokens) * square + 2 * tokens * text_tokens * WIDTH
        block = WIDTH + to_image + to_text + 4 * tokens * square
        return 2 * (2 * tokens * CHANNELS * WIDTH + BLOCKS * block)

    def sigmas(self, steps: int, bucket: Bucket) -> list[float]:
        return [1 - i / steps for i in range(steps)] + [0.0]

    def solver(self, sampler: SamplerName, steps: int, bucket: Bucket) -> Solver:
        if sampler != "euler":
            raise ConfigError(f"synthesize.sampler: a tiny teacher has no {sampler}; set euler")
        return Euler(self.sigmas(steps, bucket))

    def student_grid(self, time: StudentTimeConfig) -> StudentGrid:
        shift = self.shift if time.shift is None else time.shift
        return StudentGrid(tuple(shifted(level, shift) for level in time.grid))

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
            adapters = TinyAdapters(backbone, lora)
            adapters.save(folder / "lora")
            adapters.merge()
        save_file(backbone.state_dict(), folder / "backbone.safetensors")
        for name in ("words.safetensors", "model_index.json"):
            shutil.copyfile(self.folder / name, folder / name)
        grid = grid or self.student()[1]
        (folder / "student.json").write_text(json.dumps({"grid": list(grid.levels)}))

    def student(self) -> tuple[Backbone, StudentGrid]:
        try:
            levels = json.loads((self.folder / "student.json").read_text())["grid"]
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{self.folder} is not a student's folder: {error}") from error
        return self.backbone(dtype=torch.float32).eval(), StudentGrid(tuple(levels))

    def usage(self, steps: Sequence[int], grid: StudentGrid) -> str:
        return f"`ladd-pipeline sample PROMPT --student FOLDER --steps {max(steps)}`"


def make_tiny_teacher(folder: Path) -> Path:
    """Write a teacher with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(TinyBackbone().state_dict(), folder / "backbone.safetensors")
        save_file({"words": torch.randn(VOCABULARY, WIDTH)}, folder / "words.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINE}))
    return folder
