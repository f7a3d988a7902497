"""Reads a configuration (flags override environment, file and preset, in this order) and validates
it with clear messages.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.fields import Types, as_written, below, names_in, types_at
from pipeline.typed_yaml import read_document, read_value, to_yaml
from schemas.addresses import public_content
from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from schemas.suggest import did_you_mean

PRESETS = Path(__file__).parent / "presets"
DEFAULT_FILE = Path("pipeline.yaml")
_PREFIX = "LADD_"
_LARGEST = 2**63
"""Integers are stored in 64 bits in more than one place."""


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
    origins: dict[str, str] = {}
    typed = [*_of_environment(environment), *map(_of_setting, settings)]
    for path, text, where in typed:
        origins[".".join(path)] = where
        merged = merge(merged, _nested(path, read_value(text, types_at(path), where)))
    config = _counted(validate(merged, origins))
    return config.model_copy(update={"store": _absolute(config.store)})


def _counted(config: PipelineConfig) -> PipelineConfig:
    """Put the number in the place of `synthesize.count: auto`, so that it enters the keys."""
    if config.synthesize.count != "auto":
        return config
    made = config.synthesize.model_copy(update={"count": config.distill.samples_drawn})
    return config.model_copy(update={"synthesize": made})


def _of_environment(environment: Mapping[str, str]) -> Iterator[tuple[list[str], str, str]]:
    """Yield place, text and origin of each field in the environment. Raises ConfigError for a
    variable that looks like one and is none.
    """
    known = PipelineConfig.model_fields
    for name, text in sorted(environment.items()):
        path = name.removeprefix(_PREFIX).lower().split("__")
        if not name.startswith(_PREFIX):
            continue
        if path[0] in known:
            yield path, text, name
        elif len(path) > 1 or get_close_matches(path[0], known, cutoff=0.8):
            raise ConfigError(f"environment: {name} is no field{did_you_mean(path[0], known)}")


def _of_setting(setting: str) -> tuple[list[str], str, str]:
    path, sign, text = setting.partition("=")
    if not sign or not path:
        raise ConfigError(f"--set {setting!r} is not of the form section.field=value")
    return path.strip().split("."), text, f"--set {path}"


def _absolute(store: str) -> str:
    """Make a local store's path absolute: workers run in other folders."""
    if "://" in store:
        return store
    try:
        return str(Path(store).expanduser().absolute())
    except (RuntimeError, OSError) as error:  # nobody's home, or a working folder that is gone
        raise ConfigError(f"store: {store} has no full path ({error}); write it whole") from error


def validate(content: dict[str, Any], origins: Mapping[str, str] | None = None) -> PipelineConfig:
    """Return the configuration. Raises ConfigError for what is wrong in it, with the `origins` of
    fields that were typed.
    """
    try:
        config = PipelineConfig.model_validate(content)
    except ValidationError as error:
        wrong = dict.fromkeys(_explain(item, origins or {}) for item in error.errors())
        raise ConfigError("configuration: " + "; ".join(list(wrong)[:5])) from error
    odd = [f"field {place}: {what}" for place, what in _odd_numbers(content, config)]
    if odd:
        raise ConfigError("configuration: " + "; ".join(odd[:5]))
    return config


def _odd_numbers(raw: Any, checked: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the places of numbers that pydantic takes and nobody means, and what is wrong."""
    if isinstance(raw, dict):
        found = checked if isinstance(checked, dict) else vars(checked)
        for name, value in raw.items():
            inside = f"{place}.{name}" if place else str(name)
            yield from _odd_numbers(value, found.get(name), inside)
    elif isinstance(raw, list) and isinstance(checked, (list, tuple)):
        for number, (value, one) in enumerate(zip(raw, checked, strict=False)):
            yield from _odd_numbers(value, one, f"{place}.{number}")
    elif isinstance(checked, (int, float)) and not isinstance(checked, bool):
        if isinstance(raw, bool):
            yield place, f"must be a number (got {str(raw).lower()})"
        elif isinstance(checked, float) and not math.isfinite(checked):
            yield place, f"must be a finite number (got {_shown(raw)})"
        elif abs(checked) >= _LARGEST:
            yield place, f"is too large (got {_shown(raw)})"


def config_yaml(config: PipelineConfig) -> str:
    """Return what differs from the defaults as a configuration file, which reads as the same."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    assert validate(content) == config
    return to_yaml([content])


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's fields. Like a file, it may name in `preset` the one that it builds on."""
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, preset_names())}")
    content = read_yaml(path)
    base = content.pop("preset", None)
    return merge(read_preset(base), content) if base else content


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    where = f"configuration file {path}"
    try:
        content = read_document(path.read_bytes(), where)
    except FileNotFoundError as error:
        raise ConfigError(f"{where} does not exist; `ladd-pipeline init` writes one") from error
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must contain fields, not {type(content).__name__}")
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


def _explain(error: Any, origins: Mapping[str, str]) -> str:
    written, holder = as_written(error["loc"])
    place = ".".join(written)
    origin = f" (from {origins[place]})" if place in origins else ""
    if error["type"] == "extra_forbidden":
        return f"unknown field {place}{origin}{did_you_mean(written[-1], names_in(holder))}"
    if error["type"] == "missing":
        return f"field {place} is missing"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return f"field {place}.kind: {_kinds(types_at(written))} (got {_shown(error['input'])})"
    if _SECRETS.search(f"{place} {error['msg']}"):
        return f"field {place}: {error['msg']}{origin}"
    return f"field {place}: {error['msg']} (got {_shown(error.get('input'))}){origin}"


_SECRETS = re.compile(r"\bkubernetes\.env\b|secret|password", re.IGNORECASE)
"""Fields, and refusals, whose values are not shown."""


def _kinds(types: Types) -> str:
    kinds = [kind for one in below(types, "kind") for kind in get_args(one)]
    return f"must be {' or '.join(sorted(kinds))}"


def _shown(value: Any) -> str:
    try:
        shown = ascii(public_content(value))
    except ValueError:  # Python does not print integers of thousands of digits
        return "a very large number"
    return shown if len(shown) < 60 else shown[:57] + "..."
