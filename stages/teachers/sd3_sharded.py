"""Loads a transformer that no process holds whole: it is built on the meta device, sharded, then
filled from its safetensors files. Each rank reads its own shards.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor, distribute_tensor

from schemas.config import LoraConfig
from schemas.errors import ConfigError
from stages.teachers.sd3_folder import FIELD
from stages.teachers.sd3_lora import add_adapters

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def on_meta(
    config: dict[str, Any], dtype: torch.dtype, lora: LoraConfig | None = None
) -> tuple[SD3Transformer2DModel, dict[str, Tensor]]:
    """The transformer of a `config.json` with weights that take no memory, and its adapters'
    initial weights by name. These are small, unsharded, and the same as on a transformer that was
    loaded whole.
    """
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(config).to(dtype).eval()
    adapters = {}
    if lora is not None:
        # peft draws adapters on the layers' device: first put the layers on the CPU, as expanded
        # scalars, which take no storage.
        transformer._apply(lambda t: torch.zeros((), dtype=t.dtype).expand(t.shape))
        add_adapters(transformer, lora)
        adapters = {n: p.detach() for n, p in transformer.named_parameters() if p.requires_grad}
        transformer.to("meta")
    return transformer, adapters


def fill(transformer: nn.Module, folder: Path, adapters: dict[str, Tensor]) -> None:
    """Load weights and buffers, each in its current dtype, from a folder in diffusers' format, in
    one file or several. All ranks call this.

    Raises ConfigError when the folder lacks a weight or cannot be read.
    """
    tensors = transformer.state_dict()
    unsaved = {name for name, _ in transformer.named_buffers()} - set(tensors)
    assert not unsaved, f"buffers that are in no file: {unsaved}"
    with torch.no_grad():
        for name, whole in adapters.items():
            _put(tensors.pop(name), whole)
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
    # The reader reads every safetensors file of a folder: show it only those in the index.
    with tempfile.TemporaryDirectory() as view:
        for name in _files(folder):
            os.symlink((folder / name).resolve(), Path(view) / name)
        try:
            load(
                tensors,
                storage_reader=HuggingFaceStorageReader(view),
                no_dist=not distributed.is_initialized(),
            )
        except (Exception, CheckpointException) as error:
            brief = " ".join(str(error).split())[-200:]
            raise ConfigError(
                f"{FIELD}: {folder} cannot be loaded: {brief}; it is damaged, or of another kind"
            ) from error


def _put(target: Tensor, whole: Tensor) -> None:
    if isinstance(target, DTensor):
        mesh, places = target.device_mesh, target.placements
        whole = distribute_tensor(whole, mesh, places, src_data_rank=None)
    target.copy_(whole)


def _files(folder: Path) -> list[str]:
    index = folder / f"{_WEIGHTS}.index.json"
    if not index.is_file():
        return [_WEIGHTS]
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))
