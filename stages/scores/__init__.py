"""Registry of scores and feature spaces. To add one, add a file here and a line below."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from schemas.report import ScoreCard
from schemas.suggest import did_you_mean
from stages.teachers.folder_check import ModelFolder
from stages.teachers.hub import model_folder
from stages.teachers.hub_models import HubModel

if TYPE_CHECKING:
    import torch

    from stages.scores.protocol import FeatureSpace, Score

SCORES = {
    "attributes": "stages.scores.attributes:Attributes",
    "layout": "stages.scores.layout:Layout",
    "clip_score": "stages.scores.clip_score:ClipScore",
    "pick_score": "stages.scores.pick_score:PickScore",
    "hps": "stages.scores.hps:HumanPreferenceScore",
    "image_reward": "stages.scores.image_reward:ImageReward",
    "aesthetic": "stages.scores.aesthetic:Aesthetic",
}
FEATURES = {
    "judge_features": "stages.scores.judge_features:JudgeFeatures",
    "clip_features": "stages.scores.clip_features:ClipFeatures",
    "dino_features": "stages.scores.dino_features:DinoFeatures",
    "inception_features": "stages.scores.inception_features:InceptionFeatures",
}
CAPTION_SCORES = ("attributes", "layout")
"""Scores that judge captions of the shapes world alone."""
EMBEDDED = ("attributes", "layout", "judge_features")
"""Names that need no weights beyond those shipped with the project."""


DEFAULT_MODELS = {
    "clip_score": "openai/clip-vit-large-patch14",
    "pick_score": "yuvalkirstain/PickScore_v1",
    "clip_features": "openai/clip-vit-large-patch14",
    "dino_features": "facebook/dinov2-large",
}
"""Models of the hub, where the configuration names none."""
NAMED = ("hps", "image_reward", "aesthetic", "inception_features")
"""Names whose weights the configuration must name: nobody publishes them as safetensors."""
WEIGHT_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""The files of a model that are used."""


def check_score(field: str, name: str, known: Iterable[str] = SCORES) -> None:
    """Raise ConfigError, naming the field, when no score has this name."""
    if name not in known:
        raise ConfigError(f"{field}.name: unknown score {name!r}{did_you_mean(name, known)}")


def check_model(config: ScoreConfig) -> None:
    """Raise ConfigError for a score's folder on this machine that is missing or not whole. Reads
    JSON files and headers only, imports no torch and asks no hub.
    """
    field = f"scores.{config.name}.model"
    if config.model is None and config.name in NAMED:
        raise ConfigError(
            f"scores.{config.name}.model is empty: name a folder or a hub id; docs/scores.md says "
            "what it must hold"
        )
    if config.model is not None and _is_path(config.model) and not Path(config.model).exists():
        raise ConfigError(
            f"{field}: there is no folder {config.model}; docs/scores.md says what it must hold, "
            "or leave the score out"
        )
    if config.model is not None and Path(config.model).exists():
        folder = model_folder(config.model, None, field=field, patterns=())
        ModelFolder(folder, field).check_files()


def score_models(configs: Iterable[ScoreConfig]) -> list[HubModel]:
    """The models of the hub that scores and feature spaces need."""
    found = []
    for config in configs:
        model = config.model or DEFAULT_MODELS.get(config.name)
        if model is None or _is_path(model) or config.name in EMBEDDED:
            continue
        field = f"scores.{config.name}.model"
        found.append(
            HubModel(
                field,
                model,
                config.revision,
                patterns=WEIGHT_PATTERNS,
                required=("*.safetensors",),
                check=partial(_check_whole, field),
            )
        )
    return found


def _check_whole(field: str, folder: Path) -> None:
    """Raise ConfigError unless a folder holds a model with its weights."""
    ModelFolder(folder, field).check_files()
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{field}: {folder} has no weights in safetensors")


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~"))


def open_score(config: ScoreConfig, device: torch.device) -> Score:
    """Open the score that a config names, on `device`.

    Raises ConfigError for an unknown name, or for a missing or incomplete model.
    """
    return _open(SCORES, "score", config, device)


def open_features(config: ScoreConfig, device: torch.device) -> FeatureSpace:
    """Open the feature space that a config names, on `device`.

    Raises ConfigError for an unknown name, or for a missing or incomplete model.
    """
    return _open(FEATURES, "feature space", config, device)


def card_of(config: ScoreConfig) -> ScoreCard:
    """Return the card of the score or feature space that a config names; loads no weights.

    Raises ConfigError for an unknown name.
    """
    return _class_of(SCORES | FEATURES, "score", config.name).card


def _open(registry: dict[str, str], kind: str, config: ScoreConfig, device: torch.device) -> Any:
    opened = _class_of(registry, kind, config.name)
    if config.name in EMBEDDED and config.model is not None:
        raise ConfigError(
            f"scores.{config.name}.model: {config.name} ships with the project and takes no "
            f"model; leave it out"
        )
    return opened(config, device)


def _class_of(registry: dict[str, str], kind: str, name: str) -> Any:
    if name not in registry:
        raise ConfigError(f"scores: unknown {kind} {name!r}{did_you_mean(name, registry)}")
    module, class_name = registry[name].split(":")
    return getattr(importlib.import_module(module), class_name)
