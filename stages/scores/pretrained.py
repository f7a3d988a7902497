"""Finds and loads the weights of a score: a folder or a hub id, safetensors alone, and whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from stages.teachers.hub import model_folder

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

_BATCH = 32
"""Pictures in one forward pass: callers may bring thousands of crops."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")


def find_model(config: ScoreConfig, default: str | None = None) -> Path:
    """The folder of the weights that a config names, or of `default` where it names none."""
    model = config.model or default
    if model is None:
        raise ConfigError(
            f"scores.{config.name}.model is empty: name a folder or a hub id; docs/scores.md says "
            "what it must hold"
        )
    return model_folder(
        model, config.revision, field=f"scores.{config.name}.model", patterns=_PATTERNS
    )


def load_model(
    kind: Any, folder: Path, name: str, device: torch.device, *, spare: tuple[str, ...] = ()
) -> Any:
    """A frozen float32 model of a transformers class. Weights under the prefixes `spare` may be
    missing; transformers would draw any other at random and only warn, hence the check.
    """
    try:
        model, report = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(name, folder, error) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(spare))
    if missing:
        raise ConfigError(
            f"scores.{name}.model: {folder} lacks {len(missing)} of the weights of "
            f"{kind.__name__}, such as {missing[0]}; it holds another model, or a part of one"
        )
    return model.eval().requires_grad_(False).to(device)


def load_image_processor(folder: Path, name: str) -> Any:
    """The folder's own preparation of pictures; with PIL, so that it needs no torchvision."""
    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError) as error:
        raise _unreadable(name, folder / "preprocessor_config.json", error) from error


def load_tokenizer(folder: Path, name: str) -> Any:
    """The folder's tokenizer. Without its files transformers would make an empty one, hence the
    check.
    """
    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        raise ConfigError(
            f"scores.{name}.model: {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)})"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _unreadable(name, folder / "tokenizer.json", error) from error


def load_tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(name, path, error) from error


def load_linear_head(path: Path, name: str, width: int, device: torch.device) -> nn.Sequential:
    """A head of linear layers from tensors `layers.<i>.weight` and `.bias` (any prefix), as the
    aesthetic predictor and ImageReward keep it: their dropout is gone at inference, and they have
    no activation.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_tensors(path, name).items():
        if match := re.search(r"layers\.(\d+)\.(weight|bias)$", key):
            found.setdefault(int(match[1]), {})[match[2]] = tensor.float()
    head = nn.Sequential()
    for _, state in sorted(found.items()):
        out_width, in_width = state["weight"].shape
        layer = nn.Linear(in_width, out_width)
        layer.load_state_dict(state)
        head.append(layer)
    widths = [layer.in_features for layer in head] + [1]
    if (
        not found
        or widths[0] != width
        or any(layer.out_features != after for layer, after in zip(head, widths[1:], strict=True))
    ):
        raise ConfigError(
            f"scores.{name}.model: {path} must hold linear layers `layers.<i>.weight` and `.bias` "
            f"from width {width} down to 1, found widths {widths[:-1]}"
        )
    return head.eval().requires_grad_(False).to(device)


def in_batches(compute: Callable[..., torch.Tensor], *rows: Sequence[Any]) -> torch.Tensor:
    """`compute` of equally long `rows`, some at a time, joined along the first dimension."""
    parts = range(0, len(rows[0]), _BATCH)
    return torch.cat([compute(*(row[at : at + _BATCH] for row in rows)) for at in parts])


def _unreadable(name: str, path: Path, error: Exception) -> ConfigError:
    brief = " ".join(str(error).split())[:200]
    return ConfigError(f"scores.{name}.model: {path} cannot be loaded: {brief}")
