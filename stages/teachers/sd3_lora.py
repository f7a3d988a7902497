"""Low-rank adapters on SD3's transformer, made by peft and saved in diffusers' LoRA format."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from schemas.config import LoraConfig
from schemas.errors import ArtifactError, ConfigError
from stages.teachers.folder_check import brief

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file name that diffusers looks for in a folder of adapters."""


def add_adapters(
    transformer: SD3Transformer2DModel,
    lora: LoraConfig,
    *,
    field: str = "distill.lora",
    seed: int = 0,
) -> SD3Adapters:
    """Freeze the transformer and put float32 adapters on the layers named by `lora.targets`. Only
    they take gradients, and they have no effect before they are trained.

    The same `seed` gives the same initial weights on every rank. Raises ConfigError naming `field`
    when a target matches no layer.
    """
    names = [name for name, _ in transformer.named_modules()]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"{field}.targets: no layer of the transformer ends in {target}")
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(
            PeftConfig(
                r=lora.rank,
                lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
                target_modules=list(lora.targets),
            )
        )
    cast_training_params(transformer, torch.float32)
    return SD3Adapters(transformer)


def load_adapters(transformer: SD3Transformer2DModel, folder: Path) -> SD3Adapters:
    """Put the adapters in `folder`, in diffusers' format, on a transformer without adapters.

    Raises ArtifactError when the folder holds none that fit this transformer.
    """
    try:
        transformer.load_lora_adapter(
            folder, weight_name=WEIGHTS, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # of diffusers, peft and safetensors
        raise ArtifactError(
            f"{folder} holds no adapters that can be loaded: {brief(error)}"
        ) from error
    if not getattr(transformer, "peft_config", None):  # diffusers only warns
        raise ArtifactError(
            f"{folder / WEIGHTS} holds no adapters for this transformer: their names must begin "
            "with `transformer.`, as diffusers saves them"
        )
    return SD3Adapters(transformer)


def save_and_merge(transformer: SD3Transformer2DModel, folder: Path) -> None:
    """Write the adapters to `folder` in the format that
    `StableDiffusion3Pipeline.load_lora_weights` reads, and merge them into the transformer's
    weights.
    """
    adapters = SD3Adapters(transformer)
    adapters.save(folder)
    adapters.merge()


def as_in_forward(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """The contexts of `torch.utils.checkpoint` for a block: its adapters are on or off when it is
    recomputed in the backward pass, as they are now.
    """
    off = any(layer.disable_adapters for layer in _adapted_layers(block))
    return nullcontext(), _Switched(block, off=off)


class _Switched(AbstractContextManager[None]):
    """A context, to be entered any number of times, in which the adapters of a module are off, or
    on.

    It sets peft's mark itself: `disable_adapters` would also turn off `requires_grad` of weights
    whose backward pass is still to come.
    """

    def __init__(self, module: nn.Module, *, off: bool) -> None:
        self._layers, self._off = _adapted_layers(module), off
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before = [layer.disable_adapters for layer in self._layers]
        for layer in self._layers:
            layer._disable_adapters = self._off

    def __exit__(self, *_: object) -> None:
        for layer, before in zip(self._layers, self._before, strict=True):
            layer._disable_adapters = before


def _adapted_layers(module: nn.Module) -> list[BaseTunerLayer]:
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


class SD3Adapters:
    """The adapters on one transformer."""

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        self._transformer = transformer
        (self._name,) = transformer.peft_config

    def off(self) -> AbstractContextManager[None]:
        """A context in which the transformer computes as if it had no adapters."""
        return _Switched(self._transformer, off=True)

    def scale(self, factor: float) -> None:
        """Set the adapters' strength to `factor` times that of their training."""
        self._transformer.set_adapters([self._name], [factor])

    def save(self, folder: Path) -> None:
        """Write the adapters for `StableDiffusion3Pipeline.load_lora_weights` to `folder`."""
        metadata = self._transformer.peft_config[self._name].to_dict()
        metadata["base_model_name_or_path"] = None  # a path of this machine
        metadata["target_modules"] = sorted(metadata["target_modules"])  # a set has no fixed order
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            weight_name=WEIGHTS,
            transformer_lora_layers=get_peft_model_state_dict(
                self._transformer, adapter_name=self._name
            ),
            transformer_lora_adapter_metadata=metadata,
        )
        _put_metadata_in_order(folder / WEIGHTS)

    def merge(self) -> None:
        """Merge the adapters, at their current strength, into the transformer's weights, and remove
        them.
        """
        self._transformer.fuse_lora()
        self._transformer.unload_lora()


def _put_metadata_in_order(path: Path) -> None:
    """Sort the metadata in a safetensors header, so that the same adapters give the same bytes: the
    library writes it in random order.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
