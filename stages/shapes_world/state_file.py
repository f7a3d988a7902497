"""Stores a nested training state (modules, optimizers, counters) in one safetensors file: no
pickle, atomic, exact.

Knows nothing about what is trained.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from schemas.errors import ArtifactError


class StateFileError(ArtifactError):
    """A training state that cannot be read; the message names the file."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, tensors and JSON scalars to `path`, atomically.

    Dict keys may be str or int. Raises TypeError for a leaf that is neither a tensor nor a JSON
    scalar.
    """
    tensors: dict[str, torch.Tensor] = {}

    def strip(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            name = str(len(tensors))
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, strip(value)] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            return {"list": [strip(value) for value in node]}
        if node is None or isinstance(node, (bool, int, float, str)):
            return {"value": node}
        raise TypeError(
            f"a training state holds tensors and JSON scalars, not {type(node).__name__}"
        )

    tree = json.dumps(strip(state))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, metadata={"tree": tree})
    os.replace(partial, path)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote. Raises StateFileError naming the file when it is truncated
    or in another format.
    """
    tensors: dict[str, torch.Tensor] = {}

    def fill(node: dict[str, Any]) -> Any:
        if "tensor" in node:
            return tensors[node["tensor"]]
        if "dict" in node:
            return {key: fill(value) for key, value in node["dict"]}
        if "list" in node:
            return [fill(value) for value in node["list"]]
        return node["value"]

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tree = json.loads(file.metadata()["tree"])
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        filled: dict[str, Any] = fill(tree)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise StateFileError(
            f"training state {path} cannot be read ({error}); delete it to start again"
        ) from error
    return filled
