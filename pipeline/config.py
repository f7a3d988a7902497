"""Reads a configuration (flags override environment, file and preset, in this order) and validates
it with clear messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from schemas.suggest import did_you_mean

PRESETS = Path(__file__).parent / "presets"
DEFAULT_FILE = Path("pipeline.yaml")
_PREFIX = "LADD_"
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast in C, where PyYAML was built with it."""


def load_config(
    file: Path | None = None,
    preset: str | None = None,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> PipelineConfig:
    """Return the resolved configuration. Without file and preset, use ./pipeline.yaml if it exists,
    else preset `shapes`.

    Raises ConfigError naming the field, file or preset.
    """
    if file is None and preset is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    content = read_yaml(file) if file else {}
    preset = preset or content.pop("preset", None) or (None if file else "shapes")
    content.pop("preset", None)
    merged = merge(read_preset(preset) if preset else {}, content)
    for name, value in sorted(environment.items()):
        if name.startswith(_PREFIX):
            parts = name.removeprefix(_PREFIX).lower().split("__")
            if parts[0] in PipelineConfig.model_fields:
                merged = merge(merged, _nested(parts, _parse(value, name)))
    for setting in settings:
        path, sign, value = setting.partition("=")
        if not sign or not path:
            raise ConfigError(f"--set {setting!r} is not of the form section.field=value")
        merged = merge(merged, _nested(path.split("."), _parse(value, f"--set {path}")))
    config = validate(merged)
    return config.model_copy(update={"store": _absolute(config.store)})


def _absolute(store: str) -> str:
    """Make a local store's path absolute: workers run in other folders."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


def validate(content: dict[str, Any]) -> PipelineConfig:
    try:
        return PipelineConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            "configuration: " + "; ".join(_explain(item) for item in error.errors()[:5])
        ) from error


def read_preset(name: str) -> dict[str, Any]:
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, preset_names())}")
    return read_yaml(path)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), _SafeLoader)
    except FileNotFoundError as error:
        raise ConfigError(
            f"configuration file {path} does not exist; `ladd-pipeline init` writes one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"configuration file {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"configuration file {path} must contain fields, not {type(content).__name__}"
        )
    return {str(name): value for name, value in content.items()}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two configurations; `over` wins. Mappings merge, but `buckets` is replaced whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict) and key != "buckets"
        result[key] = merge(result[key], value) if both else value
    return result


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    nested: dict[str, Any] = {path[-1]: value}
    for name in reversed(path[:-1]):
        nested = {name: nested}
    return nested


def _parse(text: str, where: str) -> Any:
    try:
        value = yaml.load(text, _SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {text!r} is not a YAML value") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(PipelineConfig, list(error["loc"][:-1]))
        return f"unknown field {where}{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"field {where} is missing"
    shown = repr(error.get("input"))
    return f"field {where}: {error['msg']} (got {shown if len(shown) < 60 else shown[:57] + '...'})"


def _fields_at(kind: Any, path: list[Any]) -> list[str]:
    """Return the names of the fields at `path` in a type, where its annotations tell them."""
    if get_origin(kind) in (Union, UnionType):
        return sorted({name for option in get_args(kind) for name in _fields_at(option, path)})
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not path:
            return list(kind.model_fields)
        field = kind.model_fields.get(str(path[0]))
        return _fields_at(field.annotation, path[1:]) if field else []
    arguments = get_args(kind)
    if arguments and path:
        remaining = path[1:] if isinstance(path[0], int) else path
        return sorted({name for option in arguments for name in _fields_at(option, remaining)})
    return sorted({name for option in arguments for name in _fields_at(option, path)})
