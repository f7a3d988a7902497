"""The files of the hub that a student starts from. Imports no torch."""

from __future__ import annotations

from stages.teachers.hub_models import HubModel

_FILES = ("*.json", "*.safetensors")


def start_model(init: str, revision: str | None) -> HubModel:
    """Return the model that `distill.init` names: a transformer's folder, or a pipeline's."""
    patterns = (*_FILES, *(f"transformer/{name}" for name in _FILES))
    return HubModel("distill.init", init, revision, patterns=patterns, required=("*.safetensors",))
