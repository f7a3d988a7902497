"""Finds and loads a score's weights from a folder or hub id: only safetensors, only complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from stages.scores import DEFAULT_MODELS, WEIGHT_PATTERNS, check_model
from stages.teachers.folder_check import ModelFolder, opening
from stages.teachers.hub import model_folder

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

_BATCH = 32
"""Pictures in one forward pass: callers may pass thousands of crops."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def find_model(config: ScoreConfig) -> Path:
    """Find the folder of the weights that a config names, or of the score's usual ones if it names
    none.
    """
    check_model(config)
    model = config.model or DEFAULT_MODELS[config.name]
    field = f"scores.{config.name}.model"
    folder = model_folder(model, config.revision, field=field, patterns=WEIGHT_PATTERNS)
    ModelFolder(folder, field).check_files()
    return folder


def load_model(
    kind: Any, folder: Path, name: str, device: torch.device, *, spare: tuple[str, ...] = ()
) -> Any:
    """Load a frozen float32 model of a transformers class. Weights under the prefixes `spare` may
    be missing. transformers initialises other missing weights at random and only warns, hence the
    check.
    """
    with opening(f"scores.{name}.model", folder):
        model, report = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(spare))
    if missing:
        raise ConfigError(
            f"scores.{name}.model: {folder} lacks {len(missing)} of the weights of "
            f"{kind.__name__}, such as {missing[0]}; it holds another model or an incomplete one"
        )
    return model.eval().requires_grad_(False).to(device)


def load_image_processor(folder: Path, name: str) -> Any:
    """Load the folder's image processor, with the PIL backend to avoid needing torchvision."""
    with opening(f"scores.{name}.model", folder / "preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def load_tokenizer(folder: Path, name: str) -> Any:
    """Load the folder's tokenizer. Without its files transformers builds an empty one, hence the
    check.
    """
    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        raise ConfigError(
            f"scores.{name}.model: {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)})"
        )
    with opening(f"scores.{name}.model", folder / "tokenizer.json"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Load the tensors of one safetensors file."""
    with opening(f"scores.{name}.model", path):
        return load_file(path)


def load_linear_head(path: Path, name: str, width: int, device: torch.device) -> nn.Sequential:
    """Build a head of linear layers from tensors `layers.<i>.weight` and `.bias` (any prefix).

    This is the format of the aesthetic predictor and ImageReward. They have no activation, and
    their dropout does nothing at inference.
    """
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_tensors(path, name).items():
        if match := re.search(r"layers\.(\d+)\.(weight|bias)$", key):
            states.setdefault(int(match[1]), {})[match[2]] = tensor.float()
    head = nn.Sequential()
    with opening(f"scores.{name}.model", path):
        for _, state in sorted(states.items()):
            out_width, in_width = state["weight"].shape
            layer = nn.Linear(in_width, out_width)
            layer.load_state_dict(state)
            head.append(layer)
    widths = [layer.in_features for layer in head] + [1]
    if (
        not states
        or widths[0] != width
        or any(layer.out_features != after for layer, after in zip(head, widths[1:], strict=True))
    ):
        raise ConfigError(
            f"scores.{name}.model: {path} must hold linear layers `layers.<i>.weight` and `.bias` "
            f"from width {width} down to 1, found widths {widths[:-1]}"
        )
    return head.eval().requires_grad_(False).to(device)


def in_batches(
    compute: Callable[..., torch.Tensor], *rows: Sequence[Any] | np.ndarray
) -> torch.Tensor:
    """Apply `compute` to equally long `rows` in batches, concatenated along the first dimension."""
    starts = range(0, len(rows[0]), _BATCH)
    return torch.cat([compute(*(row[start : start + _BATCH] for row in rows)) for start in starts])
