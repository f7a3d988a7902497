"""What documents the fields of the configuration: the string below each, as its JSON schema has it.
Read only when asked for, since it takes longer than to build the models.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from schemas.base import Frozen
from schemas.config import PipelineConfig


def documented_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration, with the words below each field."""
    schema: dict[str, Any] = PipelineConfig.model_json_schema()
    parts = {PipelineConfig.__name__: schema} | schema["$defs"]
    for model in _models(Frozen):
        fields = parts.get(model.__name__, {}).get("properties", {})
        for field, words in _words(model).items() if fields else ():
            fields[field]["description"] = words
    return schema


def _models(base: type[Frozen]) -> Iterator[type[Frozen]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _words(model: type[Frozen]) -> dict[str, str]:
    """Return the strings below the fields of a model, its own and inherited ones."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, Frozen):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            assert isinstance(definition, ast.ClassDef)
            for field, below in pairwise(definition.body):
                match field, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(words))),
                    ):
                        found[name] = inspect.cleandoc(words)
    return found
