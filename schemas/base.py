"""The base of every model, and the difference between identity and runtime fields.

An identity field changes the result and enters the artifact's key; a runtime field does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from schemas.addresses import public_content


class Frozen(BaseModel):
    """An immutable model that refuses unknown fields. The string below a field documents it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def runtime(default: Any = ..., **constraints: Any) -> Any:
    """Declare a field that does not change the result: workers, retries, logging, placement."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


def runtime_unless(field: str, value: Any, default: Any, **constraints: Any) -> Any:
    """Declare a field that is runtime unless another field of its model has this value: then it is
    an identity field.
    """
    return Field(default, json_schema_extra={"runtime_unless": [field, value]}, **constraints)


def added(default: Any, *, alike: Sequence[Any] = (), **constraints: Any) -> Any:
    """Declare an identity field that came after others: with its default it is left out of the
    identity, so that what was made before keeps its key. So it is with the values `alike`, whose
    result is that of the default.
    """
    return _added([default, *alike], default, constraints)


def added_as(before: Any, default: Any, **constraints: Any) -> Any:
    """Declare an identity field as `added` does, with a default that is not what was done `before`:
    the field is left out of the identity with the value that says so.
    """
    return _added([before], default, constraints)


def _added(left_out: list[Any], default: Any, constraints: dict[str, Any]) -> Any:
    return Field(default, json_schema_extra={"left_out": left_out}, **constraints)


def retired(default: Any = ..., **constraints: Any) -> Any:
    """Declare a runtime field that was once an identity field. The identity keeps its default, so
    that what was made with that keeps its key.
    """
    extra: dict[str, Any] = {"runtime": True, "retired": True}
    return Field(default, json_schema_extra=extra, **constraints)


def outside(
    kind: Literal["files", "model"],
    default: Any = ...,
    *,
    came_later: bool = False,
    **constraints: Any,
) -> Any:
    """Declare an identity field that names something outside the store: its contents enter the key
    too (`pipeline.base.fingerprints`).

    `files` are addresses or patterns; a `model` is a folder or a hub id, whose `revision` is a
    field beside it. One that `came_later` is left out at its default, as with `added`.
    """
    extra: dict[str, Any] = {"outside": kind}
    if came_later:
        extra["left_out"] = [default]
    return Field(default, json_schema_extra=extra, **constraints)


def outside_fields(value: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the kind and the value of each field below `value` that names something
    outside the store and is set. What runtime fields name is left out: it changes no result.
    """
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            if is_runtime(value, name):
                continue
            content, path = getattr(value, name), f"{where}.{name}" if where else name
            kind = _marks(field).get("outside")
            if kind is None:
                yield from outside_fields(content, path)
            elif content is not None:
                yield path, str(kind), content
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from outside_fields(item, f"{where}.{place}")


def identity_of(value: Any) -> Any:
    """Return the identity fields of a config, nested, as JSON values: they enter an artifact's key.
    A plain value is returned unchanged.
    """
    if isinstance(value, BaseModel):
        return {
            name: identity_of(_as_recorded(value, name))
            for name in type(value).model_fields
            if not is_runtime(value, name) and not _is_left_out(value, name)
        } | retired_in(value)
    if isinstance(value, (list, tuple)):
        return [identity_of(item) for item in value]
    if isinstance(value, dict):
        return {str(key): identity_of(item) for key, item in value.items()}
    return value


def retired_in(value: Any) -> dict[str, Any]:
    """Return what the identity keeps of the fields that have left it; a plain value has none."""
    fields = type(value).model_fields if isinstance(value, BaseModel) else {}
    return {name: field.default for name, field in fields.items() if _marks(field).get("retired")}


def is_runtime(model: BaseModel, name: str) -> bool:
    marks = _marks(type(model).model_fields[name])
    if "runtime_unless" in marks:
        field, value = marks["runtime_unless"]
        return bool(getattr(model, field) != value)
    return bool(marks.get("runtime"))


def _as_recorded(model: BaseModel, name: str) -> Any:
    """Return a field's value, of addresses what does not change with each signature."""
    value = getattr(model, name)
    is_address = _marks(type(model).model_fields[name]).get("outside") == "files"
    return public_content(value) if is_address else value


def _is_left_out(model: BaseModel, name: str) -> bool:
    return getattr(model, name) in _marks(type(model).model_fields[name]).get("left_out", ())


def _marks(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}
