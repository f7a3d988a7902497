"""What the configuration holds at a place such as `prompts.sources.0.url`: its types and names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from schemas.config import PipelineConfig

Types = list[Any]
"""The types that a value may have; empty where the configuration has no such place."""
WHOLE: Types = [PipelineConfig]


def types_at(place: Sequence[str | int], types: Types = WHOLE) -> Types:
    """Return the types of what is at a place."""
    for part in place:
        types = below(types, part)
    return types


def below(types: Types, part: str | int) -> Types:
    """Return the types of an item or a field of values of these types."""
    return [kind for one in types for kind in _below(one, part)]


def is_text(types: Types) -> bool:
    """Whether all that is allowed is text, or nothing."""
    return may_be_text(types) and all(_is_text(one) or one is NoneType for one in types)


def may_be_text(types: Types) -> bool:
    return any(_is_text(one) for one in types)


def names_in(types: Types) -> list[str]:
    """Return the names of the fields of values of these types."""
    models = [one for one in types if _is_model(one)]
    return sorted({name for model in models for name in model.model_fields})


def as_written(place: Sequence[Any]) -> tuple[list[str], Types]:
    """Return the place of one of pydantic's errors as a user writes it, and the types of what
    holds it: pydantic also names which option of a union it tried.
    """
    written: list[str] = []
    types = holder = WHOLE
    for part in place:
        if part == "[key]" or (chosen := _option(types, part)):
            types = types if part == "[key]" else chosen
            continue
        written.append(str(part))
        holder, types = types, below(types, part)
    return written, holder


def _below(kind: Any, part: str | int) -> Iterator[Any]:
    if _is_model(kind):
        if part in kind.model_fields:
            yield from _options(kind.model_fields[part].annotation)
    elif get_origin(kind) is dict:
        yield from _options(get_args(kind)[1])
    elif get_origin(kind) in (list, tuple) and (isinstance(part, int) or str(part).isdigit()):
        yield from _options(get_args(kind)[0])


def _option(types: Types, part: Any) -> Types:
    """Return the option of a union that a part of an error's place names: by its `kind`, or by the
    type as Python writes it.
    """
    if len(types) < 2:
        return []
    for one in types:
        kind = one.model_fields.get("kind") if _is_model(one) else None
        if (kind and part in get_args(kind.annotation)) or part in (str(one), _name(one)):
            return [one]
    return []


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", "") if get_origin(kind) is None else ""


def _options(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for one in get_args(annotation):
            yield from _options(one)
    else:
        yield annotation


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return kind is str


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
