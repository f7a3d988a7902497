"""The base of every model, and the difference between identity and runtime fields.

An identity field changes the result and enters the artifact's key; a runtime field does not.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """An immutable model that refuses unknown fields. The string below a field documents it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True
    )


def runtime(default: Any = ..., **constraints: Any) -> Any:
    """Declare a field that does not change the result: workers, retries, logging, placement."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


def added(default: Any, **constraints: Any) -> Any:
    """Declare an identity field that came after others: with its default it is left out of the
    identity, so that what was made before keeps its key.
    """
    return Field(default, json_schema_extra={"added": True}, **constraints)


def identity_of(value: Any) -> Any:
    """Return the identity fields of a config, nested, as JSON values: they enter an artifact's key.
    A plain value is returned unchanged.
    """
    if isinstance(value, BaseModel):
        return {
            name: identity_of(getattr(value, name))
            for name in type(value).model_fields
            if not is_runtime(value, name) and not _is_left_out(value, name)
        }
    if isinstance(value, (list, tuple)):
        return [identity_of(item) for item in value]
    if isinstance(value, dict):
        return {str(key): identity_of(item) for key, item in value.items()}
    return value


def is_runtime(model: BaseModel, name: str) -> bool:
    return _has_mark(model, name, "runtime")


def _is_left_out(model: BaseModel, name: str) -> bool:
    field = type(model).model_fields[name]
    return _has_mark(model, name, "added") and bool(getattr(model, name) == field.default)


def _has_mark(model: BaseModel, name: str, mark: str) -> bool:
    extra = type(model).model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(mark))
