"""Low-rank adapters on SD3's transformer, by peft and in diffusers' own LoRA format."""

from __future__ import annotations

from pathlib import Path

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict

from schemas.config import LoraConfig
from schemas.errors import ConfigError


def add_adapters(transformer: SD3Transformer2DModel, lora: LoraConfig) -> None:
    """Freeze the transformer and put float32 adapters on the layers named by `lora.targets`; they
    alone take gradients, and change nothing before they are trained.

    Raises ConfigError when a target names no layer.
    """
    names = [name for name, _ in transformer.named_modules()]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"distill.lora.targets: no layer of the transformer ends in {target}")
    transformer.requires_grad_(False)
    transformer.add_adapter(
        PeftConfig(
            r=lora.rank,
            lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
            target_modules=list(lora.targets),
        )
    )


def save_and_merge(transformer: SD3Transformer2DModel, folder: Path) -> None:
    """Write the adapters to `folder` as `StableDiffusion3Pipeline.load_lora_weights` reads them,
    and fold them into the transformer's own weights.
    """
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    transformer.fuse_lora()
    transformer.unload_lora()
